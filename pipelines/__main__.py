"""``python -m clipmill.pipelines NAME ARGUMENTS FOLDER``: run a pipeline on this machine.

A process of its own, so that whoever starts it can end it with all its tasks. ``ARGUMENTS`` is a
JSON object of the pipeline's parameters; the tasks' lines go to standard output, and the stages to
expect to the file of events (:mod:`clipmill.progress`).
"""

import json
import os
import signal
import sys
from pathlib import Path

from clipmill.processes import stop_with_parent


def main(name: str, text: str, folder: str) -> None:
    """Run to the end; tasks keep their scratch files under ``folder``."""
    # The whole group, tasks included.
    stop_with_parent(lambda: os.killpg(0, signal.SIGKILL))
    from clipmill.pipelines.local import planned_stages, run_local
    from clipmill.pipelines.registry import PIPELINES
    from google.protobuf.json_format import MessageToDict

    from clipmill.progress import PLAN_EVENT
    from clipmill.stage_records import EVENTS_VARIABLE

    pipeline, arguments = PIPELINES[name], json.loads(text)
    if path := os.environ.get(EVENTS_VARIABLE):
        stages = planned_stages(MessageToDict(pipeline.pipeline_spec), arguments)
        with Path(path).open("a") as file:
            file.write(json.dumps({"event": PLAN_EVENT, "stages": stages}) + "\n")
    run_local(pipeline, arguments, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""``python -m clipmill.pipelines NAME ARGUMENTS FOLDER``: run a pipeline on this machine.

A process of its own, so that whoever starts it can end it with all its tasks. ``ARGUMENTS`` is a
JSON object of the pipeline's parameters; the tasks' lines go to standard output, and the stages to
expect to the file of events (:mod:`clipmill.progress`).
"""

import json
import os
import signal
import sys
import threading
from pathlib import Path


def _end_with_parent() -> None:
    """End the whole group, tasks included, once whoever started us has closed our input."""
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


def main(name: str, text: str, folder: str) -> None:
    """Run to the end; tasks keep their scratch files under ``folder``."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from clipmill.pipelines.local import run_here
    from clipmill.pipelines.plan import planned_stages
    from clipmill.pipelines.registry import PIPELINES
    from google.protobuf.json_format import MessageToDict

    from clipmill.progress import PLAN_EVENT
    from clipmill.stage_records import EVENTS_VARIABLE

    pipeline, arguments = PIPELINES[name], json.loads(text)
    if path := os.environ.get(EVENTS_VARIABLE):
        stages = planned_stages(MessageToDict(pipeline.pipeline_spec), arguments)
        with Path(path).open("a") as file:
            file.write(json.dumps({"event": PLAN_EVENT, "stages": stages}) + "\n")
    run_here(pipeline, arguments, Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])

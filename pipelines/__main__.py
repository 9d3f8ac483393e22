"""``python -m clipmill.pipelines ARGUMENTS``: run the end-to-end pipeline on this machine.

A process of its own, so that whoever starts it can end it with all its tasks. ``ARGUMENTS`` is a
JSON object of the pipeline's parameters; the tasks' lines go to standard output.
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


def main(arguments: str, folder: str) -> None:
    """Run to the end; tasks keep their scratch files under ``folder``."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    from clipmill.pipelines.end_to_end import end_to_end
    from clipmill.pipelines.local import run_here

    run_here(end_to_end, json.loads(arguments), Path(folder))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""``python -m clipmill.pipelines ARGUMENTS``: run the first-light pipeline on this machine.

A process of its own, so that whoever starts it can end it with all its tasks. ``ARGUMENTS`` is a
JSON object of the pipeline's parameters; the tasks' lines go to standard output.
"""

import json
import os
import signal
import sys
import threading
import warnings
from pathlib import Path


def _end_with_parent() -> None:
    """End the whole group, tasks included, once whoever started us has closed our input."""
    sys.stdin.read()
    os.killpg(0, signal.SIGKILL)


def main(arguments: str, folder: str) -> None:
    """Run to the end; tasks keep their scratch files under ``folder``."""
    threading.Thread(target=_end_with_parent, daemon=True).start()
    # It would have every local user read that images are not used locally.
    warnings.filterwarnings("ignore", "You may be attemping to run a task", RuntimeWarning)
    from clipmill.pipelines.first_light import first_light
    from kfp import local

    root = Path(folder)
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(root / "kfp"),
        workspace_root=str(root / "workspace"),
    )
    first_light(**json.loads(arguments))


if __name__ == "__main__":
    main(*sys.argv[1:])

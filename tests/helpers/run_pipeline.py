"""Pipeline in a process of its own: ``helpers.run_pipeline NAME ARGUMENTS FOLDER [IMAGE]``."""

import json
import sys
from pathlib import Path

from clipmill.pipelines.local import run_local
from clipmill.pipelines.registry import PIPELINES

if __name__ == "__main__":
    name, arguments, folder, *image = sys.argv[1:]
    run_local(PIPELINES[name], json.loads(arguments), Path(folder), *image)

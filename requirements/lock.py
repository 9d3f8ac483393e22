"""Pin every package of an extra: ``requirements/EXTRA.txt`` from pyproject.toml.

One file serves every platform and Python version that clipmill supports: uv resolves for all of
them together, and a marker follows each pin that only some of them need. ``--check`` needs no
network: it fails if pyproject.toml's requirements changed after a file was written.
"""

import hashlib
import json
import os
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ("data", "serve", "train-image")
"""Extras that images install: pip checks the hash of each file. A virtual environment may take
wheels of its user's own instead."""
EXTRAS = (*IMAGES, "demo", "dev", "docs", "peers")
ALONE = ("img2dataset",)
"""Environments without what clipmill requires, from ``requirements/NAME.in``."""
OLDEST_PYTHON = "3.11"


def stamp(name: str) -> str:
    """Return the header of a current file: a digest of all that it is made from."""
    if name in ALONE:
        wanted = _input(name).read_text()
        digest = hashlib.sha256(wanted.encode()).hexdigest()
        return f"# Made by requirements/lock.py from {name}.in with digest {digest[:16]}.\n"
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [
        project["requires-python"],
        project["dependencies"],
        project["optional-dependencies"],
    ]
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
    return f"# Made by requirements/lock.py from pyproject.toml with digest {digest[:16]}.\n"


def _input(name: str) -> Path:
    return ROOT / "requirements" / f"{name}.in"


def lock(extra: str) -> None:
    """Write the extra's file, keeping the versions that it has where they still fit."""
    path = ROOT / "requirements" / f"{extra}.txt"
    source = [_input(extra)] if extra in ALONE else ["--extra", extra, ROOT / "pyproject.toml"]
    # clipmill's own extras name clipmill, which is installed from the checkout. opencv-python's
    # twin opencv-python-headless is pinned too, and needs no display libraries.
    left_out = ("clipmill", "opencv-python")
    command = [
        *(sys.executable, "-m", "uv", "pip", "compile", "--quiet", "--universal"),
        *("--python-version", OLDEST_PYTHON, "--system-certs", "--no-config"),
        *("--no-header", "--no-annotate", "--strip-extras"),
        *(word for name in left_out for word in ("--no-emit-package", name)),
        *(["--generate-hashes"] if extra in IMAGES else []),
        *("--output-file", str(path)),
        *map(str, source),
    ]
    subprocess.run(command, check=True, env=os.environ | {"MMCV_WITH_OPS": "0"})
    path.write_text(stamp(extra) + path.read_text())


def main() -> int:
    """Lock all extras, or check that they are current."""
    if "--check" not in sys.argv:
        for extra in (*EXTRAS, *ALONE):
            lock(extra)
        return 0
    files = [ROOT / "requirements" / f"{extra}.txt" for extra in (*EXTRAS, *ALONE)]
    stale = [f.name for f in files if not f.exists() or not f.read_text().startswith(stamp(f.stem))]
    if stale:
        sys.stderr.write(f"stale: {', '.join(stale)}; run make lock\n")
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())

"""Pin every package of an extra: ``requirements/EXTRA.txt`` from pyproject.toml.

``--check`` asks no network: it fails where a file was made from other requirements than
pyproject.toml has now.
"""

import hashlib
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
IMAGES = ("data", "serve", "train-image")
"""Extras that images install: pip checks the hash of each file. A virtual environment may take
wheels of its user's own instead."""
EXTRAS = (*IMAGES, "demo", "dev")


def stamp() -> str:
    """A digest of all that pyproject.toml requires."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted = [project["dependencies"], project["optional-dependencies"]]
    digest = hashlib.sha256(json.dumps(wanted, sort_keys=True).encode()).hexdigest()
    return f"# Made by requirements/lock.py from pyproject.toml with digest {digest[:16]}.\n"


def lock(extra: str) -> None:
    """Write the extra's file, keeping the versions that it has where they still fit."""
    path = ROOT / "requirements" / f"{extra}.txt"
    command = [
        *(sys.executable, "-m", "piptools", "compile", "--quiet", "--strip-extras"),
        *("--no-header", "--no-annotate", "--no-emit-index-url", "--no-emit-find-links"),
        *("--no-emit-trusted-host", "--allow-unsafe", "--extra", extra),
        *(["--generate-hashes"] if extra in IMAGES else []),
        *("--output-file", str(path), str(ROOT / "pyproject.toml")),
    ]
    subprocess.run(command, check=True, env=os.environ | {"MMCV_WITH_OPS": "0"})
    # clipmill's own extras name clipmill; it is installed from the checkout.
    left_out = ("--", "#", "clipmill @")
    lines = [line for line in path.read_text().splitlines() if not line.startswith(left_out)]
    text = "\n".join(lines) + "\n"
    # Its twin opencv-python-headless is pinned too, and wants no library of a screen's.
    text = re.sub(r"^opencv-python==.*\n(?: .*\n)*", "", text, flags=re.MULTILINE)
    path.write_text(stamp() + text)


def main() -> int:
    """Lock all extras, or check that they are current."""
    if "--check" not in sys.argv:
        for extra in EXTRAS:
            lock(extra)
        return 0
    files = [ROOT / "requirements" / f"{extra}.txt" for extra in EXTRAS]
    stale = [f.name for f in files if not f.exists() or not f.read_text().startswith(stamp())]
    if stale:
        sys.stderr.write(f"stale: {', '.join(stale)}; run make lock\n")
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())

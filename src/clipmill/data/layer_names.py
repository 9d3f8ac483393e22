"""Finding a layer by the part of its name that people know: ``score/clip`` for
``score/clip-1a2b3c4d``.
"""  # noqa: D205  # a name and its example read as one

from collections.abc import Iterable

from clipmill.errors import ConfigError


def find_layer(names: Iterable[str], wanted: str) -> str:
    """The one of ``names`` that is ``wanted``, or begins with it and a dash.

    Raises ConfigError if there is none, or several.
    """
    known = sorted(names)
    if wanted in known:
        return wanted
    found = [name for name in known if name.startswith(f"{wanted}-")]
    if len(found) == 1:
        return found[0]
    kind = wanted.partition("/")[0]
    choices = found or [name for name in known if name.startswith(f"{kind}/")]
    raise ConfigError(
        f"{len(found) or 'no'} layers of the dataset are named {wanted}",
        expected=f"one of {', '.join(choices)}" if choices else f"a layer {wanted}",
        action="name one of them, or narrow the choice with --layer"
        if found
        else f"compute it first, as `clipmill data {_COMMANDS.get(kind, 'import-layer')}` does",
    )


_COMMANDS = {"captions": "recaption", "score": "score", "select": "select"}

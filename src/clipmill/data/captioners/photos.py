"""Captioners that know photographs, and those that would caption a street with drawn objects."""

from clipmill.data.captioners import captioner_kind
from clipmill.storage import Node, lineage

_BY_LABELS = "template"


def photo_objection(captioner: str) -> str:
    """Why ``captioner`` (an address as :func:`captioner_kind` reads it) can't caption photographs.

    Empty where it can: a model with public weights, an endpoint, or a CoCa whose lineage holds no
    drawn scenes. Raises ConfigError for an unknown kind, NotFoundError where no checkpoint lies.
    """
    kind, uri = captioner_kind(captioner)
    if kind == _BY_LABELS:
        return "it writes from labels and doesn't look at images"
    if kind == "coca" and is_drawn(lineage(uri)):
        return "it was trained on drawn scenes and knows only their objects"
    return ""


def is_drawn(node: Node) -> bool:
    """Whether procedural scenes are among an artifact's ancestors."""
    return (node.kind == "source" and "scenes" in node.detail) or any(
        is_drawn(parent) for parent in node.parents
    )

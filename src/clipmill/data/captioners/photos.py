"""Captioners that know photographs, and those that would caption a street with drawn objects."""

import re

from clipmill.data.captioners import captioner_kind
from clipmill.storage import Node, lineage

_BY_LABELS = "template"
# Where `clipmill data scenes` writes: a tar there is a leaf of a lineage, known by its URI alone.
_SCENES = re.compile(r"/sources/scenes-[0-9a-f]{12}(/|$)")


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
    return bool(_SCENES.search(node.uri)) or any(is_drawn(parent) for parent in node.parents)

"""Where a CLIP run's weights come from, by name; nothing is read here but what names it.

========================== ====================================================================
(empty)                    scratch
URI of our checkpoint      CLIP's whole weights, or the image tower of an MAE or supervised one
``*.safetensors``, ``*.pt`` a file that open_clip saved, on this machine
``open_clip:NAME/TAG``     weights that open_clip knows, such as ``open_clip:ViT-B-16/openai``
``timm:NAME``              timm's pretrained image tower
========================== ====================================================================
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from clipmill.digest import digest_json, sha256_file
from clipmill.errors import ArtifactError, ConfigError, NotFoundError
from clipmill.models.checkpoint import read_card
from clipmill.models.encoders import ENCODER_KINDS
from clipmill.storage import Parent

FILE_SUFFIXES = (".safetensors", ".pt", ".pth", ".bin")


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Weights to begin with."""

    source: Literal["clip", "tower", "file", "open_clip", "timm"]
    """Whose they are: a CLIP or an image tower of ours, or another library's."""
    parent: Parent
    """What they are in a lineage."""


def find_start(name: str) -> Start | None:
    """The start that a name means; None for scratch.

    Raises:
        ConfigError: the name lacks a part.
        NotFoundError: no such file or checkpoint.
        ArtifactError: a checkpoint of a kind that CLIP can't start from.
    """
    if not name:
        return None
    scheme, _, model = name.partition(":")
    if scheme in {"timm", "open_clip"}:
        if not model or (scheme == "open_clip" and "/" not in model):
            raise ConfigError(
                f"init was {name!r}",
                expected="timm:NAME, or open_clip:NAME/TAG as open_clip.list_pretrained() has them",
                action="name the weights; leave init empty to start from scratch",
            )
        source: Literal["timm", "open_clip"] = "timm" if scheme == "timm" else "open_clip"
        return Start(source=source, parent=Parent(role="start", uri=name, digest=digest_json(name)))
    if name.endswith(FILE_SUFFIXES):
        return Start(source="file", parent=_file_parent(Path(name.removeprefix("file://"))))
    card = read_card(name)
    if card.kind not in ENCODER_KINDS:
        raise ArtifactError(
            f"{name} is a checkpoint of kind {card.kind!r}",
            expected=f"one of {', '.join(ENCODER_KINDS)}",
            action="give init the URI of an encoder",
        )
    return Start(source="clip" if card.kind == "clip" else "tower", parent=card.as_parent("start"))


def _file_parent(path: Path) -> Parent:
    if not path.is_file():
        raise NotFoundError(
            f"{path} isn't a file", expected="weights that open_clip saved", action="correct init"
        )
    return Parent(role="start", uri=str(path), digest=sha256_file(path))

"""A model in another library's format, with a README.md that says what it was made from."""

from pathlib import Path
from typing import Final

from clipmill.errors import ArtifactError, ConfigError
from clipmill.models.checkpoint import load_checkpoint
from clipmill.models.export.card import model_card
from clipmill.models.export.encoder import ENCODER_FORMATS
from clipmill.models.export.files import Exported
from clipmill.models.towers import ClipConfig
from clipmill.storage import replacing
from clipmill.storage.lineage import read_artifact
from clipmill.tasks.onnx_graph import export_onnx

_NEEDED: Final = {"clip": "an encoder", "task": "a task model"}
FORMATS: Final = {**dict.fromkeys(ENCODER_FORMATS, "clip"), "onnx": "task"}
"""Formats, and the kind of checkpoint that each takes."""


def export(uri: str, folder: Path, target: str) -> Exported:
    """Write the model at ``uri`` into ``folder`` for the library ``target``.

    Raises:
        ConfigError: there is no such format, its library isn't installed, or the task has none.
        ArtifactError: the artifact is no encoder or task model, or not of the format's kind.
    """
    if target not in FORMATS:
        raise ConfigError(
            f"{target!r} isn't a format",
            expected=f"one of {', '.join(sorted(FORMATS))}",
            action="choose one with --to",
        )
    kind = str(read_artifact(uri)["kind"])
    if kind not in _NEEDED:
        raise ArtifactError(
            f"{uri} is a {kind}, not an encoder or a task model",
            expected="a CLIP encoder of clipmill pretrain, or a task model of clipmill finetune",
            action="give the URI of one; clipmill runs STORE lists them",
        )
    if kind != FORMATS[target]:
        fitting = [name for name, needed in FORMATS.items() if needed == kind]
        raise ArtifactError(
            f"{uri} is {_NEEDED[kind]}, and {target} takes {_NEEDED[FORMATS[target]]}",
            expected=f"--to {' or '.join(fitting)}",
            action="choose another format, or another model",
        )
    card, tensors = load_checkpoint(uri)
    if kind == "clip":
        config = ClipConfig.from_json(card.architecture)
        made = ENCODER_FORMATS[target](card, config, tensors, folder)
    else:
        made = export_onnx(card, tensors, folder)
    with replacing(folder / "README.md") as path:
        path.write_text(model_card(card, made), "utf-8")
    return made

"""A model in another library's format, with a README.md that says what it was made from."""

from pathlib import Path
from typing import Final
from clipmill.errors import ArtifactError, ConfigError
from clipmill.models.checkpoint import load_checkpoint
from clipmill.models.export.base import model_card
from clipmill.models.export.encoder import ENCODER_FORMATS
from clipmill.models.export.base import Exported
from clipmill.models.config import ClipConfig
from clipmill.storage import atomic_write
from clipmill.lineage import read_artifact
import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any
from clipmill.errors import ConfigError
from clipmill.models.checkpoint import ModelCard
from clipmill.models.config import EncoderConfig
from clipmill.models.export.base import Exported, missing_extra_error, origin
from clipmill.tasks.classification.task import ClassificationConfig
from clipmill.tasks.registry import task_named

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
    with atomic_write(folder / "README.md") as path:
        path.write_text(model_card(card, made), "utf-8")
    return made


if TYPE_CHECKING:
    from torch import Tensor

_FILE = "model.onnx"
_OPSET = 18


def export_onnx(card: ModelCard, tensors: "Mapping[str, Tensor]", folder: Path) -> Exported:
    """Write ``model.onnx``: ``images`` (B, 3, S, S) in 0..1 to the task's one output.

    S is the side that the model is tested at. Normalization is in the graph, resizing isn't; the
    metadata says so, and names the classes.

    Raises:
        ConfigError: onnx isn't installed, or the task's outputs differ in number by image.
    """
    import torch

    try:
        import onnx
        import onnxscript  # noqa: F401  # torch.onnx needs it
    except ImportError as error:
        raise missing_extra_error(str(error.name), "export") from error

    network, size = _served_network(card, tensors)
    output = task_named(str(card.architecture["task"])).outputs[0]
    # Two, since an exporter takes a size of 1 for a constant.
    example = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        opset_version=_OPSET,
        input_names=["images"],
        output_names=[output.name],
        dynamic_shapes=({0: "batch"},),
        verbose=False,
    )
    assert program is not None
    model = program.model_proto
    prepared = {
        "input": f"images (B, 3, {size}, {size}), RGB, float32 in 0..1; normalized in the graph",
        "resize": f"to {size} x {size} before the graph, bilinear with antialiasing",
    }
    about = {
        "task": str(card.architecture["task"]),
        "classes": json.dumps(card.architecture["classes"]),
        "output": f"{output.name}: {output.unit}",
    }
    metadata = about | prepared | origin(card)
    onnx.helper.set_model_props(model, {f"clipmill.{k}": v for k, v in metadata.items()})
    onnx.checker.check_model(model)
    place = folder / _FILE
    with atomic_write(place) as path:
        onnx.save(model, path)
    return Exported(
        name=str(place),
        usage=(
            "import numpy, onnxruntime\n\n"
            f'session = onnxruntime.InferenceSession("{place}")\n'
            f"images = numpy.zeros((1, 3, {size}, {size}), numpy.float32)  # RGB in 0..1\n"
            f'({output.name},) = session.run(None, {{"images": images}})'
        ),
        library="onnx",
        preprocessing=about | prepared,
    )


def _served_network(card: ModelCard, tensors: "Mapping[str, Tensor]") -> tuple[Any, int]:
    """The network as it is served, and the side of square images that it needn't resize.

    Raises:
        ConfigError: it finds as many objects in an image as there are, which no graph of ours has.
    """
    from clipmill.models.execution import reparameterised

    name = str(card.architecture["task"])
    task = task_named(name)
    if any("N" in output.shape for output in task.outputs):
        raise ConfigError(
            f"{card.uri} is a {name} model, whose number of objects differs by image",
            expected="a segmentation, depth or classification model",
            action="serve it with clipmill serve",
        )
    config = task.config_type.from_json(card.architecture["config"])
    network = task.network(
        config,
        EncoderConfig.from_json(card.architecture["encoder"]),
        tuple(card.architecture["classes"]),
    )
    network.load_state_dict(tensors)
    size = task.sides(config)[-1]
    if isinstance(config, ClassificationConfig):  # whose network takes the central part
        size = round(size / config.test_crop)
    return reparameterised(network).eval(), size

"""Export a model to another library's format, with a model card as README.md."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from clipmill.errors import ArtifactError, ConfigError
from clipmill.lineage import read_artifact
from clipmill.models.checkpoint import CheckpointMetadata, load_checkpoint, read_metadata
from clipmill.models.config import ClipConfig, EncoderConfig
from clipmill.models.export import (
    ENCODER_FORMATS,
    ExportResult,
    missing_extra_error,
    origin,
    render_model_card,
)
from clipmill.models.oci_layout import export_oci_layout
from clipmill.storage import atomic_write
from clipmill.tasks.config import ClassificationConfig
from clipmill.tasks.registry import get_task
from clipmill.tasks.training_registry import get_training_task

if TYPE_CHECKING:
    from torch import Tensor

_ONNX_FILE = "model.onnx"
_ONNX_OPSET = 18
_KIND_NAMES: Final = {"clip": "an encoder", "task": "a task model"}
_IMAGE: Final = "oci-layout"
FORMATS: Final = {
    **dict.fromkeys(ENCODER_FORMATS, ("clip",)),
    "onnx": ("task",),
    _IMAGE: ("clip", "task"),
}
"""Export formats, with the kinds of checkpoint that each takes."""


def export(uri: str, folder: Path, target: str, *, base: Path | None = None) -> ExportResult:
    """Write the model at ``uri`` into ``folder`` for the library ``target``.

    ``base`` is the image layout under an image of the model.

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
    if base is not None and target != _IMAGE:
        raise ConfigError(
            f"--base was {base}, and the format is {target}",
            expected=f"--base with --to {_IMAGE} only",
            action="leave --base out",
        )
    kind = str(read_artifact(uri)["kind"])
    if kind not in _KIND_NAMES:
        raise ArtifactError(
            f"{uri} is a {kind}, not an encoder or a task model",
            expected="a CLIP encoder of clipmill pretrain, or a task model of clipmill finetune",
            action="give the URI of one; `clipmill ls STORE` lists them",
        )
    if kind not in FORMATS[target]:
        fitting = [name for name, kinds in FORMATS.items() if kind in kinds]
        raise ArtifactError(
            f"{uri} is {_KIND_NAMES[kind]}, and {target} takes {_KIND_NAMES[FORMATS[target][0]]}",
            expected=f"--to {' or '.join(fitting)}",
            action="choose another format, or another model",
        )
    if target == _IMAGE:
        metadata = read_metadata(uri)
        result = export_oci_layout(metadata, folder, base)
    else:
        metadata, tensors = load_checkpoint(uri)
        if kind == "clip":
            config = ClipConfig.from_json(metadata.architecture)
            result = ENCODER_FORMATS[target](metadata, config, tensors, folder)
        else:
            result = export_onnx(metadata, tensors, folder)
    with atomic_write(folder / "README.md") as path:
        path.write_text(render_model_card(metadata, result), "utf-8")
    return result


def export_onnx(
    metadata: CheckpointMetadata, tensors: "Mapping[str, Tensor]", folder: Path
) -> ExportResult:
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

    network, size = _build_network(metadata, tensors)
    output = get_task(str(metadata.architecture["task"])).outputs[0]
    # Two, since an exporter takes a size of 1 for a constant.
    example = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0))
    program = torch.onnx.export(
        network,
        (example,),
        dynamo=True,
        opset_version=_ONNX_OPSET,
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
        "task": str(metadata.architecture["task"]),
        "classes": json.dumps(metadata.architecture["classes"]),
        "output": f"{output.name}: {output.unit}",
    }
    properties = about | prepared | origin(metadata)
    onnx.helper.set_model_props(model, {f"clipmill.{k}": v for k, v in properties.items()})
    onnx.checker.check_model(model)
    target = folder / _ONNX_FILE
    with atomic_write(target) as path:
        onnx.save(model, path)
    return ExportResult(
        name=str(target),
        usage=(
            "import numpy, onnxruntime\n\n"
            f'session = onnxruntime.InferenceSession("{target}")\n'
            f"images = numpy.zeros((1, 3, {size}, {size}), numpy.float32)  # RGB in 0..1\n"
            f'({output.name},) = session.run(None, {{"images": images}})'
        ),
        library="onnx",
        preprocessing=about | prepared,
    )


def _build_network(
    metadata: CheckpointMetadata, tensors: "Mapping[str, Tensor]"
) -> tuple[Any, int]:
    """Build the inference network; with it the side of square images that it needn't resize.

    Raises:
        ConfigError: the number of outputs differs by image, which the graph can't express.
    """
    from clipmill.models.execution import fuse_branches

    name = str(metadata.architecture["task"])
    task = get_training_task(name)
    if any("N" in output.shape for output in task.outputs):
        raise ConfigError(
            f"{metadata.uri} is a {name} model, whose number of objects differs by image",
            expected="a segmentation, depth or classification model",
            action="serve it with clipmill serve",
        )
    config = task.config_type.from_json(metadata.architecture["config"])
    network = task.build_inference_model(
        config,
        EncoderConfig.from_json(metadata.architecture["encoder"]),
        tuple(metadata.architecture["classes"]),
    )
    network.load_state_dict(tensors)
    size = task.input_sizes(config)[-1]
    if isinstance(config, ClassificationConfig):  # whose network takes the central part
        size = round(size / config.test_crop)
    return fuse_branches(network).eval(), size

"""An image tower as Core ML runs it: an ML program that takes an image of fixed size."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipmill.models.checkpoint import CheckpointMetadata
from clipmill.models.config import ClipConfig
from clipmill.models.export.base import ExportResult, missing_extra_error, origin, preprocessing
from clipmill.models.towers import build_clip

if TYPE_CHECKING:
    from torch import Tensor

_FILE = "encoder.mlpackage"


def export_coreml(
    metadata: CheckpointMetadata, config: ClipConfig, tensors: Mapping[str, "Tensor"], folder: Path
) -> ExportResult:
    """Write the image tower, its branches fused, as ``encoder.mlpackage`` in full precision.

    Its input ``image`` is RGB, its output ``embedding`` (1, D) as before normalization; the mean
    and standard deviation of pixels are inside. Converting works on Linux, running needs macOS.

    Raises:
        ConfigError: coremltools isn't installed.
    """
    try:
        import coremltools
    except ImportError as error:
        raise missing_extra_error("coremltools", "coreml") from error
    import torch

    size = config.vision.image_size
    traced = torch.jit.trace(  # type: ignore[no-untyped-call]
        image_embedder(config, tensors), torch.zeros(1, 3, size, size), check_trace=False
    )
    # Pixels come as 0..255; the embedder takes 0..1.
    image = coremltools.ImageType(
        name="image",
        shape=(1, 3, size, size),
        scale=1 / 255,
        color_layout=coremltools.colorlayout.RGB,
    )
    program: Any = coremltools.convert(
        traced,
        inputs=[image],
        outputs=[coremltools.TensorType(name="embedding")],
        convert_to="mlprogram",
        compute_precision=coremltools.precision.FLOAT32,
        minimum_deployment_target=coremltools.target.iOS16,
        skip_model_load=True,
    )
    program.short_description = "Image tower of a CLIP encoder"
    program.input_description["image"] = f"RGB image, its central square at {size} x {size} pixels"
    program.output_description["embedding"] = "Embedding before normalization"
    program.user_defined_metadata.update({f"clipmill.{k}": v for k, v in origin(metadata).items()})
    folder.mkdir(parents=True, exist_ok=True)
    place = folder / _FILE
    program.save(str(place))
    return ExportResult(
        name=str(place),
        usage=(
            "import coremltools, PIL.Image\n\n"
            f'model = coremltools.models.MLModel("{place}")\n'
            f'image = PIL.Image.open("photo.jpg").convert("RGB").resize(({size}, {size}))\n'
            'embedding = model.predict({"image": image})["embedding"]'
        ),
        library="coreml",
        preprocessing=preprocessing(config.vision),
        notes=("note: the text tower isn't in it",),
    )


def image_embedder(config: ClipConfig, tensors: Mapping[str, "Tensor"]) -> Any:
    """Images (B, 3, S, S) in 0..1 to embeddings (B, D): the module that is converted."""
    from torch import nn

    from clipmill.models.encoders import Normalize
    from clipmill.models.execution import fuse_branches

    clip = build_clip(config)
    clip.load_state_dict(tensors)
    normalize = Normalize(config.vision.mean, config.vision.std)
    return nn.Sequential(normalize, fuse_branches(clip.visual)).eval()

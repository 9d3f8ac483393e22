"""Both towers as open_clip loads them: a folder that it takes by ``local-dir:``."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from clipmill.models.checkpoint import CheckpointMetadata
from clipmill.models.config import CLIP_VOCAB_SIZE, ClipConfig
from clipmill.models.export.base import ExportResult, origin, preprocessing, write_model
from clipmill.models.towers import text_kwargs, vision_kwargs

if TYPE_CHECKING:
    from torch import Tensor


def export_open_clip(
    metadata: CheckpointMetadata, config: ClipConfig, tensors: Mapping[str, "Tensor"], folder: Path
) -> ExportResult:
    """Write ``open_clip_config.json`` and ``open_clip_model.safetensors``."""
    value = {
        "model_cfg": {
            "embed_dim": config.embed_dim,
            "vision_cfg": vision_kwargs(config.vision),
            "text_cfg": text_kwargs(config.text),
            **({"quick_gelu": True} if config.text.activation == "quick_gelu" else {}),
            **({"init_logit_bias": 0.0} if config.loss == "sigmoid" else {}),
        },
        "preprocess_cfg": {
            "size": config.vision.image_size,
            "mean": list(config.vision.mean),
            "std": list(config.vision.std),
            "interpolation": config.vision.interpolation,
            "resize_mode": "squash" if config.vision.resize == "squash" else "shortest",
        },
        "clipmill": origin(metadata),
    }
    write_model(folder, "open_clip_config.json", value, "open_clip_model.safetensors", tensors)
    notes: tuple[str, ...] = ()
    if config.text.vocab_size != CLIP_VOCAB_SIZE:
        note = (
            f"note: open_clip's tokenizer has {CLIP_VOCAB_SIZE} tokens and this text tower "
            f"{config.text.vocab_size}: give it ids from clipmill.models.tokenizer"
        )
        notes = (note,)
    return ExportResult(
        name=f"local-dir:{folder}",
        usage=(
            "import open_clip\n\n"
            "model, preprocess = open_clip.create_model_from_pretrained("
            f'"local-dir:{folder}")\n'
            f'tokenizer = open_clip.get_tokenizer("local-dir:{folder}")'
        ),
        library="open_clip",
        preprocessing=preprocessing(config.vision),
        notes=notes,
    )

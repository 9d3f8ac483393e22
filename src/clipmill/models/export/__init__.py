"""Export of CLIP encoders to other libraries' formats, with equal outputs."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from clipmill.models.checkpoint import CheckpointMetadata
from clipmill.models.config import ClipConfig
from clipmill.models.export.base import ExportResult
from clipmill.models.export.coreml import export_coreml
from clipmill.models.export.open_clip import export_open_clip
from clipmill.models.export.timm import export_timm
from clipmill.models.export.transformers import export_transformers

if TYPE_CHECKING:
    from torch import Tensor

_Writer = Callable[[CheckpointMetadata, ClipConfig, Mapping[str, "Tensor"], Path], ExportResult]
ENCODER_FORMATS: Final[Mapping[str, _Writer]] = {
    "open_clip": export_open_clip,
    "timm": export_timm,
    "transformers": export_transformers,
    "coreml": export_coreml,
}
"""Both towers for open_clip and transformers, the image tower for timm and Core ML."""

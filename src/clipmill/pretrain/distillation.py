"""How a student learns from stored embeddings of a teacher ensemble (MobileCLIP, CVPR 2024)."""

from dataclasses import dataclass

from clipmill.config import Config
from clipmill.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationConfig(Config):
    """Losses on reinforced data: ``contrastive_weight * CLIP + weight * distillation``."""

    layer: str = ""
    """The layer of the teachers' embeddings, such as ``teacher/ensemble-1a2b3c4d``."""
    contrastive_weight: float = 0.0
    """Weight of the contrastive loss of each caption kind (apple/ml-mobileclip: 0 for
    DataCompDR-12M and mobile encoders, 0.25 for ViT-B/16 on DataCompDR-1B)."""
    weight: float = 1.0
    """Weight of the distillation loss of each caption kind."""
    teacher_widths: tuple[int, ...] = (768, 768)
    """Widths of the teachers' embeddings, which lie side by side in the layer."""
    teacher_scale: float = 100.0
    """Factor of the teachers' similarities (apple/ml-mobileclip)."""

    def __post_init__(self) -> None:
        """Refuse weights that train nothing (ConfigError)."""
        if min(self.contrastive_weight, self.weight) < 0 or self.weight == 0:
            raise ConfigError(
                f"weights were {self.contrastive_weight} and {self.weight}",
                expected="a contrastive_weight of at least 0, and a weight above 0",
                action="leave distillation null to train without teachers",
            )

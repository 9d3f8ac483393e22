"""How a student learns from stored embeddings of a teacher ensemble (MobileCLIP, CVPR 2024)."""

from dataclasses import dataclass

from clipmill.config import Config
from clipmill.data.layers import LAYER_MANIFEST
from clipmill.data.view import View
from clipmill.errors import ConfigError
from clipmill.storage import Parent, join, read_json


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


def teacher_parent(view: View, distillation: DistillationConfig) -> Parent:
    """The teacher layer as a run's parent.

    Raises:
        ConfigError: it is missing, or of other captions or widths.
    """
    dataset, layer = view.dataset, distillation.layer
    if layer not in dataset.layers:
        known = ", ".join(n for n in dataset.layers if n.startswith("teacher/"))
        raise ConfigError(
            f"distillation.layer was {layer!r}",
            expected=f"one of {known}" if known else "a teacher layer, but the dataset has none",
            action="name such a layer, or make one with `clipmill data teacher`",
        )
    manifest = read_json(join(dataset.layer_uri(layer), LAYER_MANIFEST))
    widths = tuple(int(w) for w in manifest["summary"]["widths"].split(","))
    if widths != distillation.teacher_widths:
        raise ConfigError(
            f"distillation.teacher_widths was {distillation.teacher_widths}",
            expected=f"{widths}, as in {layer}",
            action=f"set distillation.teacher_widths={list(widths)}",
        )
    embedded = [p["digest"] for p in manifest["parents"] if p["role"] == "captions"]
    if view.config.layer and dataset.layers[view.config.layer].digest not in embedded:
        raise ConfigError(
            f"{layer} has no embeddings of {view.config.layer}",
            expected="a teacher layer that was made with the view's captions",
            action="make one, or train on captions=real",
        )
    digest = dataset.layers[layer].digest
    return Parent(role="teacher", uri=dataset.layer_uri(layer), digest=digest)

"""What the objectives of all tasks share: an encoder, frozen or slower towards its stem."""

from typing import Self, TypeVar
from clipmill.engine.objective import Objective
from clipmill.models.dense import Encoder
from torch import Tensor
from clipmill.models.dense import DenseEncoder
from clipmill.models.feature_cache import FeatureCache

EncoderT = TypeVar("EncoderT", bound=Encoder)


class EncoderObjective(Objective):
    """An objective over a pretrained encoder, held as ``encoder``."""

    encoder: Encoder

    def __init__(self, *, is_frozen: bool = False) -> None:
        super().__init__()
        self._is_frozen = is_frozen

    def held(self, encoder: EncoderT) -> EncoderT:
        """The encoder, without gradients if it is frozen."""
        return encoder.requires_grad_(not self._is_frozen)

    def train(self, mode: bool = True) -> Self:
        """A frozen encoder stays as it is used: no drop path, and batch norms that don't move."""
        super().train(mode)
        if self._is_frozen:
            self.encoder.eval()
        return self

    def layer_of(self, parameter: str) -> int | None:
        """The encoder's layers; whatever stands on it learns at the full rate."""
        if parameter.startswith("encoder."):
            return self.encoder.layer_of(parameter.removeprefix("encoder."))
        return None

    @property
    def num_layers(self) -> int:
        """One above the encoder's own top layer, as in BEiT's and MAE's layer decay."""
        return self.encoder.num_layers + 1



class DenseObjective(EncoderObjective):
    """An objective over a dense encoder, held as ``encoder``."""

    encoder: DenseEncoder
    _cache: FeatureCache | None = None

    def maps(self, batch: dict[str, Tensor]) -> list[Tensor]:
        """The encoder's maps (B, D, h, w) of ``images`` (B, H, W, 3) uint8, finest first.

        A batch that names its images by ``keys`` (B,) wants a frozen encoder's maps computed once.
        """
        images_B3HW = batch["images"].permute(0, 3, 1, 2).float() / 255
        if "keys" not in batch:
            maps: list[Tensor] = self.encoder(images_B3HW)
            return maps
        if self._cache is None:
            self._cache = FeatureCache(self.encoder)
        return self._cache(images_B3HW, batch["keys"])

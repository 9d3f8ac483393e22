"""What the objectives of all tasks share: an encoder, frozen or slower towards its stem."""

from typing import Self, TypeVar

from clipmill.engine.objective import Objective
from clipmill.models.dense import Encoder

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

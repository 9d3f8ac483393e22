"""What the objectives of all tasks share: an encoder and a rate that falls with depth."""

from clipmill.engine.objective import Objective
from clipmill.models.dense import Encoder


class EncoderObjective(Objective):
    """An objective over a pretrained encoder, held as ``encoder``."""

    encoder: Encoder

    def layer_of(self, parameter: str) -> int | None:
        """The encoder's layers; whatever stands on it learns at the full rate."""
        if parameter.startswith("encoder."):
            return self.encoder.layer_of(parameter.removeprefix("encoder."))
        return None

    @property
    def num_layers(self) -> int:
        """One above the encoder's own top layer, as in BEiT's and MAE's layer decay."""
        return self.encoder.num_layers + 1

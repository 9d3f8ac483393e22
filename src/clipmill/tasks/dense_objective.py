"""What the objectives of dense tasks share: an encoder of feature maps."""

from clipmill.models.dense import DenseEncoder
from clipmill.tasks.encoder_objective import EncoderObjective


class DenseObjective(EncoderObjective):
    """An objective over a dense encoder, held as ``encoder``."""

    encoder: DenseEncoder

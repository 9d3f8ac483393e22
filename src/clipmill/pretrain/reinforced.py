"""Batches of reinforced data: pairs with what a teacher ensemble made of them.

Shapes: B batch, E the teachers' widths together.
"""

from dataclasses import dataclass

from torch import Tensor

from clipmill.data.loader import PairBatch


@dataclass(slots=True)
class ReinforcedBatch(PairBatch):
    """A PairBatch whose images are replayed augmentations, with the teachers' embeddings."""

    teacher_image_BE: Tensor
    """Of the very augmentation that the batch holds."""
    teacher_real_BE: Tensor | None = None
    """Of the real captions, if the batch has them."""
    teacher_synthetic_BE: Tensor | None = None
    """Of the synthetic captions that were drawn, if the batch has them."""

    def pin_memory(self) -> "ReinforcedBatch":
        """Move the tensors to page-locked memory; the DataLoader calls this."""
        PairBatch.pin_memory(self)
        self.teacher_image_BE = self.teacher_image_BE.pin_memory()
        for name in ("teacher_real_BE", "teacher_synthetic_BE"):
            value = getattr(self, name)
            setattr(self, name, None if value is None else value.pin_memory())
        return self


def teacher_embeddings(batch: PairBatch) -> dict[str, Tensor]:
    """The teachers' embeddings (B, E) by name: ``image``, and one for each kind of caption."""
    assert isinstance(batch, ReinforcedBatch), "distillation needs batches with teacher embeddings"
    found = {
        "image": batch.teacher_image_BE,
        "real": batch.teacher_real_BE,
        "synthetic": batch.teacher_synthetic_BE,
    }
    return {name: value for name, value in found.items() if value is not None}

"""Pairs that training doesn't see, to be judged on: a dataset cut in two by its samples' ids."""

from dataclasses import dataclass
from typing import Final

from clipmill.data.dataset import Dataset
from clipmill.data.loading.view import uid_place
from clipmill.errors import SourceError

MIN_PAIRS: Final = 20
"""Fewer than these neither train an encoder nor measure one."""
_SHARE: Final = 0.25
_MAX_HELD_OUT: Final = 1_000


@dataclass(frozen=True, kw_only=True, slots=True)
class HeldOut:
    """A cut of a dataset."""

    fraction: float
    """``view.fraction`` of the training part; everything outside it is held out."""
    num_train: int
    num_held_out: int


def hold_out(dataset: Dataset) -> HeldOut:
    """Hold out a quarter of the pairs, at most 1,000; exact whatever the number of pairs.

    Raises SourceError for fewer than :data:`MIN_PAIRS` pairs.
    """
    total = dataset.num_samples
    if total < MIN_PAIRS:
        reasons = ", ".join(f"{n:,} {reason}" for reason, n in sorted(dataset.quarantine.items()))
        left_out = f"; left out: {reasons}" if reasons else ""
        raise SourceError(
            f"only {total} image-caption pairs can be used{left_out}",
            expected=f"at least {MIN_PAIRS} pairs to train on and to measure with",
            action="add images, each with a .txt caption of the same name; to measure existing "
            "weights on fewer, run: clipmill retrieval MODEL --data FOLDER --store URI",
        )
    places = sorted(
        uid_place(uid) for index in range(len(dataset.shards)) for uid in dataset.uids(index)
    )
    num_held_out = min(round(_SHARE * total), _MAX_HELD_OUT)
    num_train = total - num_held_out
    fraction = (places[num_train - 1] + places[num_train]) / 2
    return HeldOut(fraction=fraction, num_train=num_train, num_held_out=num_held_out)


def fitting_batch(num_train: int, batch_size: int) -> int:
    """``batch_size``, or the largest power of two that is at most half of the pairs.

    A batch that held a pair twice would call its own caption wrong.
    """
    return min(batch_size, 1 << max((num_train // 2).bit_length() - 1, 1))

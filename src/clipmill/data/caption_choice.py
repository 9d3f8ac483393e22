"""Which caption of each sample is trained on: the real one, or a synthetic one that fits better."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.config import Config
from clipmill.data.filters.clip_top_fraction import check_fraction
from clipmill.data.filters.contract import CAPTION_KINDS, Block, Judge
from clipmill.data.layer_rows import REAL, list_rows
from clipmill.data.top_fraction import TopFraction


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceConfig(Config):
    """How a caption is chosen, over the whole pool, before any filter judges."""

    rule: Literal["real", "synthetic", "best", "mix"] = "real"
    """The real caption; the synthetic one with the best score; the best of all, of equal ones the
    real; or ``mix``: the real caption where its score is in the top fraction, else the best
    synthetic one (Nguyen et al. 2023, "Improving Multimodal Datasets with Image Captioning")."""
    layers: tuple[str, ...] = ()
    """Captions layers among which is chosen; empty for all that the dataset has."""
    scores: str = "score/clip"
    """The layer of CLIP scores, of the real and of those captions."""
    fraction: float = 0.3
    """For ``mix``, the top fraction of real captions that stay."""
    same_threshold: bool = False
    """For ``mix``, whether synthetic captions whose score is below what the real ones needed are
    refused, as in that paper's best variant."""

    def __post_init__(self) -> None:
        """Refuse a fraction out of range (ConfigError)."""
        check_fraction(self.fraction)

    @property
    def needs(self) -> Mapping[str, tuple[str, ...]]:
        """The scores, unless the real captions are taken as they are."""
        return {} if self.rule == "real" else {self.scores: (CAPTION_KINDS,)}

    def start(self, num_rows: int) -> Judge:
        """What chooses; ``judge`` writes the choice into the block."""
        del num_rows
        return _Chooser(self)


class _Chooser(Judge):
    def __init__(self, config: ChoiceConfig) -> None:
        self._config = config
        self._top = TopFraction(config.fraction)
        self.num_passes = TopFraction.num_passes if config.rule == "mix" else 0

    def see(self, block: Block, alive: NDArray[np.bool_]) -> None:
        self._top.see(self._real(block)[alive])

    def end_pass(self) -> None:
        self._top.end_pass()

    def judge(self, block: Block) -> NDArray[np.bool_]:
        if self._config.rule == "real":
            return np.ones(block.num_rows, bool)
        real = self._real(block)
        score = np.full(block.num_rows, -np.inf, np.float32)
        for number, name in enumerate(block.kinds[1:], start=1):
            found, place = _best_of_each(block.column(self._config.scores, name))
            is_better = found > score
            score[is_better] = found[is_better]
            block.kind[is_better] = number
            block.place[is_better] = place[is_better]
        stays = self._stays(real, score) | (block.kind == 0)
        block.kind[stays] = 0
        block.place[stays] = 0
        if self._config.rule == "mix" and self._config.same_threshold:
            keep: NDArray[np.bool_] = np.where(stays, real, score) >= self._top.threshold
            return keep
        return np.ones(block.num_rows, bool)

    def _stays(
        self, real: NDArray[np.float32], synthetic: NDArray[np.float32]
    ) -> NDArray[np.bool_]:
        """Where the real caption does."""
        if self._config.rule == "synthetic":
            return np.zeros(len(real), bool)
        stays: NDArray[np.bool_] = real >= (
            self._top.threshold if self._config.rule == "mix" else synthetic
        )
        return stays

    def _real(self, block: Block) -> NDArray[np.float32]:
        return block.numbers(self._config.scores, REAL).astype(np.float32)


def _best_of_each(lists: pa.Array) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The highest value of each list, and its (first) place in it; -inf where there is none."""
    values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    values = np.nan_to_num(values, nan=-np.inf)
    rows = list_rows(lists)
    order = np.lexsort((-values, rows))
    is_first = np.ones(len(order), bool)
    is_first[1:] = rows[order][1:] != rows[order][:-1]
    best = order[is_first]
    score = np.full(len(lists), -np.inf, np.float32)
    place = np.zeros(len(lists), np.int64)
    score[rows[best]] = values[best]
    place[rows[best]] = best - np.searchsorted(rows, rows[best])
    return score, place

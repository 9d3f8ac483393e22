"""No concept too often: MetaCLIP's balancing (Xu et al. 2024, "Demystifying CLIP Data", algorithm
1).

A caption is drawn for each concept that it names, with probability ``max_count / count`` where
the concept is named more often than that, and kept if any draw says so; captions that name no
concept go. So frequent concepts end near ``max_count``, and rare ones stay whole.
"""  # noqa: D205  # the source belongs to the first sentence

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.data.filters.contract import Block, CaptionOf, FilterConfig, Judge, caption_columns
from clipmill.data.layer_rows import list_rows
from clipmill.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class ConceptBalanceFilter(FilterConfig):
    """Caps how often a concept is named; what is kept depends on uids and the seed alone."""

    max_count: int = 20_000
    """Times that a concept is named in expectation, at most, by draws for it (400 M set)."""
    seed: int = 0
    """Seed of the draws."""
    captions: CaptionOf = "real"
    """Which caption is judged."""
    layer: str = "score/concepts"
    """The layer of concepts that captions name."""

    def __post_init__(self) -> None:
        """Refuse a count below 1 (ConfigError)."""
        if self.max_count < 1:
            raise ConfigError(
                f"max_count was {self.max_count}",
                expected="at least 1",
                action="give max_count such a value",
            )

    @property
    def needs(self) -> Mapping[str, tuple[str, ...]]:
        """The concepts that captions name."""
        return {self.layer: caption_columns(self.captions)}

    def start(self, num_rows: int) -> Judge:
        """Takes a pass to count the concepts."""
        del num_rows
        return _Judge(self)


class _Judge(Judge):
    num_passes = 1

    def __init__(self, config: ConceptBalanceFilter) -> None:
        self._config = config
        self._counts: NDArray[np.int64] = np.zeros(0, np.int64)

    def see(self, block: Block, alive: NDArray[np.bool_]) -> None:
        concepts = self._concepts(block)
        numbers = _flat(concepts)[alive[list_rows(concepts)]]
        counts: NDArray[np.int64] = np.bincount(numbers, minlength=len(self._counts))
        counts[: len(self._counts)] += self._counts
        self._counts = counts

    def end_pass(self) -> None:
        pass

    def judge(self, block: Block) -> NDArray[np.bool_]:
        concepts = self._concepts(block)
        numbers = _flat(concepts)
        # A concept that only refused rows name wasn't counted.
        counts = np.concatenate([self._counts, np.zeros(numbers.max(initial=0) + 1, np.int64)])
        missed = 1 - np.minimum(1, self._config.max_count / np.maximum(counts[numbers], 1))
        # One draw against the chance that any of independent draws succeeds is the same law.
        with np.errstate(divide="ignore"):
            log_missed = np.bincount(
                list_rows(concepts), weights=np.log(missed), minlength=block.num_rows
            )
        draws = np.array([_draw(uid, self._config.seed) for uid in block.read_uids()], np.float64)
        keep: NDArray[np.bool_] = draws < 1 - np.exp(log_missed)
        return keep

    def _concepts(self, block: Block) -> pa.Array:
        return block.captions(self._config.layer, self._config.captions)


def _flat(concepts: pa.Array) -> NDArray[np.int32]:
    numbers: NDArray[np.int32] = concepts.flatten().to_numpy(zero_copy_only=False)
    return numbers


def _draw(uid: str, seed: int) -> float:
    """Uniform in [0, 1); with a label of its own, or a subset by uid would be balanced askew."""
    leading = hashlib.sha256(f"concepts:{seed}:{uid}".encode()).digest()[:8]
    return (int.from_bytes(leading, "big") >> 11) * 2.0**-53

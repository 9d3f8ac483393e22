"""Filters over a dataset's scores, one configuration class each.

A filter names the columns that it requires and creates a :class:`FilterState`, which returns a
boolean mask for each shard. Most filters decide row by row (:class:`RowFilter`); a filter that
depends on all rows first observes those that no earlier filter rejected, in one or more passes.
Duplicates are in :mod:`clipmill.data.duplicates`.

Sources: DataComp is Gadre et al. 2023, "DataComp: In search of the next generation of multimodal
datasets"; its basic filtering gives the defaults of the size, aspect, length and language filters.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from clipmill.config import Config
from clipmill.data.layers import REAL, list_parent_indices
from clipmill.errors import ConfigError

CaptionOf = Literal["real", "selected"]
"""Caption of a sample that a filter reads: the real one, or the one selected for it."""

NO_LIMIT = float(np.finfo(np.float32).max)
"""A limit that every score keeps; a config can't hold infinity."""

CAPTION_KINDS = "*"
"""In ``required_columns``, stands for the columns of all caption kinds to select from."""


@dataclass(frozen=True, slots=True)
class Block:
    """The rows of one shard, with the columns that the filters require."""

    start: int
    """Index of its first row among all rows of the dataset."""
    num_rows: int
    kinds: tuple[str, ...]
    """Caption kinds to select from; the real captions come first."""
    caption_kind: NDArray[np.uint8]
    """For each row the index into ``kinds`` of its selected caption."""
    caption_index: NDArray[np.uint16]
    """For each row the index of its selected caption among the row's captions of that kind."""
    columns: Mapping[str, Mapping[str, pa.Array]]
    """Columns by the layer's name in the filter's config, then by column name."""
    read_uids: Callable[[], Sequence[str]]
    """Reads the uids of the rows."""

    @property
    def rows(self) -> slice:
        """Range of its rows among all rows of the dataset."""
        return slice(self.start, self.start + self.num_rows)

    def column(self, layer: str, name: str) -> pa.Array:
        """Return a column: one value per row."""
        return self.columns[layer][name]

    def numbers(self, layer: str, name: str) -> NDArray[np.float64]:
        """Return a numeric column as float64; NaN for null."""
        return _numbers(self.column(layer, name))

    def captions(self, layer: str, of: CaptionOf) -> pa.Array:
        """Return the value of each row's real or selected caption, from caption columns."""
        if of == "real" or not self.caption_kind.any():
            return self.column(layer, REAL)
        parts = [self.column(layer, name) for name in self.kinds]
        index = np.arange(self.num_rows)
        lacks = np.zeros(self.num_rows, bool)
        before = self.num_rows
        for number, lists in enumerate(parts[1:], start=1):
            rows = np.flatnonzero(self.caption_kind == number)
            offsets = lists.offsets.to_numpy() - lists.offsets[0].as_py()
            index[rows] = before + offsets[rows] + self.caption_index[rows]
            lacks[rows] = offsets[rows] + self.caption_index[rows] >= offsets[rows + 1]
            before += len(lists.flatten())
        dtype = parts[0].type  # an imported table may mix float and double
        values = pa.concat_arrays([parts[0], *(lists.flatten().cast(dtype) for lists in parts[1:])])
        return values.take(pa.array(index, mask=lacks))

    def caption_numbers(self, layer: str, of: CaptionOf) -> NDArray[np.float64]:
        """Return :meth:`captions` as float64; NaN for null."""
        return _numbers(self.captions(layer, of))

    def scores(self, layer: str, column: str, of: CaptionOf) -> NDArray[np.float64]:
        """Return a column's numbers, or those of each row's caption if ``column`` is empty."""
        return self.numbers(layer, column) if column else self.caption_numbers(layer, of)


class FilterState(ABC):
    """Progress of one filter over a dataset."""

    num_passes: int = 0
    """Passes over all remaining rows before :meth:`keep_mask` may be called; :meth:`finish_pass`
    may raise it."""

    def observe(self, block: Block, remaining: NDArray[np.bool_]) -> None:
        """Read a block's remaining rows, during a pass."""
        raise NotImplementedError

    def finish_pass(self) -> None:
        """End a pass."""
        raise NotImplementedError

    @abstractmethod
    def keep_mask(self, block: Block) -> NDArray[np.bool_]:
        """Return which rows of a block are kept; rows without a required value aren't."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterConfig(Config, ABC):
    """Settings of one filter."""

    RENAMED_VALUES: ClassVar[Mapping[str, Mapping[str, str]]] = {
        "captions": {"chosen": "selected"},
    }

    @property
    @abstractmethod
    def required_columns(self) -> Mapping[str, tuple[str, ...]]:
        """Columns by layer; a layer is named in full or by its beginning, as ``score/clip``."""

    @abstractmethod
    def create_state(self, num_rows: int) -> FilterState:
        """Return a state for a dataset with ``num_rows`` rows."""


@dataclass(frozen=True, kw_only=True, slots=True)
class RowFilter(FilterConfig):
    """A filter that decides each row by itself."""

    def create_state(self, num_rows: int) -> FilterState:
        """Return a state that needs no pass."""
        del num_rows
        return _RowState(self.keep_mask)

    @abstractmethod
    def keep_mask(self, block: Block) -> NDArray[np.bool_]:
        """Return which rows of a block are kept."""


class _RowState(FilterState):
    def __init__(self, keep_mask: Callable[[Block], NDArray[np.bool_]]) -> None:
        self._keep_mask = keep_mask

    def keep_mask(self, block: Block) -> NDArray[np.bool_]:
        return self._keep_mask(block)


@dataclass(frozen=True, kw_only=True, slots=True)
class _ImageSizes(RowFilter):
    layer: str = "score/image"
    """The layer of image scores."""

    @property
    def required_columns(self) -> Mapping[str, tuple[str, ...]]:
        """Width and height."""
        return {self.layer: ("width", "height")}

    def _sides(self, block: Block) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return the shorter and the longer side of each image, pixels."""
        width, height = (block.numbers(self.layer, name) for name in ("width", "height"))
        return np.minimum(width, height), np.maximum(width, height)


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSizeFilter(_ImageSizes):
    """Keeps images with a large enough shorter side (DataComp: 200 or more)."""

    min_side: int = 200
    """Smallest shorter side that is kept, pixels."""

    def keep_mask(self, block: Block) -> NDArray[np.bool_]:
        """Return which images are large enough."""
        shorter, _ = self._sides(block)
        keep: NDArray[np.bool_] = shorter >= self.min_side
        return keep


@dataclass(frozen=True, kw_only=True, slots=True)
class AspectRatioFilter(_ImageSizes):
    """Keeps images that aren't too elongated (DataComp: longer side at most thrice the shorter)."""

    max_aspect: float = 3.0
    """Largest ratio of longer to shorter side that is kept."""

    def keep_mask(self, block: Block) -> NDArray[np.bool_]:
        """Return which images have an acceptable aspect ratio."""
        # Exact, unlike the layer's aspect, which is fp32.
        shorter, longer = self._sides(block)
        keep: NDArray[np.bool_] = longer <= shorter * self.max_aspect
        return keep


@dataclass(frozen=True, kw_only=True, slots=True)
class _TextScores(RowFilter):
    captions: CaptionOf = "real"
    """Caption that is read."""
    layer: str = "score/text"
    """The layer of text scores."""

    @property
    def required_columns(self) -> Mapping[str, tuple[str, ...]]:
        """The text scores."""
        return {self.layer: caption_columns(self.captions)}

    def _fields(self, block: Block, *names: str) -> tuple[pa.Array, ...]:
        """Return fields of the caption's text scores."""
        scores = block.captions(self.layer, self.captions)
        return tuple(pc.struct_field(scores, name) for name in names)


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionLengthFilter(_TextScores):
    """Keeps captions with enough words and characters (DataComp: over two and over five)."""

    min_words: int = 3
    """Fewest words, separated by white space."""
    min_characters: int = 6
    """Fewest characters."""
    max_words: int = 0
    """Most words; 0 for no limit."""

    def keep_mask(self, block: Block) -> NDArray[np.bool_]:
        """Return which captions have an acceptable length."""
        num_words, num_characters = (
            field.fill_null(0).to_numpy(zero_copy_only=False)
            for field in self._fields(block, "words", "characters")
        )
        keep: NDArray[np.bool_] = (num_words >= self.min_words) & (
            num_characters >= self.min_characters
        )
        return keep & (num_words <= self.max_words) if self.max_words else keep


@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageFilter(_TextScores):
    """Keeps captions in one language (DataComp: English)."""

    language: str = "en"
    """ISO 639 code."""
    min_confidence: float = 0.0
    """Lowest probability of the language, 0..1."""

    def keep_mask(self, block: Block) -> NDArray[np.bool_]:
        """Return which captions are in the language."""
        language, confidence = self._fields(block, "language", "confidence")
        is_language = pc.equal(language, self.language)
        is_confident = pc.greater_equal(confidence, self.min_confidence)
        keep: NDArray[np.bool_] = (
            pc.and_(is_language, is_confident).fill_null(False).to_numpy(zero_copy_only=False)
        )
        return keep


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipScoreFilter(RowFilter):
    """Keeps pairs whose CLIP score reaches a threshold.

    DataComp's LAION-2B filter takes 0.28 by ViT-B/32 and English captions (baselines of
    mlfoundations/datacomp, ``laion2b``).
    """

    threshold: float
    """Lowest score that is kept, a cosine similarity."""
    captions: CaptionOf = "real"
    """Caption that is read."""
    layer: str = "score/clip"
    """The layer of CLIP scores."""

    @property
    def required_columns(self) -> Mapping[str, tuple[str, ...]]:
        """The CLIP scores."""
        return {self.layer: caption_columns(self.captions)}

    def keep_mask(self, block: Block) -> NDArray[np.bool_]:
        """Return which pairs reach the threshold."""
        # Both in the scores' own precision: 0.7 in fp32 is below 0.7.
        scores = block.caption_numbers(self.layer, self.captions).astype(np.float32)
        keep: NDArray[np.bool_] = scores >= np.float32(self.threshold)
        return keep


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreRangeFilter(RowFilter):
    """Keeps samples whose score lies in a range: of a head, a judge, or an imported table."""

    layer: str
    """The layer of scores, such as ``score/aesthetic``."""
    column: str = ""
    """Column of the layer; empty for the scores of ``captions``."""
    min_score: float = -NO_LIMIT
    """Lowest score that is kept."""
    max_score: float = NO_LIMIT
    """Highest score that is kept."""
    captions: CaptionOf = "real"
    """Caption whose score is read where no column is named."""

    def __post_init__(self) -> None:
        """Refuse a range without limits, or an empty one (ConfigError)."""
        has_limit = self.min_score > -NO_LIMIT or self.max_score < NO_LIMIT
        if not has_limit or self.min_score > self.max_score:
            raise ConfigError(
                f"min_score was {self.min_score} and max_score {self.max_score}",
                expected="at least one limit, and min_score at most max_score",
                action="set min_score, max_score or both",
            )

    @property
    def required_columns(self) -> Mapping[str, tuple[str, ...]]:
        """The scores."""
        return {self.layer: score_columns(self.column, self.captions)}

    def keep_mask(self, block: Block) -> NDArray[np.bool_]:
        """Return which scores lie in the range, limits included."""
        # All in fp32, as ClipScoreFilter compares.
        scores = block.scores(self.layer, self.column, self.captions).astype(np.float32)
        keep: NDArray[np.bool_] = (scores >= np.float32(self.min_score)) & (
            scores <= np.float32(self.max_score)
        )
        return keep


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipTopFractionFilter(FilterConfig):
    """Keeps the highest CLIP scores among the remaining rows (DataComp: top 30 % by ViT-L/14)."""

    fraction: float = 0.3
    """Fraction that is kept, above 0 and at most 1."""
    captions: CaptionOf = "real"
    """Caption that is read."""
    layer: str = "score/clip"
    """The layer of CLIP scores."""

    def __post_init__(self) -> None:
        """Validate the fraction (ConfigError)."""
        check_fraction(self.fraction)

    @property
    def required_columns(self) -> Mapping[str, tuple[str, ...]]:
        """The CLIP scores."""
        return {self.layer: caption_columns(self.captions)}

    def create_state(self, num_rows: int) -> FilterState:
        """Return a state that finds the threshold in two passes."""
        del num_rows
        return _TopFractionState(self)


class _TopFractionState(FilterState):
    num_passes = 2

    def __init__(self, config: ClipTopFractionFilter) -> None:
        self._config = config
        self._top = TopFractionThreshold(config.fraction)

    def observe(self, block: Block, remaining: NDArray[np.bool_]) -> None:
        self._top.observe(self._scores(block)[remaining])

    def finish_pass(self) -> None:
        self._top.finish_pass()

    def keep_mask(self, block: Block) -> NDArray[np.bool_]:
        keep: NDArray[np.bool_] = self._scores(block) >= self._top.threshold
        return keep

    def _scores(self, block: Block) -> NDArray[np.float32]:
        scores = block.caption_numbers(self._config.layer, self._config.captions)
        return scores.astype(np.float32)


@dataclass(frozen=True, kw_only=True, slots=True)
class ConceptBalanceFilter(FilterConfig):
    """Caps how often each concept is named: MetaCLIP's balancing.

    Xu et al. 2024, "Demystifying CLIP Data", algorithm 1: a caption is drawn once for each concept
    that it names, with probability ``max_count / count`` where the concept is named more often
    than ``max_count``, and is kept if any draw succeeds. Captions that name no concept are
    rejected. Frequent concepts so end near ``max_count``; rare ones are kept in full. The result
    depends on uids and the seed alone.
    """

    max_count: int = 20_000
    """Expected number of times that a concept is named, at most (MetaCLIP's value for 400 M)."""
    seed: int = 0
    """Seed of the draws."""
    captions: CaptionOf = "real"
    """Caption that is read."""
    layer: str = "score/concepts"
    """The layer of concepts that captions name."""

    def __post_init__(self) -> None:
        """Validate the count (ConfigError)."""
        if self.max_count < 1:
            raise ConfigError(
                f"max_count was {self.max_count}",
                expected="at least 1",
                action="set max_count to at least 1, for example 20000",
            )

    @property
    def required_columns(self) -> Mapping[str, tuple[str, ...]]:
        """The concepts that captions name."""
        return {self.layer: caption_columns(self.captions)}

    def create_state(self, num_rows: int) -> FilterState:
        """Return a state that counts the concepts in one pass."""
        del num_rows
        return _ConceptState(self)


class _ConceptState(FilterState):
    num_passes = 1

    def __init__(self, config: ConceptBalanceFilter) -> None:
        self._config = config
        self._counts: NDArray[np.int64] = np.zeros(0, np.int64)

    def observe(self, block: Block, remaining: NDArray[np.bool_]) -> None:
        concepts = self._concepts(block)
        numbers = _flatten(concepts)[remaining[list_parent_indices(concepts)]]
        counts: NDArray[np.int64] = np.bincount(numbers, minlength=len(self._counts))
        counts[: len(self._counts)] += self._counts
        self._counts = counts

    def finish_pass(self) -> None:
        pass

    def keep_mask(self, block: Block) -> NDArray[np.bool_]:
        concepts = self._concepts(block)
        numbers = _flatten(concepts)
        # A concept that only rejected rows name wasn't counted.
        counts = np.concatenate([self._counts, np.zeros(numbers.max(initial=0) + 1, np.int64)])
        missed = 1 - np.minimum(1, self._config.max_count / np.maximum(counts[numbers], 1))
        # One draw against the chance that any of the independent draws succeeds is the same law.
        with np.errstate(divide="ignore"):
            log_missed = np.bincount(
                list_parent_indices(concepts), weights=np.log(missed), minlength=block.num_rows
            )
        draws = np.array([_draw(uid, self._config.seed) for uid in block.read_uids()], np.float64)
        keep: NDArray[np.bool_] = draws < 1 - np.exp(log_missed)
        return keep

    def _concepts(self, block: Block) -> pa.Array:
        return block.captions(self._config.layer, self._config.captions)


def _flatten(concepts: pa.Array) -> NDArray[np.int32]:
    numbers: NDArray[np.int32] = concepts.flatten().to_numpy(zero_copy_only=False)
    return numbers


def _draw(uid: str, seed: int) -> float:
    """Return a uniform number in [0, 1); its salt keeps it independent of subsets by uid."""
    leading = hashlib.sha256(f"concepts:{seed}:{uid}".encode()).digest()[:8]
    return (int.from_bytes(leading, "big") >> 11) * 2.0**-53


def check_fraction(fraction: float) -> None:
    """Raise ConfigError unless ``fraction`` is above 0 and at most 1."""
    if not 0 < fraction <= 1:
        raise ConfigError(
            f"fraction was {fraction}",
            expected="above 0 and at most 1",
            action="set fraction to such a value, for example 0.3",
        )


def caption_columns(of: CaptionOf) -> tuple[str, ...]:
    """Return the columns that :meth:`Block.captions` reads."""
    return (REAL,) if of == "real" else (CAPTION_KINDS,)


def score_columns(column: str, of: CaptionOf) -> tuple[str, ...]:
    """Return the columns that :meth:`Block.scores` reads."""
    return (column,) if column else caption_columns(of)


def _numbers(column: pa.Array) -> NDArray[np.float64]:
    values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values.astype(np.float64)


_HALF_BITS = 16
_NUM_BINS = 1 << _HALF_BITS


class TopFractionThreshold:
    """Exact score threshold of the top fraction, in two passes and half a megabyte.

    Pass all scores to :meth:`observe` twice, then read ``threshold``. It is a radix selection: the
    first pass counts scores by the leading 16 bits of their order, the second counts those in the
    decisive bin by the trailing 16.

    The threshold is DataComp's: of N scores in descending order the one at index
    ``int(N * fraction)``, so that slightly more than the fraction reaches it, ties included. NaN
    isn't a score.
    """

    num_passes = 2

    def __init__(self, fraction: float) -> None:
        self.threshold = float("inf")
        """Lowest score that is kept, known after both passes; infinity if there are no scores."""
        self._fraction = fraction
        self._leading: int | None = None
        self._above = 0
        self._total = 0
        self._counts = np.zeros(_NUM_BINS, np.int64)

    def observe(self, scores: NDArray[np.float32]) -> None:
        """Count a batch of scores."""
        keys = _ordered(scores)
        if self._leading is None:
            part = keys >> _HALF_BITS
        else:
            part = keys[keys >> _HALF_BITS == self._leading] & (_NUM_BINS - 1)
        self._counts += np.bincount(part, minlength=_NUM_BINS)

    def finish_pass(self) -> None:
        """Start the next pass."""
        if self._leading is None:
            self._total = int(self._counts.sum())
            index = self._index
            self._leading, self._above = _bin_at(self._counts, index) if self._total else (0, 0)
            self._counts[:] = 0
        elif self._total:
            trailing, _ = _bin_at(self._counts, self._index - self._above)
            self.threshold = _score(self._leading << _HALF_BITS | trailing)

    @property
    def _index(self) -> int:
        return min(int(self._total * self._fraction), self._total - 1)


def _ordered(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Map float scores to integers of the same order."""
    real = scores[~np.isnan(scores)] + np.float32(0)  # makes -0.0 the 0.0 that it equals
    bits = real.view(np.uint32)
    is_negative = bits >> 31 == 1
    return np.where(is_negative, ~bits, bits | np.uint32(1 << 31)).astype(np.int64)


def _score(key: int) -> float:
    bits = key & 0x7FFF_FFFF if key >> 31 else ~key & 0xFFFF_FFFF
    return float(np.array([bits], np.uint32).view(np.float32)[0])


def _bin_at(counts: NDArray[np.int64], index: int) -> tuple[int, int]:
    """Return the bin that holds this index of the descending order, and the count above it."""
    reached = np.cumsum(counts[::-1])
    position = int(np.searchsorted(reached, index, side="right"))
    above = int(reached[position - 1]) if position else 0
    return _NUM_BINS - 1 - position, above

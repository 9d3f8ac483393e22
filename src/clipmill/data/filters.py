"""What a filter is, and what it is shown: a shard's columns at a time.

A filter's config names the columns that it needs and makes a judge. A judge that must know all
rows first asks for passes over those that no earlier filter refused.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from clipmill.config import Config
from clipmill.data.layers import REAL
from collections.abc import Mapping
import pyarrow.compute as pc
from clipmill.errors import ConfigError
import hashlib
from clipmill.data.layers import list_rows

CaptionOf = Literal["real", "chosen"]
"""Which caption of a sample a filter judges: the real one, or the one that was chosen for it."""

CAPTION_KINDS = "*"
"""Stands for the columns of the caption kinds among which was chosen, in ``needs``."""


@dataclass(frozen=True, slots=True)
class Block:
    """The rows of one shard."""

    start: int
    """Number of its first row among all rows of the dataset."""
    num_rows: int
    kinds: tuple[str, ...]
    """The caption kinds among which was chosen: the real ones first."""
    kind: NDArray[np.uint8]
    """For each row the place in ``kinds`` of its chosen caption."""
    place: NDArray[np.uint16]
    """For each row the place of its chosen caption among those of that kind."""
    columns: Mapping[str, Mapping[str, pa.Array]]
    """By the layer as the filter names it, then by the column."""
    read_uids: Callable[[], Sequence[str]]
    """Reads the uids of the rows."""

    @property
    def rows(self) -> slice:
        """Where its rows lie among all rows of the dataset."""
        return slice(self.start, self.start + self.num_rows)

    def column(self, layer: str, name: str) -> pa.Array:
        """A column, a value a row."""
        return self.columns[layer][name]

    def numbers(self, layer: str, name: str) -> NDArray[np.float64]:
        """A column of numbers; NaN where there is none."""
        return _numbers(self.column(layer, name))

    def captions(self, layer: str, of: CaptionOf) -> pa.Array:
        """A column by caption kind: the value of each row's real or chosen caption."""
        if of == "real" or not self.kind.any():
            return self.column(layer, REAL)
        parts = [self.column(layer, name) for name in self.kinds]
        index = np.arange(self.num_rows)
        lacks = np.zeros(self.num_rows, bool)
        before = self.num_rows
        for number, lists in enumerate(parts[1:], start=1):
            rows = np.flatnonzero(self.kind == number)
            offsets = lists.offsets.to_numpy() - lists.offsets[0].as_py()
            index[rows] = before + offsets[rows] + self.place[rows]
            lacks[rows] = offsets[rows] + self.place[rows] >= offsets[rows + 1]
            before += len(lists.flatten())
        kind = parts[0].type  # a table from elsewhere may mix float and double
        values = pa.concat_arrays([parts[0], *(lists.flatten().cast(kind) for lists in parts[1:])])
        return values.take(pa.array(index, mask=lacks))

    def caption_numbers(self, layer: str, of: CaptionOf) -> NDArray[np.float64]:
        """``captions`` as numbers; NaN where there is none."""
        return _numbers(self.captions(layer, of))


class Judge(ABC):
    """Says which rows are kept, after as many passes over the rows as it asks for."""

    num_passes: int = 0
    """Passes over all rows that are left, before it can judge."""

    def see(self, block: Block, alive: NDArray[np.bool_]) -> None:
        """Take notice of a block's rows that are left, in a pass."""
        raise NotImplementedError

    def end_pass(self) -> None:
        """A pass has ended."""
        raise NotImplementedError

    @abstractmethod
    def judge(self, block: Block) -> NDArray[np.bool_]:
        """Which of a block's rows are kept; those without a value that is needed aren't."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterConfig(Config, ABC):
    """The settings of one filter."""

    @property
    @abstractmethod
    def needs(self) -> Mapping[str, tuple[str, ...]]:
        """Columns by layer, named in full or by its beginning, such as ``score/clip``."""

    @abstractmethod
    def start(self, num_rows: int) -> Judge:
        """A judge of a dataset with so many rows."""


class RowJudge(Judge):
    """Judges each row by itself."""

    def __init__(self, keeps: Callable[[Block], NDArray[np.bool_]]) -> None:
        self._keeps = keeps

    def judge(self, block: Block) -> NDArray[np.bool_]:
        """Which rows are kept."""
        return self._keeps(block)


def caption_columns(of: CaptionOf) -> tuple[str, ...]:
    """The columns that ``Block.captions`` reads."""
    return (REAL,) if of == "real" else (CAPTION_KINDS,)


def _numbers(column: pa.Array) -> NDArray[np.float64]:
    values: NDArray[Any] = column.to_numpy(zero_copy_only=False)
    return values.astype(np.float64)



@dataclass(frozen=True, kw_only=True, slots=True)
class ImageSizeFilter(FilterConfig):
    """Keeps pictures with a shorter side that is long enough."""

    min_side: int = 200
    """Shortest side that is kept, pixels."""
    layer: str = "score/image"
    """The layer of image scores."""

    @property
    def needs(self) -> Mapping[str, tuple[str, ...]]:
        """Width and height."""
        return {self.layer: ("width", "height")}

    def start(self, num_rows: int) -> Judge:
        """Judges row by row."""
        del num_rows
        return RowJudge(self._keeps)

    def _keeps(self, block: Block) -> NDArray[np.bool_]:
        width, height = (block.numbers(self.layer, name) for name in ("width", "height"))
        keep: NDArray[np.bool_] = np.minimum(width, height) >= self.min_side
        return keep



@dataclass(frozen=True, kw_only=True, slots=True)
class AspectRatioFilter(FilterConfig):
    """Keeps pictures whose sides aren't too unlike."""

    max_aspect: float = 3.0
    """Largest longer side by shorter side that is kept."""
    layer: str = "score/image"
    """The layer of image scores."""

    @property
    def needs(self) -> Mapping[str, tuple[str, ...]]:
        """Width and height."""
        return {self.layer: ("width", "height")}

    def start(self, num_rows: int) -> Judge:
        """Judges row by row."""
        del num_rows
        return RowJudge(self._keeps)

    def _keeps(self, block: Block) -> NDArray[np.bool_]:
        # Exactly, which the layer's aspect in fp32 isn't.
        width, height = (block.numbers(self.layer, name) for name in ("width", "height"))
        keep: NDArray[np.bool_] = (
            np.maximum(width, height) <= np.minimum(width, height) * self.max_aspect
        )
        return keep



@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionLengthFilter(FilterConfig):
    """Keeps captions with enough words and characters."""

    min_words: int = 3
    """Fewest words, divided by white space."""
    min_characters: int = 6
    """Fewest characters."""
    max_words: int = 0
    """Most words; 0 for any number."""
    captions: CaptionOf = "real"
    """Which caption is judged."""
    layer: str = "score/text"
    """The layer of text scores."""

    @property
    def needs(self) -> Mapping[str, tuple[str, ...]]:
        """The text scores."""
        return {self.layer: caption_columns(self.captions)}

    def start(self, num_rows: int) -> Judge:
        """Judges row by row."""
        del num_rows
        return RowJudge(self._keeps)

    def _keeps(self, block: Block) -> NDArray[np.bool_]:
        measured = block.captions(self.layer, self.captions)
        words, characters = (
            pc.struct_field(measured, name).fill_null(0).to_numpy(zero_copy_only=False)
            for name in ("words", "characters")
        )
        keep: NDArray[np.bool_] = (words >= self.min_words) & (characters >= self.min_characters)
        return keep & (words <= self.max_words) if self.max_words else keep



@dataclass(frozen=True, kw_only=True, slots=True)
class LanguageFilter(FilterConfig):
    """Keeps captions in a language."""

    language: str = "en"
    """ISO 639 code."""
    min_confidence: float = 0.0
    """Least probability of the language, 0..1."""
    captions: CaptionOf = "real"
    """Which caption is judged."""
    layer: str = "score/text"
    """The layer of text scores."""

    @property
    def needs(self) -> Mapping[str, tuple[str, ...]]:
        """The text scores."""
        return {self.layer: caption_columns(self.captions)}

    def start(self, num_rows: int) -> Judge:
        """Judges row by row."""
        del num_rows
        return RowJudge(self._keeps)

    def _keeps(self, block: Block) -> NDArray[np.bool_]:
        measured = block.captions(self.layer, self.captions)
        is_language = pc.equal(pc.struct_field(measured, "language"), self.language)
        is_sure = pc.greater_equal(pc.struct_field(measured, "confidence"), self.min_confidence)
        keep: NDArray[np.bool_] = (
            pc.and_(is_language, is_sure).fill_null(False).to_numpy(zero_copy_only=False)
        )
        return keep



@dataclass(frozen=True, kw_only=True, slots=True)
class ClipScoreFilter(FilterConfig):
    """Keeps pairs whose score reaches a threshold."""

    threshold: float
    """Lowest score that is kept, a cosine similarity."""
    captions: CaptionOf = "real"
    """Which caption is judged."""
    layer: str = "score/clip"
    """The layer of CLIP scores."""

    @property
    def needs(self) -> Mapping[str, tuple[str, ...]]:
        """The CLIP scores."""
        return {self.layer: caption_columns(self.captions)}

    def start(self, num_rows: int) -> Judge:
        """Judges row by row."""
        del num_rows
        return RowJudge(self._keeps)

    def _keeps(self, block: Block) -> NDArray[np.bool_]:
        # Both in the scores' own precision: 0.7 in fp32 is below 0.7.
        scores = block.caption_numbers(self.layer, self.captions).astype(np.float32)
        keep: NDArray[np.bool_] = scores >= np.float32(self.threshold)
        return keep



@dataclass(frozen=True, kw_only=True, slots=True)
class ClipTopFractionFilter(FilterConfig):
    """Keeps the highest scores among what earlier filters left: put first, those of the pool."""

    fraction: float = 0.3
    """Part that is kept, above 0 and at most 1."""
    captions: CaptionOf = "real"
    """Which caption is judged."""
    layer: str = "score/clip"
    """The layer of CLIP scores."""

    def __post_init__(self) -> None:
        """Refuse a fraction out of range (ConfigError)."""
        check_fraction(self.fraction)

    @property
    def needs(self) -> Mapping[str, tuple[str, ...]]:
        """The CLIP scores."""
        return {self.layer: caption_columns(self.captions)}

    def start(self, num_rows: int) -> Judge:
        """Takes two passes to find the threshold."""
        del num_rows
        return _Judge(self)


class _Judge(Judge):
    num_passes = TopFraction.num_passes

    def __init__(self, config: ClipTopFractionFilter) -> None:
        self._config = config
        self._top = TopFraction(config.fraction)

    def see(self, block: Block, alive: NDArray[np.bool_]) -> None:
        self._top.see(self._scores(block)[alive])

    def end_pass(self) -> None:
        self._top.end_pass()

    def judge(self, block: Block) -> NDArray[np.bool_]:
        keep: NDArray[np.bool_] = self._scores(block) >= self._top.threshold
        return keep

    def _scores(self, block: Block) -> NDArray[np.float32]:
        found = block.caption_numbers(self._config.layer, self._config.captions)
        return found.astype(np.float32)


def check_fraction(fraction: float) -> None:
    """Raise ConfigError unless it's above 0 and at most 1."""
    if not 0 < fraction <= 1:
        raise ConfigError(
            f"fraction was {fraction}",
            expected="above 0 and at most 1",
            action="give fraction such a value",
        )


_HALF_BITS = 16
_NUM_BINS = 1 << _HALF_BITS


class TopFraction:
    """Give it all scores twice, in the same pieces or others, then ask for ``threshold``.

    The threshold is DataComp's: of N scores in descending order the one at place
    ``int(N * fraction)``, counted from 0, so that what is at least that high is a little more
    than the fraction, and all that tie with it are in. NaN counts as no score.
    """

    num_passes = 2

    def __init__(self, fraction: float) -> None:
        self.threshold = float("inf")
        """What a score needs to reach, once both passes have ended; without scores, infinity."""
        self._fraction = fraction
        self._leading: int | None = None
        self._above = 0
        self._total = 0
        self._counts = np.zeros(_NUM_BINS, np.int64)

    def see(self, scores: NDArray[np.float32]) -> None:
        """Count the scores of one piece."""
        keys = _ordered(scores)
        if self._leading is None:
            part = keys >> _HALF_BITS
        else:
            part = keys[keys >> _HALF_BITS == self._leading] & (_NUM_BINS - 1)
        self._counts += np.bincount(part, minlength=_NUM_BINS)

    def end_pass(self) -> None:
        """Go on to the next pass."""
        if self._leading is None:
            self._total = int(self._counts.sum())
            place = self._place
            self._leading, self._above = _bin_at(self._counts, place) if self._total else (0, 0)
            self._counts[:] = 0
        elif self._total:
            trailing, _ = _bin_at(self._counts, self._place - self._above)
            self.threshold = _score(self._leading << _HALF_BITS | trailing)

    @property
    def _place(self) -> int:
        return min(int(self._total * self._fraction), self._total - 1)


def _ordered(scores: NDArray[np.float32]) -> NDArray[np.int64]:
    """Integers that are ordered as the scores are (the sign bit flips what it must)."""
    real = scores[~np.isnan(scores)] + np.float32(0)  # makes -0.0 the 0.0 that it equals
    bits = real.view(np.uint32)
    is_negative = bits >> 31 == 1
    return np.where(is_negative, ~bits, bits | np.uint32(1 << 31)).astype(np.int64)


def _score(key: int) -> float:
    bits = key & 0x7FFF_FFFF if key >> 31 else ~key & 0xFFFF_FFFF
    return float(np.array([bits], np.uint32).view(np.float32)[0])


def _bin_at(counts: NDArray[np.int64], place: int) -> tuple[int, int]:
    """The bin that holds this place of the descending order, and how many lie in higher ones."""
    reached = np.cumsum(counts[::-1])
    position = int(np.searchsorted(reached, place, side="right"))
    above = int(reached[position - 1]) if position else 0
    return _NUM_BINS - 1 - position, above



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

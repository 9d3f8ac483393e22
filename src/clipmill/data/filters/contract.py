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
from clipmill.data.layer_rows import REAL

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

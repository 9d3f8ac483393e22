"""Selection: filters over a dataset's scores, composed into a select layer.

The layer says for each sample whether it is kept, which filter rejected it first, and which
caption was selected for it. Columns are read shard by shard; memory is four bytes per row, plus
the state of filters that depend on all rows.
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from typing import ClassVar, Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from clipmill.config import Config, canonical_json, digest_json
from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.duplicates import ExactDuplicateFilter, NearDuplicateFilter
from clipmill.data.filters import (
    CAPTION_KINDS,
    AspectRatioFilter,
    Block,
    CaptionLengthFilter,
    ClipScoreFilter,
    ClipTopFractionFilter,
    ConceptBalanceFilter,
    FilterConfig,
    FilterState,
    ImageSizeFilter,
    LanguageFilter,
    ScoreRangeFilter,
    TopFractionThreshold,
    check_fraction,
)
from clipmill.data.layers import (
    REAL,
    SELECT_COLUMNS,
    commit_layer,
    layer_schema,
    list_parent_indices,
    read_layer,
    resolve_layer,
    write_layer_shard,
)
from clipmill.data.semantic_duplicates import SemanticDuplicateFilter
from clipmill.errors import ConfigError
from clipmill.lineage import Parent
from clipmill.stage_records import ProgressCallback

# Files are small, and disks and stores far away, so waiting for several at once is what counts.
_NUM_THREADS = 8

CAPTION_SELECTION = "caption-choice"
"""Reject reason of the caption selection, as stored in select layers."""

FILTERS_DETAIL = "filters"
"""Entry of a select layer's lineage: its filters with their settings, as JSON."""

_MAX_FILTERS = 254

FILTERS: Mapping[str, type[FilterConfig]] = {
    "aspect-ratio": AspectRatioFilter,
    "caption-length": CaptionLengthFilter,
    "clip-score": ClipScoreFilter,
    "clip-top-fraction": ClipTopFractionFilter,
    "concept-balance": ConceptBalanceFilter,
    "exact-duplicate": ExactDuplicateFilter,
    "image-size": ImageSizeFilter,
    "language": LanguageFilter,
    "near-duplicate": NearDuplicateFilter,
    "score-range": ScoreRangeFilter,
    "semantic-duplicate": SemanticDuplicateFilter,
}


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionSelectionConfig(Config):
    """Selection of one caption per sample, over the whole pool, before any filter."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "rule": "strategy",
        "same_threshold": "threshold_synthetic_too",
    }

    strategy: Literal["real", "synthetic", "best", "mix"] = "real"
    """The real caption; the synthetic one with the best score; the best of all, of equal ones the
    real; or ``mix``: the real caption where its score is in the top fraction, else the best
    synthetic one (Nguyen et al. 2023, "Improving Multimodal Datasets with Image Captioning")."""
    layers: tuple[str, ...] = ()
    """Captions layers to select from; empty for all that the dataset has."""
    scores: str = "score/clip"
    """The layer of CLIP scores, of the real and of those captions."""
    fraction: float = 0.3
    """For ``mix``, the top fraction of real captions to keep."""
    threshold_synthetic_too: bool = False
    """For ``mix``, whether synthetic captions below the threshold of the real ones are rejected
    too, as in that paper's best variant."""

    def __post_init__(self) -> None:
        """Validate the fraction (ConfigError)."""
        check_fraction(self.fraction)

    @property
    def required_columns(self) -> Mapping[str, tuple[str, ...]]:
        """The scores; none for real captions."""
        return {} if self.strategy == "real" else {self.scores: (CAPTION_KINDS,)}

    def create_state(self, num_rows: int) -> FilterState:
        """Return a state whose ``keep_mask`` writes the selection into the block."""
        del num_rows
        return _CaptionSelector(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterStep(Config):
    """One filter with its settings."""

    filter: str
    """Its name among FILTERS."""
    settings: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Its settings; those left out have their defaults."""

    def __post_init__(self) -> None:
        """Refuse an unknown filter or setting (ConfigError), and fill in the defaults."""
        if self.filter not in FILTERS:
            raise ConfigError(
                f"there is no filter {self.filter!r}",
                expected=f"one of {', '.join(FILTERS)}",
                action="correct the name of the filter",
            )
        # With all defaults, so that equal steps have equal digests.
        object.__setattr__(self, "settings", self.config.to_json())

    @property
    def config(self) -> FilterConfig:
        """The filter's own config."""
        return FILTERS[self.filter].from_json(self.settings, self.filter)


def filter_steps(*filters: FilterConfig) -> tuple[FilterStep, ...]:
    """Return filter configs as the ``filters`` of a SelectConfig."""
    names = {kind: name for name, kind in FILTERS.items()}
    return tuple(
        FilterStep(filter=names[type(config)], settings=config.to_json()) for config in filters
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectConfig(Config):
    """A selection: one caption per sample, then filters one after the other."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "choice": "caption_selection",
    }

    name: str
    """Short name of the selection; the layer is ``select/<name>-<digest>``."""
    caption_selection: CaptionSelectionConfig = CaptionSelectionConfig()
    """Selection of one caption per sample."""
    filters: tuple[FilterStep, ...] = ()
    """Each filters the samples that the earlier ones kept."""

    def __post_init__(self) -> None:
        """Refuse more filters than a byte can number (ConfigError)."""
        if len(self.filters) > _MAX_FILTERS:
            raise ConfigError(
                f"filters had {len(self.filters)} entries",
                expected=f"at most {_MAX_FILTERS}",
                action="select twice, and name both layers in the view",
            )

    @property
    def reject_reasons(self) -> tuple[str, ...]:
        """Reject reason of each step, the caption selection first."""
        return reject_reasons(self.filters)


def reject_reasons(filters: Sequence[FilterStep]) -> tuple[str, ...]:
    """Return the reject reason of the caption selection, then of each filter."""
    names = [step.filter for step in filters]
    return (
        CAPTION_SELECTION,
        *(
            name if names.count(name) == 1 else f"{name}-{names[: index + 1].count(name)}"
            for index, name in enumerate(names)
        ),
    )


Step = CaptionSelectionConfig | FilterConfig
"""One step of a selection."""


@dataclass(frozen=True, slots=True)
class ResolvedSelection:
    """A selection over the layers of one dataset."""

    steps: tuple[Step, ...]
    """The caption selection, then the filters."""
    kinds: tuple[str, ...]
    """Caption kinds to select from, the real one first."""
    names: Mapping[str, str]
    """Full name of the layer for each name in the config."""
    layer: str
    """Name of the select layer that is written."""

    def columns(self, step: Step) -> dict[str, tuple[str, ...]]:
        """Return the columns that a step reads, by the layer's name in the config."""
        return {
            layer: tuple(
                column
                for name in columns
                for column in (self.kinds if name == CAPTION_KINDS else (name,))
            )
            for layer, columns in step.required_columns.items()
        }

    def parents(self, dataset: Dataset) -> tuple[Parent, ...]:
        """Return the layers that the selection reads, for lineage."""
        used = sorted({*self.names.values(), *self.kinds[1:]})
        return tuple(
            Parent(
                role=name.partition("/")[0],
                uri=dataset.layer_uri(name),
                digest=dataset.layers[name].digest,
            )
            for name in used
        )


def resolve_selection(
    config: SelectConfig, dataset: Dataset, layers: Sequence[str]
) -> ResolvedSelection:
    """Resolve layer names in a dataset; those in ``layers`` are preferred.

    Raises ConfigError if a required layer or column is missing, or a name matches several layers.
    """

    def resolve(name: str) -> str:
        preferred = [full for full in layers if full == name or full.startswith(f"{name}-")]
        return resolve_layer(dataset.layers, preferred[0] if len(preferred) == 1 else name)

    captions = sorted(name for name in dataset.layers if name.startswith("captions/"))
    if config.caption_selection.strategy == "real":
        captions = []
    elif config.caption_selection.layers:
        captions = [resolve(name) for name in config.caption_selection.layers]
    elif not captions:
        raise ConfigError(
            f"caption_selection.strategy was {config.caption_selection.strategy!r}, "
            f"and {dataset.uri} has no captions layer",
            expected="synthetic captions to select from",
            action="run `clipmill data recaption` first",
        )
    steps: tuple[Step, ...] = (config.caption_selection, *(step.config for step in config.filters))
    names = {name: resolve(name) for step in steps for name in step.required_columns}
    digests = {name: dataset.layers[full].digest for name, full in names.items()}
    key = [config.to_json(), digests, [dataset.layers[name].digest for name in captions]]
    selection = ResolvedSelection(
        steps=steps,
        kinds=(REAL, *captions),
        names=names,
        layer=f"select/{config.name}-{digest_json(key)[:8]}",
    )
    for step in steps:
        for name, columns in selection.columns(step).items():
            _check_columns(dataset, names[name], columns)
    return selection


def _check_columns(dataset: Dataset, layer: str, columns: Sequence[str]) -> None:
    known = layer_schema(dataset, layer, cache_folder()).names
    for column in columns:
        if column not in known:
            raise ConfigError(
                f"layer {layer} has no column {column}",
                expected=f"one of its columns: {', '.join(known)}",
                action="score the dataset again to include these captions"
                if column.startswith("captions/")
                else "name another layer, or compute one that has it",
            )


def select(
    config: SelectConfig, dataset: str, *, layers: Sequence[str] = (), report: ProgressCallback
) -> str:
    """Filter the dataset at that URI into a select layer, and return the layer's name.

    Where a filter names a layer by its beginning, ``layers`` are preferred. Raises ConfigError if
    a required layer or column is missing.
    """
    opened = Dataset.open(dataset)
    selection = resolve_selection(config, opened, layers)
    if selection.layer in opened.layers:
        return selection.layer
    total = opened.num_samples
    report(0, total, "selecting")
    state = _SelectionState(opened)
    _run(selection, opened, state)

    def write(index: int) -> None:
        table = state.table(index, config.reject_reasons, selection.kinds)
        write_layer_shard(opened, selection.layer, index, table)

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for index, _ in enumerate(pool.map(write, range(len(opened.shards)))):
            report(min(state.starts[index + 1], total - 1), total, "written")
    counts = np.bincount(state.rejected, minlength=len(config.reject_reasons) + 1)
    num_rejected = dict(zip(config.reject_reasons, counts[1:].tolist(), strict=True))
    detail = {"kept": str(counts[0]), "of": str(total)} | {
        f"refused by {reason}": str(count) for reason, count in num_rejected.items() if count
    }
    if config.filters:
        detail[FILTERS_DETAIL] = canonical_json([step.to_json() for step in config.filters])
    commit_layer(opened, selection.layer, parents=selection.parents(opened), detail=detail)
    report(total, total, f"kept {counts[0]}")
    return selection.layer


class _SelectionState:
    """Per row, the step that rejected it and its selected caption."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.starts = np.cumsum([0, *(s.num_samples for s in dataset.shards)]).tolist()
        num_rows = self.starts[-1]
        self.rejected = np.zeros(num_rows, np.uint8)
        """0 for a kept row, else the index of the rejecting step plus 1."""
        self.caption_kind = np.zeros(num_rows, np.uint8)
        self.caption_index = np.zeros(num_rows, np.uint16)

    def rows(self, index: int) -> slice:
        """Return the range of a shard's rows."""
        return slice(self.starts[index], self.starts[index + 1])

    def table(self, index: int, reasons: Sequence[str], kinds: Sequence[str]) -> pa.Table:
        """Return the select layer's rows of a shard."""
        rows = self.rows(index)
        rejected = self.rejected[rows]
        columns = [
            pa.array(rejected == 0),
            pa.array([None, *reasons], pa.string()).take(pa.array(rejected)),
            pa.array(kinds, pa.string()).take(pa.array(self.caption_kind[rows])),
            pa.array(self.caption_index[rows].astype(np.int32)),
        ]
        uids = pa.array(self._dataset.uids(index), pa.string())
        return pa.table([uids, *columns], names=["uid", *SELECT_COLUMNS])


def _run(selection: ResolvedSelection, dataset: Dataset, state: _SelectionState) -> None:
    """Apply each step to the rows that earlier ones kept, in as few readings as possible."""
    filters = [step.create_state(len(state.rejected)) for step in selection.steps]
    num_passes_done = [0] * len(filters)

    def needs_pass(number: int) -> bool:
        return num_passes_done[number] < filters[number].num_passes

    first = 0
    while first < len(filters):
        # Apply filters up to the first that needs a pass over all rows; that one observes them.
        last = next(filter(needs_pass, range(first, len(filters))), len(filters))
        for index, block in enumerate(_blocks(selection, dataset, state, range(first, last + 1))):
            rejected = state.rejected[state.rows(index)]
            for number in range(first, last):
                rejected[(rejected == 0) & ~filters[number].keep_mask(block)] = number + 1
            if last < len(filters):
                filters[last].observe(block, rejected == 0)
        if last < len(filters):
            filters[last].finish_pass()
            num_passes_done[last] += 1
        first = last


def _blocks(
    selection: ResolvedSelection, dataset: Dataset, state: _SelectionState, steps: range
) -> Iterator[Block]:
    """Yield each shard with the columns that these steps require, read a few shards ahead."""
    required: dict[str, set[str]] = {}
    for step in selection.steps[steps.start : steps.stop]:
        for layer, columns in selection.columns(step).items():
            required.setdefault(layer, set()).update(columns)
    pending: deque[Future[Block]] = deque()
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for index in range(len(dataset.shards)):
            pending.append(pool.submit(_block, selection, dataset, state, required, index))
            if len(pending) == 2 * _NUM_THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _block(
    selection: ResolvedSelection,
    dataset: Dataset,
    state: _SelectionState,
    required: Mapping[str, set[str]],
    index: int,
) -> Block:
    rows = state.rows(index)
    columns = {}
    for layer, names in required.items():
        table = read_layer(
            dataset, selection.names[layer], index, cache_folder(), columns=sorted(names)
        )
        columns[layer] = {name: table[name].combine_chunks() for name in names}
    return Block(
        start=rows.start,
        num_rows=rows.stop - rows.start,
        kinds=selection.kinds,
        caption_kind=state.caption_kind[rows],
        caption_index=state.caption_index[rows],
        columns=columns,
        read_uids=partial(dataset.uids, index),
    )


class _CaptionSelector(FilterState):
    def __init__(self, config: CaptionSelectionConfig) -> None:
        self._config = config
        self._top = TopFractionThreshold(config.fraction)
        self.num_passes = self._top.num_passes if config.strategy == "mix" else 0

    def observe(self, block: Block, remaining: NDArray[np.bool_]) -> None:
        self._top.observe(self._real_scores(block)[remaining])

    def finish_pass(self) -> None:
        self._top.finish_pass()

    def keep_mask(self, block: Block) -> NDArray[np.bool_]:
        if self._config.strategy == "real":
            return np.ones(block.num_rows, bool)
        real = self._real_scores(block)
        score = np.full(block.num_rows, -np.inf, np.float32)
        for number, name in enumerate(block.kinds[1:], start=1):
            best, index = _max_per_list(block.column(self._config.scores, name))
            is_better = best > score
            score[is_better] = best[is_better]
            block.caption_kind[is_better] = number
            block.caption_index[is_better] = index[is_better]
        is_real = self._keeps_real_caption(real, score) | (block.caption_kind == 0)
        block.caption_kind[is_real] = 0
        block.caption_index[is_real] = 0
        if self._config.strategy == "mix" and self._config.threshold_synthetic_too:
            keep: NDArray[np.bool_] = np.where(is_real, real, score) >= self._top.threshold
            return keep
        return np.ones(block.num_rows, bool)

    def _keeps_real_caption(
        self, real: NDArray[np.float32], synthetic: NDArray[np.float32]
    ) -> NDArray[np.bool_]:
        if self._config.strategy == "synthetic":
            return np.zeros(len(real), bool)
        keeps: NDArray[np.bool_] = real >= (
            self._top.threshold if self._config.strategy == "mix" else synthetic
        )
        return keeps

    def _real_scores(self, block: Block) -> NDArray[np.float32]:
        return block.numbers(self._config.scores, REAL).astype(np.float32)


def _max_per_list(lists: pa.Array) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the highest value of each list and its first index; -inf for empty lists."""
    values = lists.flatten().to_numpy(zero_copy_only=False).astype(np.float32)
    values = np.nan_to_num(values, nan=-np.inf)
    rows = list_parent_indices(lists)
    order = np.lexsort((-values, rows))
    is_first = np.ones(len(order), bool)
    is_first[1:] = rows[order][1:] != rows[order][:-1]
    best = order[is_first]
    score = np.full(len(lists), -np.inf, np.float32)
    index = np.zeros(len(lists), np.int64)
    score[rows[best]] = values[best]
    index[rows[best]] = best - np.searchsorted(rows, rows[best])
    return score, index

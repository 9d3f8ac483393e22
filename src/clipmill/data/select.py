"""Selecting: filters over a dataset's scores, composed into a layer that views can follow.

The layer says of each sample whether it is kept, which filter refused it first, and which caption
was chosen for it. Columns are read shard by shard; what stays in memory is four bytes a row, and
what a filter that must know all rows keeps (see each).
"""

from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
import numpy as np
import pyarrow as pa
from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.filters import Block
from clipmill.data.layers import SELECT_COLUMNS
from clipmill.data.layers import commit_layer, read_layer, write_layer_shard
from clipmill.stage_records import Report
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from clipmill.config import Config
from clipmill.data.filters import CAPTION_KINDS, FilterConfig
from clipmill.data.layers import find_layer
from clipmill.data.layers import REAL
from clipmill.data.layers import layer_schema
from clipmill.config import digest_json
from clipmill.errors import ConfigError
from clipmill.lineage import Parent
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from numpy.typing import NDArray
from clipmill.data.filters import check_fraction
from clipmill.data.filters import CAPTION_KINDS, Block, Judge
from clipmill.data.layers import REAL, list_rows
from clipmill.data.filters import TopFraction
from clipmill.data.filters import AspectRatioFilter
from clipmill.data.filters import CaptionLengthFilter
from clipmill.data.filters import ClipScoreFilter
from clipmill.data.filters import ClipTopFractionFilter
from clipmill.data.filters import ConceptBalanceFilter
from clipmill.data.filters import FilterConfig
from clipmill.data.duplicates import ExactDuplicateFilter, NearDuplicateFilter
from clipmill.data.filters import ImageSizeFilter
from clipmill.data.filters import LanguageFilter

# Files are small, and disks and stores far away, so waiting for several at once is what counts.
_NUM_THREADS = 8


def select(
    config: SelectConfig, dataset: str, *, layers: Sequence[str] = (), report: Report
) -> str:
    """Judge every sample of the dataset at that URI; the name of the layer.

    ``layers`` are looked in first where a filter names a layer by its beginning. Raises
    ConfigError if a layer or column that is needed isn't there.
    """
    opened = Dataset.open(dataset)
    rule = resolve_rule(config, opened, layers)
    if rule.layer in opened.layers:
        return rule.layer
    total = opened.num_samples
    report(0, total, "selecting")
    state = _State(opened)
    _run(rule, opened, state)

    def write(index: int) -> None:
        table = state.table(index, config.labels, rule.kinds)
        write_layer_shard(opened, rule.layer, index, table)

    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for index, _ in enumerate(pool.map(write, range(len(opened.shards)))):
            report(min(state.starts[index + 1], total - 1), total, "written")
    counts = np.bincount(state.refused, minlength=len(config.labels) + 1)
    refused = dict(zip(config.labels, counts[1:].tolist(), strict=True))
    detail = {"kept": str(counts[0]), "of": str(total)} | {
        f"refused by {label}": str(count) for label, count in refused.items() if count
    }
    commit_layer(opened, rule.layer, parents=rule.parents(opened), detail=detail)
    report(total, total, f"kept {counts[0]}")
    return rule.layer


class _State:
    """What is known of every row: refused by which step, and the chosen caption."""

    def __init__(self, dataset: Dataset) -> None:
        self._dataset = dataset
        self.starts = np.cumsum([0, *(s.num_samples for s in dataset.shards)]).tolist()
        num_rows = self.starts[-1]
        self.refused = np.zeros(num_rows, np.uint8)
        """0 where the row is kept, else the step's place plus 1."""
        self.kind = np.zeros(num_rows, np.uint8)
        self.place = np.zeros(num_rows, np.uint16)

    def rows(self, index: int) -> slice:
        """Where the rows of a shard lie."""
        return slice(self.starts[index], self.starts[index + 1])

    def table(self, index: int, labels: Sequence[str], kinds: Sequence[str]) -> pa.Table:
        """The select layer's rows of a shard."""
        rows = self.rows(index)
        refused = self.refused[rows]
        columns = [
            pa.array(refused == 0),
            pa.array([None, *labels], pa.string()).take(pa.array(refused)),
            pa.array(kinds, pa.string()).take(pa.array(self.kind[rows])),
            pa.array(self.place[rows].astype(np.int32)),
        ]
        uids = pa.array(self._dataset.uids(index), pa.string())
        return pa.table([uids, *columns], names=["uid", *SELECT_COLUMNS])


def _run(rule: Rule, dataset: Dataset, state: _State) -> None:
    """Let each step judge what the earlier ones left, in as few readings as their passes allow."""
    judges = [step.start(len(state.refused)) for step in rule.steps]
    to_pass = [judge.num_passes for judge in judges]
    first = 0
    while first < len(judges):
        # Up to the first that must see all rows before it can judge, which sees them now.
        last = next((i for i in range(first, len(judges)) if to_pass[i]), len(judges))
        for index, block in enumerate(_blocks(rule, dataset, state, range(first, last + 1))):
            refused = state.refused[state.rows(index)]
            for number in range(first, last):
                refused[(refused == 0) & ~judges[number].judge(block)] = number + 1
            if last < len(judges):
                judges[last].see(block, refused == 0)
        if last < len(judges):
            judges[last].end_pass()
            to_pass[last] -= 1
        first = last


def _blocks(rule: Rule, dataset: Dataset, state: _State, steps: range) -> Iterator[Block]:
    """Every shard with the columns that these steps need, read a few shards ahead."""
    needed: dict[str, set[str]] = {}
    for step in rule.steps[steps.start : steps.stop]:
        for wanted, columns in rule.columns(step).items():
            needed.setdefault(wanted, set()).update(columns)
    pending: deque[Future[Block]] = deque()
    with ThreadPoolExecutor(_NUM_THREADS) as pool:
        for index in range(len(dataset.shards)):
            pending.append(pool.submit(_block, rule, dataset, state, needed, index))
            if len(pending) == 2 * _NUM_THREADS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _block(
    rule: Rule, dataset: Dataset, state: _State, needed: Mapping[str, set[str]], index: int
) -> Block:
    rows = state.rows(index)
    columns = {}
    for wanted, names in needed.items():
        table = read_layer(
            dataset, rule.names[wanted], index, cache_folder(), columns=sorted(names)
        )
        columns[wanted] = {name: table[name].combine_chunks() for name in names}
    return Block(
        start=rows.start,
        num_rows=rows.stop - rows.start,
        kinds=rule.kinds,
        kind=state.kind[rows],
        place=state.place[rows],
        columns=columns,
        read_uids=partial(dataset.uids, index),
    )


CHOICE = "caption-choice"
"""What the choice of captions is called where it refuses a sample."""
_MOST_FILTERS = 254

Step = ChoiceConfig | FilterConfig
"""What a rule does one after the other."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FilterStep(Config):
    """One filter with its settings."""

    filter: str
    """Its name among FILTERS."""
    settings: dict[str, bool | int | float | str] = field(default_factory=dict)
    """Those of its settings that aren't at their default."""

    def __post_init__(self) -> None:
        """Refuse an unknown filter or setting (ConfigError), and spell the settings out."""
        if self.filter not in FILTERS:
            raise ConfigError(
                f"there is no filter {self.filter!r}",
                expected=f"one of {', '.join(FILTERS)}",
                action="correct its name",
            )
        # Spelled out, so that equal steps have equal digests.
        object.__setattr__(self, "settings", self.config.to_json())

    @property
    def config(self) -> FilterConfig:
        """The filter's own config."""
        return FILTERS[self.filter].from_json(self.settings, self.filter)


def steps(*filters: FilterConfig) -> tuple[FilterStep, ...]:
    """The filters as a rule's steps."""
    names = {kind: name for name, kind in FILTERS.items()}
    return tuple(
        FilterStep(filter=names[type(config)], settings=config.to_json()) for config in filters
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class SelectConfig(Config):
    """A rule: a choice of captions, then filters one after the other."""

    name: str
    """Short name of the rule; the layer is ``select/<name>-<digest>``."""
    choice: ChoiceConfig = ChoiceConfig()
    """Which caption of each sample is meant."""
    filters: tuple[FilterStep, ...] = ()
    """Each sees what the earlier ones left."""

    def __post_init__(self) -> None:
        """Refuse more filters than a byte can number (ConfigError)."""
        if len(self.filters) > _MOST_FILTERS:
            raise ConfigError(
                f"filters had {len(self.filters)} entries",
                expected=f"at most {_MOST_FILTERS}",
                action="select twice, and name both layers in the view",
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """What each step, the choice first, is called where it refuses a sample."""
        names = [step.filter for step in self.filters]
        return (
            CHOICE,
            *(
                name if names.count(name) == 1 else f"{name}-{names[: place + 1].count(name)}"
                for place, name in enumerate(names)
            ),
        )


@dataclass(frozen=True, slots=True)
class Rule:
    """A rule whose layers were found."""

    steps: tuple[Step, ...]
    """The choice of captions, then the filters."""
    kinds: tuple[str, ...]
    """The caption kinds among which is chosen, the real one first."""
    names: Mapping[str, str]
    """The layer's full name for each name in the config."""
    layer: str
    """The name of the layer that it makes."""

    def columns(self, step: Step) -> dict[str, tuple[str, ...]]:
        """What a step reads, by the layer as the config names it."""
        return {
            layer: tuple(
                column
                for wanted in columns
                for column in (self.kinds if wanted == CAPTION_KINDS else (wanted,))
            )
            for layer, columns in step.needs.items()
        }

    def parents(self, dataset: Dataset) -> tuple[Parent, ...]:
        """The layers that the rule reads."""
        used = sorted({*self.names.values(), *self.kinds[1:]})
        return tuple(
            Parent(
                role=name.partition("/")[0],
                uri=dataset.layer_uri(name),
                digest=dataset.layers[name].digest,
            )
            for name in used
        )


def resolve_rule(config: SelectConfig, dataset: Dataset, layers: Sequence[str]) -> Rule:
    """The rule over this dataset's layers; those in ``layers`` are looked in first.

    Raises ConfigError if a layer or column that is needed isn't there, or a name fits several.
    """

    def find(wanted: str) -> str:
        given = [name for name in layers if name == wanted or name.startswith(f"{wanted}-")]
        return find_layer(dataset.layers, given[0] if len(given) == 1 else wanted)

    captions = sorted(name for name in dataset.layers if name.startswith("captions/"))
    if config.choice.rule == "real":
        captions = []
    elif config.choice.layers:
        captions = [find(wanted) for wanted in config.choice.layers]
    elif not captions:
        raise ConfigError(
            f"choice.rule was {config.choice.rule!r}, and {dataset.uri} has no captions layer",
            expected="synthetic captions to choose from",
            action="recaption the dataset first",
        )
    steps: tuple[Step, ...] = (config.choice, *(step.config for step in config.filters))
    names = {wanted: find(wanted) for step in steps for wanted in step.needs}
    digests = {wanted: dataset.layers[name].digest for wanted, name in names.items()}
    key = [config.to_json(), digests, [dataset.layers[name].digest for name in captions]]
    rule = Rule(
        steps=steps,
        kinds=(REAL, *captions),
        names=names,
        layer=f"select/{config.name}-{digest_json(key)[:8]}",
    )
    for step in steps:
        for wanted, columns in rule.columns(step).items():
            _check_columns(dataset, names[wanted], columns)
    return rule


def _check_columns(dataset: Dataset, layer: str, columns: Sequence[str]) -> None:
    known = layer_schema(dataset, layer, cache_folder()).names
    for column in columns:
        if column not in known:
            raise ConfigError(
                f"layer {layer} has no column {column}",
                expected=f"one of its columns: {', '.join(known)}",
                action="score the dataset again, now that it has these captions"
                if column.startswith("captions/")
                else "name another layer, or compute one that has it",
            )



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
}

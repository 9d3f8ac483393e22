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
from clipmill.data.filters.contract import Block
from clipmill.data.layer_rows import SELECT_COLUMNS
from clipmill.data.layers import commit_layer, read_layer, write_layer_shard
from clipmill.data.select_rule import Rule, SelectConfig, resolve_rule
from clipmill.stage_records import Report

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

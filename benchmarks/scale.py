"""Planning, working through and finishing 10^5, 10^6, 10^7 entries: time, and memory that stays.

Entries only: no image is behind them. Each stage runs in a process of its own, whose peak memory is
reported. Then the same rates, with the measured cost of sharding real JPEGs, give the plan of a
dataset of 1.28 x 10^9 pairs (``scale_plan.py``). Run::

    python benchmarks/scale.py --entries 100000 1000000 10000000

It prints Markdown, which is what docs/scale.md holds.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from parts.sharding import write_source
from scale_plan import ScaleRates, scale_plan

from clipmill.data.shards.finalize import FINGERPRINT, find_duplicates
from clipmill.data.shards.plan import ShardConfig, plan_shards
from clipmill.data.shards.write import write_shards
from clipmill.data.sources.files import sorted_records
from scenes import hardware

_PER_SHARD = 10_000


def main() -> None:
    """Run every stage at every size, then print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--entries", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--pairs", type=int, default=1_280_000_000, help="size to plan for")
    parser.add_argument("--bytes-per-pair", type=int, default=50_000, help="assumed")
    parser.add_argument("--cores", type=int, default=256, help="workers' cores, assumed")
    parser.add_argument("--stage", choices=sorted(STAGES), help=argparse.SUPPRESS)
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.stage:
        seconds = STAGES[arguments.stage](Path(arguments.scratch), arguments.entries[0])
        rss_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        print(json.dumps([seconds, rss_kb / 1024]))
        return
    print(f"Measured on: {hardware()}\n")
    print("| stage | entries | seconds | entries/s | peak memory, MB |\n|---|---|---|---|---|")
    rate: dict[str, float] = {}
    for count in arguments.entries:
        with tempfile.TemporaryDirectory() as scratch:
            for stage in STAGES:
                elapsed, peak = run_apart(stage, count, scratch)
                rate[stage] = elapsed / count
                print(
                    f"| {stage} | {count:,} | {elapsed:.1f} | {count / elapsed:,.0f} | {peak:.0f} |"
                )
    rates = ScaleRates(
        plan_seconds=rate["plan a table"],
        shard_cpu_seconds=measure_sharding(),
        finish_seconds=rate["find doubles"],
    )
    show_plan(rates, arguments)


def run_apart(stage: str, count: int, scratch: str) -> tuple[float, float]:
    """Seconds and peak memory (MB) of a stage in a fresh process."""
    command = [sys.executable, __file__, "--stage", stage, "--entries", str(count)]
    done = subprocess.run(
        [*command, "--scratch", scratch], check=True, stdout=subprocess.PIPE, text=True
    )
    seconds, peak = json.loads(done.stdout.splitlines()[-1])
    return seconds, peak


def plan_table(scratch: Path, count: int) -> float:
    """Plan a CSV table of so many rows, which is written before."""
    table = scratch / "pairs.csv"
    with table.open("w") as file:
        file.write("path,caption\n")
        for i in range(count):
            file.write(f"images/{i % 1000:03d}/{i:09d}.jpg,a picture of thing number {i}\n")
    config = ShardConfig(samples_per_shard=_PER_SHARD)
    start = time.perf_counter()
    plan_shards(config, str(table), str(scratch / "store"))
    return time.perf_counter() - start


def work_through(scratch: Path, count: int) -> float:
    """Make shards of the planned table: every entry is read, none has an image."""
    plan = plan_shards(
        ShardConfig(samples_per_shard=_PER_SHARD),
        str(scratch / "pairs.csv"),
        str(scratch / "store"),
    )
    assert plan.num_items == count
    start = time.perf_counter()
    write_shards(plan, 0, plan.num_shards)
    return time.perf_counter() - start


def sort_names(scratch: Path, count: int) -> float:  # noqa: ARG001
    """Bring the names of a folder's files in order, as its listing needs."""
    numbers = np.random.default_rng(0)
    names = ((b"%012d.jpg" % n, b"") for n in _draws(numbers, count))
    start = time.perf_counter()
    assert sum(1 for _ in sorted_records(names)) == count
    return time.perf_counter() - start


def find_doubles(scratch: Path, count: int) -> float:  # noqa: ARG001
    """Compare fingerprints of which one in a hundred is another's."""
    generator = np.random.default_rng(0)

    def shards() -> Iterator[NDArray[np.void]]:
        for first in range(0, count, _PER_SHARD):
            found = np.empty(min(_PER_SHARD, count - first), FINGERPRINT)
            found["id"] = generator.integers(0, 1 << 63, (len(found), 2))
            found["image"] = generator.integers(0, 1 << 63, (len(found), 2))
            found["image"][::100] = found["image"][0]
            yield found

    start = time.perf_counter()
    doubles = find_duplicates(shards(), count)
    assert len(doubles.positions) > count // 200
    return time.perf_counter() - start


def measure_sharding(count: int = 1000) -> float:
    """CPU seconds a pair of making shards from 512 x 384 JPEGs, all processes and threads."""
    with tempfile.TemporaryDirectory() as scratch:
        write_source(Path(scratch), {"pairs": count})
        source = Path(scratch) / "source"
        config = ShardConfig(fingerprint="metadata")
        plan = plan_shards(config, str(source), str(Path(scratch) / "store"))
        start = time.process_time()
        write_shards(plan, 0, plan.num_shards)
        return (time.process_time() - start) / count


def show_plan(rates: ScaleRates, arguments: argparse.Namespace) -> None:
    """Print the plan of the large dataset, and what it was reckoned from."""
    plan = scale_plan(
        rates,
        num_pairs=arguments.pairs,
        bytes_per_pair=arguments.bytes_per_pair,
        samples_per_shard=_PER_SHARD,
        num_cores=arguments.cores,
    )
    print(f"\nPlan for {arguments.pairs:,} pairs of {arguments.bytes_per_pair:,} bytes, ", end="")
    print(f"{_PER_SHARD:,} a shard, {arguments.cores} cores:\n\n| what | how much |\n|---|---|")
    for name, value in {**rates.to_json(), **asdict(plan)}.items():
        shown = f"{value:,}" if isinstance(value, int) else f"{value:.3g}"
        print(f"| {name.replace('_', ' ')} | {shown} |")


def _draws(generator: np.random.Generator, count: int) -> Iterator[int]:
    for first in range(0, count, 100_000):
        yield from generator.integers(0, 10**12, min(100_000, count - first)).tolist()


STAGES: dict[str, Callable[[Path, int], float]] = {
    "plan a table": plan_table,
    "work through it": work_through,
    "sort a folder's names": sort_names,
    "find doubles": find_doubles,
}


if __name__ == "__main__":
    main()

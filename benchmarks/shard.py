"""Sharding local JPEGs against img2dataset and webdataset's ShardWriter, on the same files.

Ours hashes each file, decodes each image, quarantines and finds doubles besides; img2dataset is
told to leave the bytes as they are, and ShardWriter only copies. Wall time is on all cores, as each
tool uses them; CPU time (of all processes and threads) is what a core is charged, and what load
from elsewhere disturbs least. Run::

    python benchmarks/shard.py --pairs 2000 --peers PYTHON

where PYTHON is an interpreter that has img2dataset and webdataset, or one of them; without it only
ours runs.
"""

import argparse
import json
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.write import write_dataset
from scenes import hardware

Seconds = tuple[float, float]
"""Wall time and CPU time."""

_MEASURE = """
import json, resource, sys, time
def cpu():
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(u.ru_utime + u.ru_stime for u in map(resource.getrusage, kinds))
def measure(run):
    wall, used = time.perf_counter(), cpu()
    run()
    print("\\n" + json.dumps([time.perf_counter() - wall, cpu() - used]))
"""
SHARD_WRITER = f"""{_MEASURE}
from pathlib import Path
import webdataset
source, out = map(Path, sys.argv[1:])
def run():
    out.mkdir()
    with webdataset.ShardWriter(f"{{out}}/%05d.tar", maxcount=1000, verbose=0) as writer:
        for path in sorted(source.glob("*.jpg")):
            text = path.with_suffix(".txt").read_text()
            record = {{"origin": path.name}}
            writer.write(
                {{"__key__": path.stem, "jpg": path.read_bytes(), "txt": text, "json": record}}
            )
measure(run)
"""
IMG2DATASET = f"""{_MEASURE}
import csv, os
from pathlib import Path
from img2dataset import download
if __name__ == "__main__":
    source, out = map(Path, sys.argv[1:])
    table = out.with_suffix(".csv")
    with table.open("w") as file:
        writer = csv.writer(file)
        writer.writerow(["url", "caption"])
        for path in sorted(source.glob("*.jpg")):
            writer.writerow([path.as_uri(), path.with_suffix(".txt").read_text()])
    measure(lambda: download(
        url_list=str(table), input_format="csv", url_col="url", caption_col="caption",
        output_format="webdataset", output_folder=str(out), number_sample_per_shard=1000,
        processes_count=len(os.sched_getaffinity(0)), thread_count=4,
        resize_mode="no", disable_all_reencoding=True, enable_wandb=False,
    ))
"""


PEERS = {
    "webdataset ShardWriter": ("webdataset", SHARD_WRITER),
    "img2dataset": ("img2dataset", IMG2DATASET),
}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--pairs", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3, help="the best of so many counts")
    parser.add_argument("--peers", help="a Python interpreter with img2dataset, webdataset")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        source = write_pairs(scratch / "source", arguments.pairs)
        tools: dict[str, Callable[[Path], Seconds]] = {
            "clipmill": lambda out: ours(source, out, ShardConfig()),
            "clipmill, fingerprint=metadata": lambda out: ours(
                source, out, ShardConfig(fingerprint="metadata")
            ),
        }
        for tool, (module, program) in PEERS.items():
            if arguments.peers and has(arguments.peers, module):
                tools[tool] = partial(peer, arguments.peers, program, source)
        best: dict[str, Seconds] = {}
        for number in range(arguments.rounds):
            for tool, run in tools.items():
                found = run(scratch / f"{tool.replace(' ', '-')}-{number}")
                best[tool] = (
                    min(best.get(tool, found)[0], found[0]),
                    min(best.get(tool, found)[1], found[1]),
                )
    show(best, arguments.pairs)


def show(best: dict[str, Seconds], num_pairs: int) -> None:
    """A row a tool: rates, and how many times ours each takes."""
    table = Table(title=f"{num_pairs} JPEGs of 512 x 384", caption=hardware())
    for heading in ("tool", "pairs/s", "CPU µs/pair", "time / ours", "CPU / ours"):
        table.add_column(heading, justify="right")
    wall_ours, cpu_ours = best["clipmill"]
    for tool, (wall, cpu) in best.items():
        table.add_row(
            tool,
            f"{num_pairs / wall:.0f}",
            f"{1e6 * cpu / num_pairs:.0f}",
            f"{wall / wall_ours:.2f}",
            f"{cpu / cpu_ours:.2f}",
        )
    Console(width=110).print(table)


def write_pairs(folder: Path, count: int) -> Path:
    """Write smooth random pictures of about 30 kB each, with captions."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
        coarse.resize((512, 384), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=92)
        (folder / f"{i}.txt").write_text(f"picture {i}")
    return folder


def ours(source: Path, out: Path, config: ShardConfig) -> Seconds:
    """From a folder to a dataset, the plan included."""
    wall, cpu = time.perf_counter(), cpu_seconds()
    write_dataset(config, str(source), str(out), num_processes=0)
    return time.perf_counter() - wall, cpu_seconds() - cpu


def cpu_seconds() -> float:
    """CPU time of this process and of its children that have ended."""
    kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
    return sum(used.ru_utime + used.ru_stime for used in map(resource.getrusage, kinds))


def has(python: str, module: str) -> bool:
    """Whether an interpreter can import a module."""
    command = [python, "-c", f"import {module}"]
    return subprocess.run(command, check=False, capture_output=True).returncode == 0


def peer(python: str, program: str, source: Path, out: Path) -> Seconds:
    """What a program measured of itself, its imports left out."""
    script = out.with_suffix(".py")
    script.write_text(program)  # a file, since img2dataset's processes import it again
    command = [python, str(script), str(source), str(out)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    wall, cpu = json.loads(done.stdout.splitlines()[-1])
    return wall, cpu


if __name__ == "__main__":
    main()

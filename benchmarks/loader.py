"""The loader at 224 px with two processes: from local shards, from S3, and from a mixture.

All read the same 512 px JPEG files; "mixture" reads them as two datasets, with weights 0.7 and 0.3.
Each runs in a process of its own, one after another, several rounds: the table holds medians. The
comparison with peers and the limit is ``make bench PART=loader``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path

import torch
from harness.processes import cpu_seconds
from parts.loader import write_source
from rich.console import Console
from rich.table import Table

from clipmill.data.dataset import Dataset
from clipmill.data.loading.config import DataLoaderConfig
from clipmill.data.loading.dataloader import PairBatch, PairDataLoader
from clipmill.data.loading.mixture import Mixture, MixtureSource
from clipmill.data.loading.view import View, ViewConfig
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.write import write_dataset
from clipmill.data.transforms.augmentation import CropTransform, RandomResizedCropConfig
from clipmill.models.tokenizer import Tokenizer
from clipmill.storage import SeaweedServer

_PICTURE_SIZE = 512
_SHARD_SAMPLES = 256
CONTENDERS = ("local", "mixture", "S3")


def our_batches(uri: str, options: argparse.Namespace) -> Iterator[PairBatch]:
    """The loader as training sets it up."""
    if options.contender == "mixture":
        weights = zip(options.halves, (0.7, 0.3), ("first", "second"), strict=True)
        view = Mixture.open(
            [MixtureSource(dataset=u, weight=w, name=name) for u, w, name in weights], ViewConfig()
        )
    else:
        view = Mixture.of_view(View(Dataset.open(uri), ViewConfig()))
    loader = PairDataLoader(
        view,
        DataLoaderConfig(num_workers=options.workers),
        batch_size=options.batch_size,
        transform=CropTransform(options.size, RandomResizedCropConfig()),
        tokenize=Tokenizer(),
        cache=options.folder / "cache",
    )
    return iter(loader)


def measure(contender: str, options: argparse.Namespace) -> dict[str, float]:
    """The rates of one of CONTENDERS."""
    uri = options.s3 if contender == "S3" else options.local
    if contender == "S3":  # an epoch, after which the cache is warm
        num_batches = -(-Dataset.open(uri).num_samples // options.batch_size)
        for _ in islice(our_batches(uri, options), num_batches):
            pass
    return rates(our_batches(uri, options), options)


def run(contender: str, options: argparse.Namespace) -> dict[str, float]:
    """One round of one contender, in a process of its own."""
    names = ("size", "batch_size", "workers", "warmup", "batches")
    numbers = [f"--{n.replace('_', '-')}={getattr(options, n)}" for n in names]
    command = [sys.executable, __file__, "--contender", contender, *numbers]
    command += ["--folder", str(options.folder), "--local", options.local, "--s3", options.s3]
    command += ["--halves", *options.halves]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def rates(batches: Iterable[PairBatch], options: argparse.Namespace) -> dict[str, float]:
    """Images a second, and a second of processor time, over ``options.batches`` batches.

    They come after as many as fill the queues. The processor's time, of this process and its
    workers, is what counts on a busy machine.
    """
    iterator = iter(batches)
    for _ in islice(iterator, options.warmup):
        pass
    started, processor, images = time.perf_counter(), cpu_seconds(), 0
    for batch in islice(iterator, options.batches):
        images += len(batch.uids)
    return {
        "second": images / (time.perf_counter() - started),
        "processor second": images / (cpu_seconds() - processor),
    }


def compare(options: argparse.Namespace) -> None:
    """Write the files, let all contenders take turns, print the table."""
    source = options.folder / "source"
    write_source(source, options.samples, _PICTURE_SIZE)
    config = ShardConfig(samples_per_shard=_SHARD_SAMPLES)
    options.local = write_dataset(config, str(source), str(options.folder / "store"))
    options.s3 = write_dataset(config, str(source), options.s3) if options.s3 else ""
    for half in range(2):
        folder = options.folder / f"half{half}"
        folder.mkdir()
        for path in sorted(source.iterdir()):
            if int(path.stem) % 2 == half:
                (folder / path.name).hardlink_to(path)
        options.halves.append(write_dataset(config, str(folder), str(options.folder / "store")))
    contenders = [c for c in CONTENDERS if options.s3 or c != "S3"]
    found: dict[str, list[dict[str, float]]] = {contender: [] for contender in contenders}
    for _ in range(options.rounds):
        for contender in contenders:
            found[contender].append(run(contender, options))
    title = f"Images at {options.size} px, {options.workers} workers, {os.cpu_count()} CPUs"
    table = Table(title=f"{title}, load {os.getloadavg()[0]:.1f}")
    table.add_column("loader")
    units = ("second", "processor second")
    for unit in units:
        table.add_column(f"a {unit}", justify="right")
        table.add_column("local / it", justify="right")
    medians = {
        contender: [statistics.median(rate[unit] for rate in rounds) for unit in units]
        for contender, rounds in found.items()
    }
    for contender, values in medians.items():
        cells = []
        for value, local in zip(values, medians["local"], strict=True):
            cells += [f"{value:.0f}", f"{local / value:.2f}"]
        table.add_row(contender, *cells)
    Console().print(table)


def main() -> None:
    """Compare, or be one contender."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=4096)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--warmup", type=int, default=8)
    parser.add_argument("--batches", type=int, default=100)
    parser.add_argument("--no-s3", action="store_true", help="leave S3 out")
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--local", default="", help=argparse.SUPPRESS)
    parser.add_argument("--s3", default="", help=argparse.SUPPRESS)
    parser.add_argument("--halves", nargs="*", default=[], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        torch.set_num_threads(1)
        print(json.dumps(measure(options.contender, options)))
        return
    with ExitStack() as stack:
        options.folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if not options.no_s3:
            server = stack.enter_context(SeaweedServer(options.folder / "weed"))
            os.environ.update(server.environment)
            options.s3 = "s3://benchmark/store"
        compare(options)


if __name__ == "__main__":
    main()

"""An epoch of 10^5 samples: memory along the way, and the time to a first batch anywhere in it.

``python benchmarks/loader_epoch.py [NUM_SAMPLES] [NUM_WORKERS]``. The pictures are small, since
neither figure depends on their size. Memory is the resident set without pages of files (``Rss``
less ``RssFile``) of this process and its workers.
"""

import io
import sys
import tempfile
import time
from itertools import islice
from pathlib import Path

import numpy as np
from PIL import Image
from rich.console import Console
from rich.table import Table

from clipmill.data.dataset import Dataset
from clipmill.data.loading.config import DataLoaderConfig
from clipmill.data.loading.dataloader import PairDataLoader
from clipmill.data.loading.view import View, ViewConfig
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.write import write_dataset
from clipmill.data.transforms.augmentation import CropTransform, RandomResizedCropConfig
from clipmill.models.tokenizer import Tokenizer

_BATCH_SIZE = 256
_WORDS = ("red", "green", "blue", "cube", "sphere", "on", "under", "a", "table", "lamp")


def write_source(folder: Path, count: int) -> None:
    """Pairs of small pictures, no two captions alike."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for number in range(count):
        if number % 1000 == 0:
            part = folder / f"{number:07d}"
            part.mkdir()
        buffer = io.BytesIO()
        coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3), np.uint8))
        coarse.resize((48, 48)).save(buffer, "JPEG", quality=80)
        (part / f"{number}.jpg").write_bytes(buffer.getvalue())
        caption = " ".join(random.choice(_WORDS, 6))
        (part / f"{number}.txt").write_text(f"{caption} {number}")


def loader(uri: str, cache: Path, num_workers: int, cursor: int) -> PairDataLoader:
    """The loader as training sets it up, from batch ``cursor`` on."""
    return PairDataLoader(
        View(Dataset.open(uri), ViewConfig()),
        DataLoaderConfig(num_workers=num_workers),
        batch_size=_BATCH_SIZE,
        transform=CropTransform(32, RandomResizedCropConfig()),
        tokenize=Tokenizer(),
        start_step=cursor,
        cache=cache,
    )


def memory_megabytes() -> dict[str, float]:
    """Of this process and its children, by their order of age."""
    children = Path(f"/proc/self/task/{Path('/proc/self').resolve().name}/children")
    names = {"main": "self"}
    names |= {f"worker {n}": pid for n, pid in enumerate(children.read_text().split())}
    found = {}
    for name, pid in names.items():
        fields = dict(
            line.split(":") for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        kilobytes = sum(int(fields[f].split()[0]) for f in ("RssAnon", "RssShmem"))
        found[name] = kilobytes / 1024
    return found


def main(num_samples: int, num_workers: int) -> None:
    """Print both tables."""
    console = Console()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_source(folder / "source", num_samples)
        uri = write_dataset(ShardConfig(), str(folder / "source"), str(folder / "store"))
        num_batches = num_samples // _BATCH_SIZE
        batches = islice(loader(uri, folder / "cache", num_workers, 0), num_batches)
        memory = Table(title=f"MB over an epoch of {num_samples} samples")
        started = time.perf_counter()
        for number, _ in enumerate(batches):
            if number % (num_batches // 8) == num_batches // 16:
                row = memory_megabytes()
                if not memory.columns:
                    for heading in ("samples", *row):
                        memory.add_column(heading, justify="right")
                memory.add_row(
                    str(number * _BATCH_SIZE), *(f"{value:.0f}" for value in row.values())
                )
        seconds = time.perf_counter() - started
        console.print(memory, f"{num_samples / seconds:.0f} samples/s")
        for share in (0.0, 0.5, 0.0, 0.5):
            started = time.perf_counter()
            cursor = int(num_batches * share)
            next(iter(loader(uri, folder / "cache", num_workers, cursor)))
            seconds = time.perf_counter() - started
            console.print(f"first batch from {share:.0%} of the epoch on: {seconds:.2f} s")


if __name__ == "__main__":
    arguments = [int(argument) for argument in sys.argv[1:]]
    main(*(arguments + [100_000, 2][len(arguments) :]))

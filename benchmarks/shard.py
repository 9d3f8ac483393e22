"""Sharding against the least that could do it: a loop that adds each file to one tar.

Ours decodes every image, hashes and quarantines besides, so the ratio is the price of knowing
that a dataset can be trained on. Run: ``python benchmarks/shard.py [NUM_PAIRS]``.
"""

import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from clipmill.data.shards import ShardConfig, shard


def main(num_pairs: int) -> None:
    """Time both on the same folder of 512 x 384 JPEG files, each after a first reading."""
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        source = write_pairs(scratch / "source", num_pairs)
        config = ShardConfig()
        loop = seconds(lambda: plain_loop(source, scratch / "plain.tar"))
        print(f"plain tarfile loop: {loop:.2f} s, {num_pairs / loop:.0f} pairs/s")
        for num_threads in (1, 0):
            store = str(scratch / f"store{num_threads}")
            ours = seconds(lambda: shard(config, str(source), store, num_threads=num_threads))  # noqa: B023
            threads = f"{num_threads or 'all'} thread(s)"
            print(f"clipmill, {threads}: {ours:.2f} s, {num_pairs / ours:.0f} pairs/s")
            print(f"ratio, {threads}: {ours / loop:.1f}")


def write_pairs(folder: Path, count: int) -> Path:
    """Write smooth random pictures of about 30 kB each, with captions."""
    folder.mkdir()
    random = np.random.default_rng(0)
    for i in range(count):
        coarse = Image.fromarray(random.integers(0, 256, (12, 16, 3), np.uint8))
        coarse.resize((512, 384), Image.Resampling.BICUBIC).save(folder / f"{i}.jpg", quality=92)
        (folder / f"{i}.txt").write_text(f"picture {i}")
    return folder


def plain_loop(source: Path, tar: Path) -> None:
    """Add each file to one tar."""
    with tarfile.open(tar, "w") as archive:
        for path in sorted(source.iterdir()):
            archive.add(path, path.name)


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock seconds of one run."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 2000)

"""Selecting against scripts that read the same Parquet files with pyarrow and with pandas.

The peers read all columns into memory at once and write one mask; ours reads shard by shard,
verifies every file, sets the first refusing filter, and writes a layer that a view can follow. A
second table is for near-duplicates, ours alone. Run: ``python benchmarks/selection.py [NUM_ROWS]``.
"""

import importlib.util
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from clipmill.config import digest_json, sha256_bytes
from clipmill.data.dataset import Dataset
from clipmill.data.duplicates import near_duplicates
from clipmill.data.filters import (
    AspectRatioFilter,
    CaptionLengthFilter,
    ClipTopFractionFilter,
    ImageSizeFilter,
    LanguageFilter,
)
from clipmill.data.layers import commit_layer, read_layer, write_layer_shard
from clipmill.data.select import SelectConfig, filter_steps, select

SHARD_ROWS = 10_000
RULE = SelectConfig(
    name="benchmark",
    filters=filter_steps(
        ClipTopFractionFilter(fraction=0.3),
        LanguageFilter(),
        CaptionLengthFilter(),
        ImageSizeFilter(),
        AspectRatioFilter(),
    ),
)

_T = TypeVar("_T")


def main(num_rows: int) -> None:
    """Time all on the same files, each after a first reading of them."""
    with tempfile.TemporaryDirectory() as name:
        os.environ["CLIPMILL_CACHE"] = f"{name}/cache"
        dataset = make_dataset(Path(name) / "dataset", num_rows)
        folder = Path(dataset.uri) / "layers"
        arrow, expected = timed(lambda: by_arrow(folder))
        print(f"pyarrow script: {arrow:.2f} s, {num_rows / arrow:,.0f} rows/s")
        if importlib.util.find_spec("pandas"):
            pandas, found = timed(lambda: by_pandas(folder))
            assert (found == expected).all()
            print(f"pandas script: {pandas:.2f} s, {num_rows / pandas:,.0f} rows/s")
        ours, layer = timed(lambda: select(RULE, dataset.uri, report=lambda *_: None))
        print(f"clipmill select, first time: {ours:.2f} s, {num_rows / ours:,.0f} rows/s")
        print(f"ratio to pyarrow: {arrow / ours:.2f}")
        assert (kept_by(Dataset.open(dataset.uri), layer) == expected).all()
        again, _ = timed(lambda: select(RULE, dataset.uri, report=lambda *_: None))
        print(f"clipmill select, again: {again:.3f} s")
        other = SelectConfig(name="again", filters=RULE.filters)
        warm, _ = timed(lambda: select(other, dataset.uri, report=lambda *_: None))
        print(
            f"clipmill select, files verified before: {warm:.2f} s, {num_rows / warm:,.0f} rows/s"
        )
        print(f"ratio to pyarrow: {arrow / warm:.2f}")
    hashes = np.random.default_rng(0).integers(0, 2**64, num_rows, np.uint64)
    hashes[::10] = hashes[1::10][: len(hashes[::10])] ^ np.uint64(1 << 17)
    for distance in (0, 2, 4):
        near, found = timed(lambda: near_duplicates(hashes, np.arange(num_rows), distance))  # noqa: B023
        print(f"near-duplicates within {distance} bits: {near:.2f} s, {found.sum()} found")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of this process, peers included: {peak:.0f} MB")


def make_dataset(folder: Path, num_rows: int) -> Dataset:
    """Write a dataset without pictures, and its scores."""
    random = np.random.default_rng(0)
    (folder / "shards").mkdir(parents=True)
    shards, tables = [], []
    for index, first in enumerate(range(0, num_rows, SHARD_ROWS)):
        size = min(SHARD_ROWS, num_rows - first)
        uids = [sha256_bytes(str(n).encode())[:20] for n in range(first, first + size)]
        sha256 = sha256_bytes(str(index).encode())
        shards.append(
            {"name": f"{index:05d}.tar", "num_samples": size, "num_bytes": 1, "sha256": sha256}
        )
        sidecar = {"format": 1, "kind": "shard", "sha256": sha256, "uids": uids}
        (folder / "shards" / f"{index:05d}.json").write_text(json.dumps(sidecar))
        tables.append(scores(random, uids))
    manifest = {"format": 1, "kind": "dataset", "digest": digest_json(shards), "shards": shards}
    manifest |= {"layers": {}, "quarantine": {}, "parents": []}
    (folder / "dataset.json").write_text(json.dumps(manifest))
    dataset = Dataset.open(str(folder))
    for name in tables[0]:
        for index, table in enumerate(tables):
            write_layer_shard(dataset, name, index, table[name])
        dataset = commit_layer(dataset, name, parents=(), detail={})
    return dataset


def scores(random: np.random.Generator, uids: list[str]) -> dict[str, pa.Table]:
    """Scores of one shard, by layer."""
    size = len(uids)
    words = random.integers(1, 20, size).astype(np.int32)
    text = pa.StructArray.from_arrays(
        [
            pa.array(words),
            pa.array(words * 5),
            pa.array(random.choice(["en", "de", "fr", "zh"], size, p=[0.5, 0.2, 0.2, 0.1])),
            pa.array(random.random(size, np.float32)),
        ],
        names=["words", "characters", "language", "confidence"],
    )
    image = {
        "width": random.integers(50, 2000, size).astype(np.int32),
        "height": random.integers(50, 2000, size).astype(np.int32),
        "perceptual_hash": random.integers(0, 2**64, size, np.uint64),
    }
    return {
        "score/clip-1": pa.table({"uid": uids, "real": random.random(size, np.float32)}),
        "score/text-1": pa.table({"uid": uids, "real": text}),
        "score/image-1": pa.table({"uid": uids, **image}),
    }


def files(folder: Path, score: str) -> list[Path]:
    """A layer's Parquet files."""
    return sorted((folder / f"score/{score}-1").glob("*.parquet"))


def by_arrow(folder: Path) -> NDArray[np.bool_]:
    """The rule as a plain script."""
    clip = pq.read_table(files(folder, "clip"), columns=["real"])["real"].to_numpy()
    text = pq.read_table(files(folder, "text"), columns=["real"])["real"].combine_chunks()
    image = pq.read_table(files(folder, "image"), columns=["width", "height"])
    width, height = (image[name].to_numpy() for name in ("width", "height"))
    keep = clip >= -np.sort(-clip)[int(len(clip) * 0.3)]
    keep &= pc.equal(pc.struct_field(text, "language"), "en").to_numpy(zero_copy_only=False)
    keep &= pc.struct_field(text, "words").to_numpy() > 2
    keep &= pc.struct_field(text, "characters").to_numpy() > 5
    smaller, larger = np.minimum(width, height), np.maximum(width, height)
    keep &= (smaller >= 200) & (larger / smaller <= 3.0)
    pq.write_table(pa.table({"keep": keep}), folder / "mask.parquet")
    mask: NDArray[np.bool_] = keep
    return mask


def by_pandas(folder: Path) -> NDArray[np.bool_]:
    """The rule as DataComp's baselines are written."""
    import pandas as pd

    clip, text = (
        pd.concat(pd.read_parquet(f, columns=["real"]) for f in files(folder, name))["real"]
        for name in ("clip", "text")
    )
    image = pd.concat(
        pd.read_parquet(f, columns=["width", "height"]) for f in files(folder, "image")
    )
    keep = clip >= -np.sort(-clip.to_numpy())[int(len(clip) * 0.3)]
    keep &= text.apply(lambda t: t["language"]) == "en"
    keep &= (text.apply(lambda t: t["words"]) > 2) & (text.apply(lambda t: t["characters"]) > 5)
    smaller, larger = image.min(axis=1), image.max(axis=1)
    keep &= (smaller >= 200) & (larger / smaller <= 3.0)
    pd.DataFrame({"keep": keep}).to_parquet(folder / "mask.parquet")
    mask: NDArray[np.bool_] = keep.to_numpy()
    return mask


def kept_by(dataset: Dataset, layer: str) -> NDArray[np.bool_]:
    """The rows that a select layer keeps."""
    cache = Path(os.environ["CLIPMILL_CACHE"])
    parts = [
        read_layer(dataset, layer, index, cache)["keep"].to_numpy()
        for index in range(len(dataset.shards))
    ]
    return np.concatenate(parts)


def timed(run: Callable[[], _T]) -> tuple[float, _T]:
    """Wall-clock seconds of one run, and what it returned."""
    start = time.perf_counter()
    found = run()
    return time.perf_counter() - start, found


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)

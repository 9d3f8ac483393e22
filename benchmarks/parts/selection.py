"""Five filters over scores: clipmill's selection, pandas and pyarrow scripts, and Parquet's read.

The scripts read a table of flat columns, as DataComp's are, into memory and write one mask. Ours
reads layers shard by shard, notes the first filter that refuses a row, and writes a layer. The
limit reads the same columns of the same layers. What is kept must be the same rows.
"""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.case import LIMIT, Case, Contender, Sizes
from harness.session import Session

TOP_FRACTION = 0.3
_DATASET = "dataset"
_FLAT = "flat"
COLUMNS = {"clip": ["real"], "text": ["real"], "image": ["width", "height"]}
"""Columns that the rule reads, by layer."""


def write_scores(folder: Path, sizes: Sizes) -> None:
    """Write a dataset without images, its layers of scores, and the same as flat tables."""
    import numpy as np
    import pyarrow.parquet as pq

    from clipmill.data.dataset import Dataset
    from clipmill.data.layers import commit_layer, write_layer_shard

    generator = np.random.default_rng(0)
    counts = [
        min(sizes["shard_rows"], sizes["rows"] - first)
        for first in range(0, sizes["rows"], sizes["shard_rows"])
    ]
    (folder / _FLAT).mkdir()
    dataset = write_bare_dataset(folder / _DATASET, counts)
    for index in range(len(counts)):
        tables = scores(generator, dataset.uids(index))
        for name, table in tables.items():
            write_layer_shard(dataset, name, index, table)
        pq.write_table(flat(tables), folder / _FLAT / f"{index:05d}.parquet")
    for name in tables:
        dataset = commit_layer(dataset, name, parents=(), detail={})
    assert Dataset.open(dataset.uri).num_samples == sizes["rows"]


def write_bare_dataset(folder: Path, counts: list[int]) -> Any:
    """Write a dataset without images, of shards of so many samples, and open it."""
    from clipmill.config import digest_json
    from clipmill.data.dataset import Dataset

    (folder / "shards").mkdir(parents=True)
    shards = []
    first = 0
    for index, count in enumerate(counts):
        uids = [
            hashlib.sha256(str(number).encode()).hexdigest()[:20]
            for number in range(first, first + count)
        ]
        first += count
        sha256 = hashlib.sha256(str(index).encode()).hexdigest()
        shards.append(
            {"name": f"{index:05d}.tar", "num_samples": count, "num_bytes": 1, "sha256": sha256}
        )
        sidecar = {"format": 1, "kind": "shard", "sha256": sha256, "uids": uids}
        (folder / "shards" / f"{index:05d}.json").write_text(json.dumps(sidecar))
    manifest = {"format": 1, "kind": "dataset", "digest": digest_json(shards), "shards": shards}
    manifest |= {"layers": {}, "quarantine": {}, "parents": []}
    (folder / "dataset.json").write_text(json.dumps(manifest))
    return Dataset.open(str(folder))


def scores(generator: Any, uids: list[str]) -> dict[str, Any]:
    """Return random scores of one shard, by layer."""
    import numpy as np
    import pyarrow as pa

    size = len(uids)
    words = generator.integers(1, 20, size).astype(np.int32)
    languages = generator.choice(["en", "de", "fr", "zh"], size, p=[0.5, 0.2, 0.2, 0.1])
    text = pa.StructArray.from_arrays(
        [
            pa.array(words),
            pa.array(words * 5),
            pa.array(languages),
            pa.array(generator.random(size, np.float32)),
        ],
        names=["words", "characters", "language", "confidence"],
    )
    image = {
        "width": generator.integers(50, 2000, size).astype(np.int32),
        "height": generator.integers(50, 2000, size).astype(np.int32),
    }
    return {
        "score/clip-1": pa.table({"uid": uids, "real": generator.random(size, np.float32)}),
        "score/text-1": pa.table({"uid": uids, "real": text}),
        "score/image-1": pa.table({"uid": uids, **image}),
    }


def flat(tables: dict[str, Any]) -> Any:
    """Return one table with a column for each number, as DataComp's metadata have it."""
    import pyarrow as pa

    text = tables["score/text-1"]["real"].combine_chunks()
    columns = {name: text.field(name) for name in ("words", "characters", "language")}
    image = {name: tables["score/image-1"][name] for name in COLUMNS["image"]}
    clip = tables["score/clip-1"]
    return pa.table({"uid": clip["uid"], "clip": clip["real"], **columns, **image})


def _answer(session: Session, keep: Any) -> None:
    import numpy as np

    bits = np.packbits(np.asarray(keep, bool)).tobytes()
    kept = {"kept": int(np.sum(keep)), "rows": hashlib.sha256(bits).hexdigest()}
    session.answer(num_rows=len(keep), **kept)


def clipmill(folder: Path, sizes: Sizes, session: Session) -> None:
    """``select`` into another layer each time; the answer's run has verified the files."""
    import numpy as np

    from clipmill.data.dataset import Dataset
    from clipmill.data.filters import (
        AspectRatioFilter,
        CaptionLengthFilter,
        ClipTopFractionFilter,
        ImageSizeFilter,
        LanguageFilter,
    )
    from clipmill.data.layers import read_layer
    from clipmill.data.select import SelectConfig, filter_steps, select

    uri = str(folder / _DATASET)
    filters = filter_steps(
        ClipTopFractionFilter(fraction=TOP_FRACTION),
        LanguageFilter(),
        CaptionLengthFilter(),
        ImageSizeFilter(),
        AspectRatioFilter(),
    )

    def run(name: str) -> str:
        return select(SelectConfig(name=name, filters=filters), uri, report=lambda *_: None)

    layer = run("first")
    dataset, cache = Dataset.open(uri), Path(os.environ["CLIPMILL_CACHE"])
    parts = [
        read_layer(dataset, layer, index, cache)["keep"].to_numpy()
        for index in range(len(dataset.shards))
    ]
    _answer(session, np.concatenate(parts))
    number = 0

    def lap() -> float:
        nonlocal number
        number += 1
        run(f"lap{number}")
        return sizes["rows"]

    session.run(lap)


def _run_script(
    script: Callable[[list[Path]], Any], folder: Path, sizes: Sizes, session: Session
) -> None:
    files = sorted((folder / _FLAT).glob("*.parquet"))
    _answer(session, script(files))

    def lap() -> float:
        script(files)
        return sizes["rows"]

    session.run(lap)


def pandas_script(folder: Path, sizes: Sizes, session: Session) -> None:
    """Files read one by one and concatenated, vectorized comparisons, a mask written."""
    import numpy as np
    import pandas as pd

    def script(files: list[Path]) -> Any:
        names = ["clip", "words", "characters", "language", *COLUMNS["image"]]
        frame = pd.concat(pd.read_parquet(file, columns=names) for file in files)
        clip = frame["clip"].to_numpy()
        keep = clip >= -np.sort(-clip)[int(len(clip) * TOP_FRACTION)]
        keep &= (frame["language"] == "en").to_numpy()
        keep &= ((frame["words"] > 2) & (frame["characters"] > 5)).to_numpy()
        sides = frame[COLUMNS["image"]].to_numpy()
        smaller, larger = sides.min(axis=1), sides.max(axis=1)
        keep &= (smaller >= 200) & (larger / smaller <= 3.0)
        pd.DataFrame({"keep": keep}).to_parquet(folder / "pandas.parquet")
        return keep

    _run_script(script, folder, sizes, session)


def pyarrow_script(folder: Path, sizes: Sizes, session: Session) -> None:
    """All columns read at once by pyarrow's threads, comparisons by NumPy, a mask written."""
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc
    import pyarrow.parquet as pq

    def script(files: list[Path]) -> Any:
        names = ["clip", "words", "characters", "language", *COLUMNS["image"]]
        table = pq.read_table(files, columns=names)
        clip = table["clip"].to_numpy()
        keep = clip >= -np.sort(-clip)[int(len(clip) * TOP_FRACTION)]
        keep &= pc.equal(table["language"], "en").to_numpy()
        keep &= (table["words"].to_numpy() > 2) & (table["characters"].to_numpy() > 5)
        width, height = (table[name].to_numpy() for name in COLUMNS["image"])
        smaller, larger = np.minimum(width, height), np.maximum(width, height)
        keep &= (smaller >= 200) & (larger / smaller <= 3.0)
        pq.write_table(pa.table({"keep": keep}), folder / "pyarrow.parquet")
        return keep

    _run_script(script, folder, sizes, session)


def parquet_read(folder: Path, sizes: Sizes, session: Session) -> None:
    """The columns that the rule reads, of the same layers, by pyarrow's threads."""
    import pyarrow.parquet as pq

    layers = {
        name: sorted((folder / _DATASET / "layers" / f"score/{name}-1").glob("*.parquet"))
        for name in COLUMNS
    }

    def lap() -> float:
        tables = [pq.read_table(layers[name], columns=COLUMNS[name]) for name in COLUMNS]
        assert all(len(table) == sizes["rows"] for table in tables)
        return len(tables[0])

    session.answer(num_rows=int(lap()))
    session.run(lap)


CASES = (
    Case(
        name="five filters over 10 million rows",
        unit="rows",
        prepare=write_scores,
        contenders=(
            Contender(
                name="clipmill",
                run=clipmill,
                packages=("pyarrow",),
                settings="shard by shard; reason of each refusal; a layer written",
            ),
            Contender(
                name="pandas script",
                run=pandas_script,
                packages=("pandas",),
                settings="flat columns, all rows in memory; as DataComp's baselines",
                at_least=3,
            ),
            Contender(
                name="pyarrow script",
                run=pyarrow_script,
                packages=("pyarrow",),
                settings="flat columns, all rows in memory",
            ),
            Contender(
                name=LIMIT,
                run=parquet_read,
                packages=("pyarrow",),
                settings="the same columns of the same layers read",
                at_least=0.5,
            ),
        ),
        sizes={"rows": 10_000_000, "shard_rows": 10_000},
        tiny={"rows": 2_000, "shard_rows": 600},
    ),
)

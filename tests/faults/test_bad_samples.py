"""A thousand bad samples: each let in or left out for its reason, none lost, none counted twice."""

import io
import json
import os
import random
import tarfile
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest

from clipmill.data.dataset import Dataset, read_sidecar
from clipmill.data.export import ExportConfig, export
from clipmill.data.layers import commit_layer, write_layer_shard
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.read import read_shard
from clipmill.data.shards.write import write_dataset
from clipmill.data.stats import dataset_stats
from clipmill.data.verify import verify
from clipmill.images import decode_rgb
from helpers.bad_samples import GOOD, KINDS, encoded, picture, write_corpus

CONFIG = ShardConfig(samples_per_shard=100, min_side=8)


def outcomes(dataset: Dataset) -> list[tuple[str, str]]:
    """The origin of each item with its reason, or GOOD, from the shards and sidecars."""
    found = []
    for index, info in enumerate(dataset.shards):
        sidecar = read_sidecar(dataset.uri, index)
        found += [(bad["origin"], bad["reason"]) for bad in sidecar["quarantined"]]
        with tarfile.open(Path(dataset.uri) / "shards" / info.name) as tar:
            for member in tar:
                if member.name.endswith(".json"):
                    record = json.loads(tar.extractfile(member).read())
                    found.append((record["origin"], GOOD))
    return found


@pytest.mark.parametrize(
    ("count", "seed"), [(1100, 0), pytest.param(10_000, 1, marks=pytest.mark.slow)]
)
def test_each_sample_is_counted_once_under_its_reason(
    tmp_path: Path, count: int, seed: int
) -> None:
    kinds = write_corpus(tmp_path / "source", count, seed)
    assert set(kinds.values()) >= set(KINDS)
    dataset = Dataset.open(write_dataset(CONFIG, str(tmp_path / "source"), str(tmp_path / "store")))
    found = outcomes(dataset)
    # The names begin with the sample's number.
    by_stem = {Path(origin).name[:5]: outcome for origin, outcome in found}
    assert len(found) == len(by_stem) == count
    wrong = {
        (kind.name, by_stem[stem])
        for stem, kind in kinds.items()
        if by_stem[stem] not in kind.outcomes
    }
    assert not wrong
    counts = Counter(outcome for _, outcome in found)
    assert dataset.num_samples == counts.pop(GOOD)
    assert dataset.quarantine == dict(counts)
    assert dataset.num_samples + sum(dataset.quarantine.values()) == count


def test_what_was_let_in_can_be_used(tmp_path: Path) -> None:
    write_corpus(tmp_path / "source", 320, 2)
    dataset = Dataset.open(write_dataset(CONFIG, str(tmp_path / "source"), str(tmp_path / "store")))
    cache = tmp_path / "cache"
    for index in range(len(dataset.shards)):
        with read_shard(dataset, index, cache) as reader:
            sizes = [list(decode_rgb(reader.image(row)).size) for row in range(len(reader))]
            captions = [[reader.caption(row)] for row in range(len(reader))]
            table = pa.table({"uid": reader.uids, "captions": captions, "size": sizes})
        write_layer_shard(dataset, "captions/same", index, table)
    dataset = commit_layer(dataset, "captions/same", parents=(), detail={})
    assert verify(dataset.uri).is_ok
    stats = dataset_stats(dataset, cache)
    assert stats.captions["real"] == stats.captions["captions/same"]
    json.dumps(stats.to_json(), allow_nan=False)
    exported = Path(export(ExportConfig(), dataset.uri, str(tmp_path / "out"), cache))
    sizes = json.loads((exported / "sizes.json").read_text())
    assert sum(sizes.values()) == dataset.num_samples


def test_items_that_share_a_name(tmp_path: Path) -> None:
    """One caption and several pictures of a stem: each picture is an item of its own."""
    source = tmp_path / "source"
    write_corpus(source, len(KINDS), 3)
    good = next(path for path in sorted(source.rglob("*.jpg")) if path.stem == "00000")
    for suffix in (".png", ".webp", ".jpeg"):
        good.with_suffix(suffix).write_bytes(good.read_bytes())
    (source / "x.jpg").mkdir()
    (source / "y.jpg").symlink_to("nowhere")
    uri = write_dataset(CONFIG, str(source), str(tmp_path / "store"))
    dataset = Dataset.open(uri)
    found = Counter(origin for origin, _ in outcomes(dataset))
    assert len(found) == found.total() == len(KINDS) + 3
    uids = [uid for index in range(len(dataset.shards)) for uid in dataset.uids(index)]
    assert len(set(uids)) == len(uids)


def test_a_tar_packed_of_them_unpacks_to_them(tmp_path: Path) -> None:
    """The corpus as an archive is the same source, odd names and all."""
    from clipmill.storage import pack_dir

    source = tmp_path / "source"
    write_corpus(source, 2 * len(KINDS), 4)
    pack_dir(source, str(tmp_path / "source.tar"))
    direct, packed = (
        Dataset.open(write_dataset(CONFIG, str(tmp_path / name), str(tmp_path / f"store-{name}")))
        for name in ("source", "source.tar")
    )
    assert (direct.digest, direct.quarantine) == (packed.digest, packed.quarantine)


def test_tars_cut_in_a_header_give_what_precedes_the_cut(tmp_path: Path) -> None:
    random_ = random.Random(3)
    source = tmp_path / "source"
    source.mkdir()
    image, num_whole = encoded(picture(random_)), 0
    for number in range(60):
        path = source / f"{number:02d}.tar"
        with tarfile.open(path, "w") as tar:
            for row in range(5):
                for suffix, data in ((".jpg", image), (".txt", b"a cat")):
                    member = tarfile.TarInfo(f"{number}-{row}{suffix}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
        with tarfile.open(path) as tar:
            headers = [member.offset for member in tar]
        # A picture without the caption that was cut off is a bad sample of its own.
        which = random_.randrange(0, len(headers), 2)
        os.truncate(path, headers[which] + random_.randrange(1, tarfile.BLOCKSIZE))
        num_whole += which // 2
    dataset = Dataset.open(write_dataset(CONFIG, f"webdataset:{source}", str(tmp_path / "store")))
    assert dataset.num_samples == num_whole
    assert dataset.quarantine == {"truncated_tar": 60}

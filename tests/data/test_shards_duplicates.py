"""Doubles, reported and dropped, and the layers that a source brings."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipmill.config import digest_json
from clipmill.data.dataset import Dataset, parse_quarantined
from clipmill.data.layers import read_layer
from clipmill.data.shards import finalize as duplicates_module
from clipmill.data.shards import write as shards_module
from clipmill.data.shards.finalize import FINGERPRINT, finalize_dataset, find_duplicates
from clipmill.data.shards.plan import ShardConfig, plan_shards
from clipmill.data.shards.read import read_shard
from clipmill.data.shards.write import write_dataset, write_shards
from clipmill.data.verify import verify
from helpers.sources import jpeg, reinforced_sample, write_tar


def fingerprint(pairs: list[tuple[int, int]]) -> np.ndarray:
    rows = [
        b"".join(hashlib.sha256(b"%d" % value).digest()[:16] for value in pair) for pair in pairs
    ]
    return np.frombuffer(b"".join(rows), FINGERPRINT)


def plain_doubles(shards: list[list[tuple[int, int]]]) -> list[tuple[int, int, bool]]:
    """By the definition, one sample after the other."""
    samples = [sample for part in shards for sample in part]
    ids: dict[int, int] = {}
    found = []
    for position, (name, _) in enumerate(samples):
        if name in ids:
            found.append((position, ids[name], True))
        ids.setdefault(name, position)
    left_out = {position for position, _, _ in found}
    images: dict[int, int] = {}
    for position, (_, image) in enumerate(samples):
        if position not in left_out:
            if image in images:
                found.append((position, images[image], False))
            images.setdefault(image, position)
    return sorted(found)


SHARDS = st.lists(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 4)), max_size=8), max_size=5)


@pytest.mark.parametrize("rows_per_file", [1, 3, 1_000_000])
def test_doubles_are_those_of_the_definition(
    rows_per_file: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(duplicates_module, "_ROWS_PER_FILE", rows_per_file)

    @settings(max_examples=40, deadline=None)
    @given(SHARDS)
    def check(shards: list[list[tuple[int, int]]]) -> None:
        count = sum(map(len, shards))
        found = find_duplicates(map(fingerprint, shards), count)
        triples = zip(found.positions, found.originals, found.same_id, strict=True)
        assert [(int(p), int(o), bool(s)) for p, o, s in triples] == plain_doubles(shards)

    check()


@pytest.fixture
def source(tmp_path: Path) -> str:
    """Seven reinforced samples in two tars; samples 3 and 5 have the image of 0, 6 has no extras.

    The second tar holds the key 00004 twice, the second time with another picture.
    """

    def members(i: int, picture: int) -> list[tuple[str, bytes]]:
        image = ("00000.jpg".replace("00000", f"{i:05d}"), jpeg(picture))
        return [image, *reinforced_sample(i)[1:]]

    pictures = {0: 0, 1: 1, 2: 2, 3: 0}
    write_tar(tmp_path / "tars" / "a.tar", [m for i, p in pictures.items() for m in members(i, p)])
    bare = [("00006.jpg", jpeg(6)), ("00006.txt", b"picture 6")]
    second = [*members(4, 4), *members(5, 0), *bare, *members(4, 7)]
    write_tar(tmp_path / "tars" / "b.tar", second)
    return str(tmp_path / "tars")


def captions(dataset: Dataset, cache: Path) -> list[str]:
    found = []
    for index in range(len(dataset.shards)):
        with read_shard(dataset, index, cache) as reader:
            found += [reader.caption(row) for row in range(len(reader))]
    return found


def manifest(uri: str) -> dict:
    return json.loads((Path(uri) / "dataset.json").read_text())


def test_doubles_are_reported(tmp_path: Path, source: str) -> None:
    uri = write_dataset(ShardConfig(samples_per_shard=3), source, str(tmp_path / "store"))
    dataset = Dataset.open(uri)
    assert dataset.num_samples == 8
    assert not dataset.quarantine
    report = manifest(uri)["duplicates"]
    assert (report["dropped"], report["num_same_id"], report["num_same_image"]) == (False, 1, 2)
    uids = [uid for index in range(len(dataset.shards)) for uid in dataset.uids(index)]
    assert report["shown"] == [
        {"uid": uids[3], "same_as": uids[0], "reason": "duplicate_image"},
        {"uid": uids[5], "same_as": uids[0], "reason": "duplicate_image"},
        {"uid": uids[7], "same_as": uids[4], "reason": "duplicate_id"},
    ]


def test_doubles_are_dropped(tmp_path: Path, source: str) -> None:
    config = ShardConfig(samples_per_shard=3, duplicates="drop")
    dataset = Dataset.open(write_dataset(config, source, str(tmp_path / "store")))
    assert captions(dataset, tmp_path / "cache") == [f"picture {i}" for i in (0, 1, 2, 4, 6)]
    assert dataset.quarantine == {"duplicate_image": 2, "duplicate_id": 1}
    origins = [bad["origin"] for bad in manifest(dataset.uri)["quarantined"]]
    assert origins == ["a.tar/00003", "b.tar/00005", "b.tar/00004"]
    assert [info.name for info in dataset.shards] == [
        "00000.tar",
        "00001-dedup.tar",
        "00002-dedup.tar",
        "00003-dedup.tar",
    ]
    found = verify(dataset.uri)
    assert (found.faults, found.notes) == ((), ())
    files = {path.name for path in (Path(dataset.uri) / "shards").iterdir()}
    assert files == {
        f"{i:05d}{m}.{s}"
        for i, m in enumerate(["", "-dedup", "-dedup", "-dedup"])
        for s in ("tar", "json")
    }
    for info in dataset.shards:
        with tarfile.open(Path(dataset.uri) / "shards" / info.name) as tar:
            assert len(tar.getmembers()) == 3 * info.num_samples


@pytest.mark.parametrize("duplicates", ["report", "drop"])
def test_layers_come_along(tmp_path: Path, source: str, duplicates: str) -> None:
    config = ShardConfig(samples_per_shard=3, duplicates=duplicates)
    dataset = Dataset.open(write_dataset(config, source, str(tmp_path / "store")))
    kinds = ("captions", "teacher")
    assert sorted(dataset.layers) == [f"{kind}/datacompdr" for kind in kinds]
    cache = tmp_path / "cache"
    seen = 0
    for index in range(len(dataset.shards)):
        tables = {k: read_layer(dataset, f"{k}/datacompdr", index, cache) for k in kinds}
        with read_shard(dataset, index, cache) as reader:
            for row, uid in enumerate(dataset.uids(index)):
                found = {kind: table.slice(row, 1).to_pylist()[0] for kind, table in tables.items()}
                assert {value["uid"] for value in found.values()} == {uid}
                number = int(reader.caption(row).split()[1])
                extra = dict(reinforced_sample(number))
                if number == 6:
                    assert found["captions"]["captions"] == ["picture 6"]
                    assert found["captions"]["fallback"]
                    assert found["teacher"]["image"] is None
                    assert found["teacher"]["torchvision_augmentation"] is None
                else:
                    synthetic = json.loads(extra[f"{number:05d}.syn.json"])["syn_text"]
                    assert found["captions"]["captions"] == synthetic
                    npz = np.load(io.BytesIO(extra[f"{number:05d}.npz"]))
                    for kind, key in (("image", "image_emb"), ("text", "text_emb")):
                        np.testing.assert_array_equal(
                            np.array(found["teacher"][kind], np.float16),
                            npz[key].astype(np.float16),
                        )
                seen += 1
    assert seen == (8 if duplicates == "report" else 5)


def test_late_workers_change_nothing_that_was_dropped(tmp_path: Path, source: str) -> None:
    config = ShardConfig(samples_per_shard=3, duplicates="drop")
    plan = plan_shards(config, source, str(tmp_path / "store"))
    write_shards(plan, 0, plan.num_shards)
    before = finalize_dataset(plan)
    (Path(plan.uri) / "dataset.json").unlink()
    write_shards(plan, 0, plan.num_shards)
    assert finalize_dataset(plan).shards == before.shards


def test_worker_that_finishing_overtook_tidies_up(
    tmp_path: Path, source: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = ShardConfig(samples_per_shard=3, duplicates="drop")
    plan = plan_shards(config, source, str(tmp_path / "store"))
    write_shards(plan, 0, plan.num_shards)
    finalize_dataset(plan)
    names = sorted(path.name for path in (Path(plan.uri) / "shards").iterdir())
    (Path(plan.uri) / "dataset.json").unlink()
    monkeypatch.setattr(shards_module, "is_complete", lambda *_: False)
    write_shards(plan, 1, plan.num_shards)
    assert sorted(path.name for path in (Path(plan.uri) / "shards").iterdir()) == names


def test_finishing_again_tidies_up_after_a_worker_that_died(tmp_path: Path, source: str) -> None:
    config = ShardConfig(samples_per_shard=3, duplicates="drop")
    plan = plan_shards(config, source, str(tmp_path / "store"))
    write_shards(plan, 0, plan.num_shards)
    finalize_dataset(plan)
    late = Path(plan.uri) / "shards" / "00001.tar"
    late.write_bytes(b"put before the worker died")
    finalize_dataset(plan)
    assert not late.exists()


def test_same_id_within_a_shard_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "0.jpg").write_bytes(jpeg(0))
    table = tmp_path / "pairs.csv"
    table.write_text("path,caption,key\n0.jpg,first,a\n0.jpg,second,a\n")
    source = f"{table}?id=key"
    dataset = Dataset.open(write_dataset(ShardConfig(), source, str(tmp_path / "store")))
    assert captions(dataset, tmp_path / "cache") == ["first"]
    assert dataset.quarantine == {"duplicate_id": 1}


def test_a_dataset_that_0_1_wrote_is_read(tmp_path: Path, source: str) -> None:
    config = ShardConfig(samples_per_shard=3, duplicates="drop")
    dataset = Dataset.open(write_dataset(config, source, str(tmp_path / "store")))
    before = captions(dataset, tmp_path / "cache")
    folder = Path(dataset.uri)
    for path in [folder / "dataset.json", *(folder / "shards").glob("*.json")]:
        text = path.read_text().replace("-dedup", "-unique")
        path.write_text(text.replace("duplicate_i", "duplicate-i"))
    for path in (folder / "shards").glob("*-dedup.*"):
        path.rename(path.with_name(path.name.replace("-dedup", "-unique")))
    value = manifest(dataset.uri)
    value["digest"] = digest_json(value["shards"])
    (folder / "dataset.json").write_text(json.dumps(value))
    for path in folder.glob("layers/**/layer.json"):
        path.write_text(path.read_text().replace(dataset.digest, value["digest"]))

    old = Dataset.open(dataset.uri)
    assert old.quarantine == {"duplicate_image": 2, "duplicate_id": 1}
    assert captions(old, tmp_path / "another cache") == before
    found = verify(old.uri)
    assert (found.faults, found.notes) == ((), ())
    assert parse_quarantined(value["quarantined"])[0]["reason"] == "duplicate_image"

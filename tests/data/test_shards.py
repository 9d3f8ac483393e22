"""Shards as other tools read them, and what reruns, crashes and rivals make of them."""

import dataclasses
import errno
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from clipmill.cli import app
from clipmill.data.dataset import Dataset
from clipmill.data.shards import write
from clipmill.data.shards.finalize import finalize_dataset
from clipmill.data.shards.plan import (
    ShardConfig,
    ShardPlan,
    parse_worker_slice,
    plan_shards,
    read_plan,
    worker_range,
)
from clipmill.data.shards.tar import TarWriter
from clipmill.data.shards.write import write_dataset, write_shards
from clipmill.errors import (
    ArtifactError,
    ConfigError,
    NotFoundError,
    SourceError,
    StorageError,
)
from clipmill.lineage import Parent
from clipmill.storage import pack_dir
from clipmill.telemetry import data_metrics

WritePairs = Callable[[Path, int], Path]
CONFIG = ShardConfig(samples_per_shard=4)


def tree_bytes(folder: Path) -> dict[str, bytes]:
    """Every file of a dataset by its relative name, but for its plan and killed writers' rests."""
    return {
        name: path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.name.startswith(".clipmill-tmp-")
        if not (name := str(path.relative_to(folder))).startswith("plan/")
    }


def test_tars_are_webdataset(tmp_path: Path, write_pairs: WritePairs) -> None:
    source = write_pairs(tmp_path / "source", 10)
    uri = Path(write_dataset(CONFIG, str(source), str(tmp_path / "store")))
    seen = {}
    for path in sorted(uri.glob("shards/*.tar")):
        samples: dict[str, dict[str, bytes]] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                # WebDataset's rule: the key goes up to the first dot.
                key, _, suffix = member.name.partition(".")
                samples.setdefault(key, {})[suffix] = tar.extractfile(member).read()
        for uid, sample in samples.items():
            record = json.loads(sample.pop("json"))
            text = sample.pop("txt").decode()
            ((suffix, image),) = sample.items()
            assert record["uid"] == uid
            assert (source / record["origin"]).read_bytes() == image
            assert (source / record["origin"]).with_suffix(".txt").read_text() == text
            assert record["origin"].endswith(suffix)
            assert (record["width"], record["height"]) == (8, 6 + int(text.split()[1]) % 3)
            seen[record["origin"]] = uid
    assert len(seen) == len(set(seen.values())) == 10


def test_dataset_lists_what_lies_there(tmp_path: Path, write_pairs: WritePairs) -> None:
    source = write_pairs(tmp_path / "source", 10)
    (source / "part0" / "lone.txt").write_text("no image")
    (source / "part0" / "000.jpg").write_bytes(b"")
    dataset = Dataset.open(write_dataset(CONFIG, str(source), str(tmp_path / "store")))
    assert dataset.num_samples == 9
    assert [s.num_samples for s in dataset.shards] == [3, 3, 3]
    assert dataset.quarantine == {"empty_file": 1, "caption_without_image": 1}
    assert dataset.parents == (
        Parent(role="source", uri=f"folder:{source}", digest=dataset.parents[0].digest),
    )
    for info in dataset.shards:
        data = (Path(dataset.uri) / "shards" / info.name).read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (info.num_bytes, info.sha256)
    quarantined = json.loads((Path(dataset.uri) / "dataset.json").read_text())["quarantined"]
    assert [(bad["origin"], bad["reason"]) for bad in quarantined] == [
        ("part0/000.jpg", "empty_file"),
        ("part0/lone.txt", "caption_without_image"),
    ]


def test_equal_sources_give_equal_bytes(tmp_path: Path, write_pairs: WritePairs) -> None:
    trees = []
    for name, num_threads in (("one", 1), ("two", 3)):
        source = write_pairs(tmp_path / name / "source", 10)
        (source / "broken.jpg").write_text("<html>")
        (source / "broken.txt").write_text("broken")
        parent = Parent(role="source", uri="somewhere", digest="0")
        store = tmp_path / name / "store"
        write_dataset(
            CONFIG, str(source), str(store), source_parents=(parent,), num_threads=num_threads
        )
        trees.append(tree_bytes(store))
    assert trees[0] == trees[1]


def test_processes_make_the_same_and_count_it(
    tmp_path: Path, write_pairs: WritePairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_pairs(tmp_path / "source", 10)
    (source / "broken.jpg").write_text("<html>")
    (source / "broken.txt").write_text("broken")
    whole = write_dataset(CONFIG, str(source), str(tmp_path / "whole"))
    monkeypatch.setattr(write, "_MIN_ITEMS_FOR_PROCESSES", 1)
    metrics, calls = data_metrics(), []
    before = [metrics.samples_processed._value.get(), _count(metrics.samples_rejected)]
    store = str(tmp_path / "store")
    uri = write_dataset(
        CONFIG,
        str(source),
        store,
        progress=lambda *counts: calls.append(counts),
        num_processes=2,
    )
    assert tree_bytes(Path(uri)) == tree_bytes(Path(whole))
    assert [metrics.samples_processed._value.get(), _count(metrics.samples_rejected)] == [
        before[0] + 10,
        before[1] + 1,
    ]
    assert len(calls) == 3
    assert calls[-1] == (11, 11)
    plan = plan_shards(CONFIG, str(source), str(tmp_path / "other"))
    shutil.rmtree(source)
    with pytest.raises(SourceError, match="is not a folder"):
        write_shards(plan, 0, 3, num_processes=2)


def _count(metric: Any) -> float:
    return sum(s.value for m in metric.collect() for s in m.samples if s.name.endswith("_total"))


def test_archive_of_a_folder_is_the_same_source(
    tmp_path: Path, write_pairs: WritePairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))
    source = write_pairs(tmp_path / "source", 10)
    pack_dir(source, str(tmp_path / "source.tar"))
    uris = [
        write_dataset(CONFIG, uri, str(tmp_path / name))
        for name, uri in (("one", str(source)), ("two", str(tmp_path / "source.tar")))
    ]
    first, second = (Dataset.open(uri) for uri in uris)
    assert Path(first.uri).name == Path(second.uri).name
    assert first.digest == second.digest
    assert second.parents[0].uri == str(tmp_path / "source.tar")


def test_address_follows_config_and_source(tmp_path: Path, write_pairs: WritePairs) -> None:
    source = write_pairs(tmp_path / "source", 3)
    store = str(tmp_path / "store")
    uri = write_dataset(CONFIG, str(source), store)
    assert write_dataset(ShardConfig(samples_per_shard=2), str(source), store) != uri
    (source / "part0" / "000.txt").write_text("another caption")
    assert write_dataset(CONFIG, str(source), store) != uri


def test_rerun_writes_nothing(tmp_path: Path, write_pairs: WritePairs) -> None:
    source = write_pairs(tmp_path / "source", 10)
    uri = Path(write_dataset(CONFIG, str(source), str(tmp_path / "store")))
    times = {path: path.stat().st_mtime_ns for path in uri.rglob("*")}
    write_dataset(CONFIG, str(source), str(tmp_path / "store"))
    assert {path: path.stat().st_mtime_ns for path in uri.rglob("*")} == times


def test_cut_or_lost_tar_is_made_again(tmp_path: Path, write_pairs: WritePairs) -> None:
    source = write_pairs(tmp_path / "source", 10)
    uri = Path(write_dataset(CONFIG, str(source), str(tmp_path / "store")))
    whole = tree_bytes(uri)
    (uri / "dataset.json").unlink()
    (uri / "shards" / "00000.tar").unlink()
    (uri / "shards" / "00001.tar").write_bytes(b"cut")
    write_dataset(CONFIG, str(source), str(tmp_path / "store"))
    assert tree_bytes(uri) == whole


def test_ranges_in_any_order_make_the_same_dataset(tmp_path: Path, write_pairs: WritePairs) -> None:
    source = write_pairs(tmp_path / "source", 10)
    whole = write_dataset(CONFIG, str(source), str(tmp_path / "whole"))
    plan = plan_shards(CONFIG, str(source), str(tmp_path / "parts"))
    plan = ShardPlan.from_json(json.loads(json.dumps(plan.to_json())))
    assert plan.num_shards == 3
    calls: list[tuple[int, int]] = []
    write_shards(plan, 1, 3, progress=lambda *counts: calls.append(counts))
    assert calls == [(4, 6), (6, 6)]
    with pytest.raises(NotFoundError):
        finalize_dataset(plan)
    write_shards(plan, 0, 2)
    finalize_dataset(plan)
    assert tree_bytes(Path(plan.uri)) == tree_bytes(Path(whole))


def test_finishing_again_keeps_the_layers(
    tmp_path: Path,
    write_pairs: WritePairs,
    add_captions: Callable[[Dataset, str], Dataset],
) -> None:
    source = write_pairs(tmp_path / "source", 3)
    plan = plan_shards(CONFIG, str(source), str(tmp_path / "store"))
    write_shards(plan, 0, 1)
    dataset = add_captions(finalize_dataset(plan), "captions/test-1")
    assert finalize_dataset(plan) == dataset == Dataset.open(plan.uri)


def test_what_came_after_the_plan_is_left_out(tmp_path: Path, write_pairs: WritePairs) -> None:
    source = write_pairs(tmp_path / "source", 3)
    plan = plan_shards(CONFIG, str(source), str(tmp_path / "store"))
    write_pairs(source / "late", 4)
    write_shards(plan, 0, 1)
    assert finalize_dataset(plan).num_samples == 3


def test_late_worker_finds_nothing_to_do(tmp_path: Path, write_pairs: WritePairs) -> None:
    source = write_pairs(tmp_path / "source", 10)
    plan = plan_shards(CONFIG, str(source), str(tmp_path / "store"))
    write_shards(plan, 0, 3)
    finalize_dataset(plan)
    (Path(plan.uri) / "shards" / "00001.tar").unlink()
    write_shards(plan, 0, 3)
    assert not (Path(plan.uri) / "shards" / "00001.tar").exists()


def test_plan_is_found_beside_the_dataset(tmp_path: Path, write_pairs: WritePairs) -> None:
    source = write_pairs(tmp_path / "source", 10)
    plan = plan_shards(CONFIG, str(source), str(tmp_path / "store"))
    assert read_plan(plan.uri) == plan
    with pytest.raises(ArtifactError, match="no plan"):
        read_plan(str(tmp_path))


def test_equal_sources_give_equal_plans(tmp_path: Path, write_pairs: WritePairs) -> None:
    source = write_pairs(tmp_path / "source", 10)
    stores = [tmp_path / name for name in ("one", "two")]
    plans = [plan_shards(CONFIG, str(source), str(store)) for store in stores]
    splits = [list(plan.splits(0, plan.num_shards)) for plan in plans]
    assert splits[0] == splits[1]
    assert [split.num_items for split in splits[0]] == [4, 4, 2]
    assert list(plans[0].splits(1, 2)) == splits[0][1:2]


@pytest.mark.parametrize(("num_shards", "count"), [(10, 3), (2, 5), (1, 1), (1000, 7)])
def test_workers_share_all_shards(num_shards: int, count: int) -> None:
    ranges = [range(*worker_range(num_shards, index, count)) for index in range(count)]
    assert [index for part in ranges for index in part] == list(range(num_shards))
    assert max(map(len, ranges)) - min(map(len, ranges)) <= 1


def test_planned_on_the_command_line(tmp_path: Path, write_pairs: WritePairs) -> None:
    source = write_pairs(tmp_path / "source", 10)
    store = str(tmp_path / "store")

    def run(*arguments: str) -> str:
        return CliRunner().invoke(app, ["data", *arguments]).stdout.strip()

    sets = ("--set", "samples_per_shard=4", "--set", "min_side=1")
    uri = run("plan", str(source), "--store", store, *sets)
    for part in (["--worker", "0/2"], ["--start", "1", "--stop", "2"], ["--start", "2"]):
        assert run("shard", "--plan", uri, *part) == uri
    assert run("finalize", uri) == uri
    whole = write_dataset(CONFIG, str(source), str(tmp_path / "whole"))
    assert tree_bytes(Path(uri)) == tree_bytes(Path(whole))


def test_worker_out_of_range() -> None:
    with pytest.raises(ConfigError, match="worker 3 of 3"):
        worker_range(10, 3, 3)
    assert parse_worker_slice("3/8") == (3, 8)
    for text in ("3", "a/b", "-1/2", "1/"):
        with pytest.raises(ConfigError, match="I/N"):
            parse_worker_slice(text)


def test_nothing_usable(tmp_path: Path, write_pairs: WritePairs) -> None:
    source = write_pairs(tmp_path / "source", 3)
    (source / "part0" / "000.txt").unlink()
    config = dataclasses.replace(CONFIG, min_side=100)
    with pytest.raises(SourceError, match="2 image_too_small, 1 missing_caption"):
        write_dataset(config, str(source), str(tmp_path / "store"))


def test_full_disk(
    tmp_path: Path, write_pairs: WritePairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_pairs(tmp_path / "source", 3)

    def full(tar: TarWriter, pair: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(TarWriter, "add", full)
    with pytest.raises(StorageError, match="No space left on device"):
        write_dataset(CONFIG, str(source), str(tmp_path / "store"))


def test_remote_folder_is_no_source(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="neither a local path"):
        write_dataset(CONFIG, "folder:s3://bucket/images", str(tmp_path))


@pytest.mark.parametrize(
    "values",
    [
        {"samples_per_shard": 0},
        {"max_pixels": 10**9},
        {"min_side": 0},
        {"jpeg_quality": 101},
        {"jpeg_quality": 0, "resize_shorter_side": 64},
    ],
)
def test_config_out_of_range(values: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(values))):
        ShardConfig(**values)


# Runs write_dataset() in children that kill themselves at the n-th call of a function, for each n
# that occurs; then once more to the end. Prints the number of children that were killed.
KILLER = """
import os, signal, sys
from pathlib import Path
from clipmill.data.shards.ingest import IngestConfig
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.write import write_dataset

owner, name = {"rename": (Path, "replace"), "read": (IngestConfig, "read")}[sys.argv[1]]
source, store = sys.argv[2:]
real = getattr(owner, name)

def child(target, kill_at):
    pid = os.fork()
    if not pid:
        count = 0
        def counting(*args, **kwargs):
            nonlocal count
            count += 1
            if count == kill_at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*args, **kwargs)
        setattr(owner, name, counting)
        write_dataset(ShardConfig(samples_per_shard=4), source, target, num_threads=1)
        os._exit(0)
    return os.waitpid(pid, 0)[1]

killed = 0
for kill_at in range(1, 100):
    target = f"{store}/{kill_at}"
    status = child(target, kill_at)
    if status == 0:
        break
    assert os.WTERMSIG(status) == signal.SIGKILL, status
    killed += 1
    assert child(target, 0) == 0
print(killed)
"""


# A rename for splits, listing and plan; for the tars and sidecars of 3 shards; for dataset.json.
# A read for each of 10 items.
@pytest.mark.parametrize(("at", "num_points"), [("rename", 3 + 6 + 1), ("read", 10)])
def test_kill_at_any_point_then_rerun(
    tmp_path: Path, write_pairs: WritePairs, at: str, num_points: int
) -> None:
    source = write_pairs(tmp_path / "source", 10)
    whole = Path(write_dataset(CONFIG, str(source), str(tmp_path / "whole")))
    command = [sys.executable, "-c", KILLER, at, str(source), str(tmp_path / "killed")]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert done.stdout.split() == [str(num_points)]
    for n in range(1, num_points + 1):
        rerun = tmp_path / "killed" / str(n) / "datasets" / whole.name
        assert tree_bytes(rerun) == tree_bytes(whole)


def test_rivals_make_one_dataset(tmp_path: Path, write_pairs: WritePairs) -> None:
    source = write_pairs(tmp_path / "source", 10)
    whole = Path(write_dataset(CONFIG, str(source), str(tmp_path / "whole")))
    program = (
        "import sys\n"
        "from clipmill.data.shards.plan import ShardConfig\n"
        "from clipmill.data.shards.write import write_dataset\n"
        "write_dataset(ShardConfig(samples_per_shard=4), sys.argv[1], sys.argv[2])"
    )
    store = tmp_path / "rivals"
    command = [sys.executable, "-c", program, str(source), str(store)]
    rivals = [subprocess.Popen(command) for _ in range(3)]
    assert [rival.wait() for rival in rivals] == [0, 0, 0]
    assert tree_bytes(store / "datasets" / whole.name) == tree_bytes(whole)


def test_dataset_in_s3_is_the_same(
    tmp_path: Path, write_pairs: WritePairs, s3: dict[str, str]
) -> None:
    source = write_pairs(tmp_path / "source", 10)
    local = Dataset.open(write_dataset(CONFIG, str(source), str(tmp_path / "store")))
    uri = write_dataset(CONFIG, str(source), f"s3://tests/{tmp_path.name}")
    assert Dataset.open(uri).digest == local.digest
    assert write_dataset(CONFIG, str(source), f"s3://tests/{tmp_path.name}") == uri


def test_workers_of_a_plan_in_s3(
    tmp_path: Path, write_pairs: WritePairs, s3: dict[str, str]
) -> None:
    source = write_pairs(tmp_path / "source", 10)
    local = Dataset.open(write_dataset(CONFIG, str(source), str(tmp_path / "store")))
    uri = plan_shards(CONFIG, str(source), f"s3://tests/{tmp_path.name}").uri
    for index in range(2):
        plan = read_plan(uri)
        write_shards(plan, *worker_range(plan.num_shards, index, 2))
    assert finalize_dataset(read_plan(uri)).digest == local.digest

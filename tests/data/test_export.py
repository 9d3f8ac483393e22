"""Exports as other trainers read them, and what reruns and crashes make of them."""

import json
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from clipmill.config import sha256_file
from clipmill.data.dataset import Dataset
from clipmill.data.export import ExportConfig, export
from clipmill.data.loading.view import ViewConfig, in_subset
from clipmill.data.shards.read import read_shard
from clipmill.errors import ArtifactError, ConfigError
from clipmill.lineage import lineage

LAYER = "captions/test-1"
SMALL = ExportConfig(samples_per_tar=4)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def dataset(
    make_dataset: Callable[..., Dataset], add_captions: Callable[[Dataset, str], Dataset]
) -> Dataset:
    return add_captions(make_dataset(11, samples_per_shard=3), LAYER)


def read_tars(uri: str) -> list[dict[str, dict[str, bytes]]]:
    """The samples of each tar, by WebDataset's rule: the key goes up to the first dot."""
    tars = []
    for path in sorted(Path(uri).glob("*.tar")):
        samples: dict[str, dict[str, bytes]] = {}
        with tarfile.open(path) as tar:
            for member in tar:
                key, _, suffix = member.name.partition(".")
                samples.setdefault(key, {})[suffix] = tar.extractfile(member).read()
        tars.append(samples)
    return tars


def originals(dataset: Dataset, cache: Path) -> dict[str, tuple[bytes, str]]:
    found = {}
    for index in range(len(dataset.shards)):
        with read_shard(dataset, index, cache) as reader:
            for row in range(len(reader)):
                found[reader.uid(row)] = (reader.image(row), reader.caption(row))
    return found


def tree(folder: str) -> dict[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in Path(folder).iterdir()
        if not path.name.startswith(".clipmill-tmp-")
    }


def test_real_captions(dataset: Dataset, cache: Path, tmp_path: Path) -> None:
    uri = export(SMALL, dataset.uri, str(tmp_path / "out"), cache)
    tars = read_tars(uri)
    assert [len(tar) for tar in tars] == [4, 4, 3]
    samples = {uid: sample for tar in tars for uid, sample in tar.items()}
    assert list(samples) == list(originals(dataset, cache))
    for uid, (image, caption) in originals(dataset, cache).items():
        record = json.loads(samples[uid].pop("json"))
        assert samples[uid].pop("txt").decode() == caption
        assert list(samples[uid].values()) == [image]
        assert (record["uid"], record["captions"]) == (uid, {"real": [caption]})
    sizes = json.loads((Path(uri) / "sizes.json").read_text())
    assert sizes == {"00000.tar": 4, "00001.tar": 4, "00002.tar": 3}


@pytest.mark.parametrize(
    ("captions", "several", "expected"),
    [
        ("synthetic", "first", ["s0"]),
        ("synthetic", "each", ["s0", "s1", "s2"]),
        ("both", "first", ["real"]),
        ("both", "each", ["real", "s0", "s1", "s2"]),
    ],
)
def test_several_captions(
    dataset: Dataset, cache: Path, tmp_path: Path, captions: str, several: str, expected: list[str]
) -> None:
    view = ViewConfig(captions=captions, layer=LAYER)
    config = ExportConfig(view=view, captions_per_image=several, samples_per_tar=5)
    uri = export(config, dataset.uri, str(tmp_path / "out"), cache)
    texts: dict[str, list[str]] = {}
    for tar in read_tars(uri):
        for key, sample in tar.items():
            texts.setdefault(key.partition("-")[0], []).append(sample["txt"].decode())
    for uid, (_, real) in originals(dataset, cache).items():
        names = {"real": real, **{f"s{k}": f"synthetic {uid} {k}" for k in range(3)}}
        assert texts[uid] == [names[name] for name in expected]
    sizes = json.loads((Path(uri) / "sizes.json").read_text())
    assert sum(sizes.values()) == 11 * len(expected)


def test_random_captions_follow_seed_and_uid(dataset: Dataset, cache: Path, tmp_path: Path) -> None:
    view = ViewConfig(captions="synthetic", layer=LAYER)
    drawn = []
    for seed, size in ((0, 4), (0, 11), (1, 4)):
        config = ExportConfig(
            view=view, captions_per_image="random", seed=seed, samples_per_tar=size
        )
        uri = export(config, dataset.uri, str(tmp_path / "out"), cache)
        drawn.append({k: s["txt"].decode() for tar in read_tars(uri) for k, s in tar.items()})
    assert drawn[0] == drawn[1] != drawn[2]
    assert {text.rpartition(" ")[2] for text in drawn[0].values()} == {"0", "1", "2"}
    assert all(text.split()[1] == uid for uid, text in drawn[0].items())


def test_a_part_of_the_samples(dataset: Dataset, cache: Path, tmp_path: Path) -> None:
    config = ExportConfig(view=ViewConfig(subset_fraction=0.5), samples_per_tar=2)
    tars = read_tars(export(config, dataset.uri, str(tmp_path / "out"), cache))
    inside = [uid for uid in originals(dataset, cache) if in_subset(uid, 0.5)]
    assert 2 < len(inside) < 11
    assert [uid for tar in tars for uid in tar] == inside
    # Tars are filled across the borders of shards.
    assert [len(tar) for tar in tars[:-1]] == [2] * (len(tars) - 1)


def test_an_empty_view_is_an_error(dataset: Dataset, cache: Path, tmp_path: Path) -> None:
    config = ExportConfig(view=ViewConfig(subset_fraction=1e-9))
    with pytest.raises(ArtifactError, match="nothing of"):
        export(config, dataset.uri, str(tmp_path / "out"), cache)


def test_config_out_of_range() -> None:
    with pytest.raises(ConfigError, match="samples_per_tar"):
        ExportConfig(samples_per_tar=0)


def test_a_rerun_keeps_what_is_whole(dataset: Dataset, cache: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    folder = Path(export(SMALL, dataset.uri, out, cache))
    whole = tree(str(folder))
    kept = (folder / "00000.tar").stat().st_mtime_ns
    (folder / "export.json").unlink()
    (folder / "00001.tar").write_bytes(b"cut")
    (folder / "00002.json").unlink()
    calls: list[int] = []
    assert export(SMALL, dataset.uri, out, cache, report=lambda d, n, w: calls.append(d)) == str(
        folder
    )
    assert calls == [4, 8, 11]
    assert tree(str(folder)) == whole
    assert (folder / "00000.tar").stat().st_mtime_ns == kept


def test_the_manifest_names_parents_and_digests(
    dataset: Dataset, cache: Path, tmp_path: Path
) -> None:
    config = ExportConfig(view=ViewConfig(captions="synthetic", layer=LAYER))
    uri = export(config, dataset.uri, str(tmp_path / "out"), cache)
    node = lineage(uri)
    assert (node.kind, [p.kind for p in node.parents]) == ("export", ["dataset", "layer"])
    files = json.loads((Path(uri) / "export.json").read_text())["files"]
    assert {n: f["sha256"] for n, f in files.items()} == {
        path.name: sha256_file(path) for path in Path(uri).glob("*.tar")
    }


# open_clip asks for webdataset <= 0.2.86: later ones mark the end of a tar, unless told not to.
TRAIN = """
import functools, inspect, sys, open_clip
import open_clip_train.data as data
if "eof_value" in inspect.signature(data.tar_file_expander).parameters:
    data.tar_file_expander = functools.partial(data.tar_file_expander, eof_value=None)
open_clip.add_model_config(sys.argv[1])
from open_clip_train.main import main
main(sys.argv[2:])
"""
TINY = {
    "embed_dim": 16,
    "vision_cfg": {"image_size": 32, "layers": 1, "width": 32, "head_width": 16, "patch_size": 16},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture
def open_clip_python() -> str:
    """An interpreter that has open_clip_train and webdataset."""
    python = os.environ.get("CLIPMILL_OPEN_CLIP_PYTHON", sys.executable)
    probe = [python, "-c", "import open_clip_train, webdataset"]
    if subprocess.run(probe, check=False, capture_output=True).returncode:
        pytest.skip(
            "open_clip's trainer needs webdataset: install it, or set CLIPMILL_OPEN_CLIP_PYTHON "
            "to an interpreter that has it"
        )
    return python


@pytest.mark.slow
def test_open_clip_trains_on_it(
    dataset: Dataset, cache: Path, tmp_path: Path, open_clip_python: str
) -> None:
    view = ViewConfig(captions="both", layer=LAYER)
    config = ExportConfig(view=view, captions_per_image="each", samples_per_tar=4)
    uri = export(config, dataset.uri, str(tmp_path / "out"), cache)
    model = tmp_path / "tiny-export.json"
    model.write_text(json.dumps(TINY))
    # No --train-num-samples: open_clip reads sizes.json.
    arguments = (
        f"--train-data {uri}/{{00000..00002}}.tar --dataset-type webdataset --model {model.stem} "
        "--batch-size 8 --epochs 1 --workers 1 --warmup 1 --log-every-n-steps 1 --precision fp32 "
        f"--device cpu --logs {tmp_path / 'logs'} --name run"
    )
    done = subprocess.run(
        [open_clip_python, "-c", TRAIN, str(model), *arguments.split()],
        check=False,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    log = (tmp_path / "logs" / "run" / "out.log").read_text()
    # 44 pairs in batches of 8, rounded up.
    steps = [line for line in log.splitlines() if "Train Epoch: 0 [" in line]
    assert len(steps) == 6, log
    assert "Handling webdataset error" not in log
    assert (tmp_path / "logs" / "run" / "checkpoints" / "epoch_1.pt").exists()

"""``clipmill data stats, preview, verify, export`` as a person meets them."""

import io
import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from clipmill.cli import stats_tables
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.write import write_dataset
from clipmill.data.stats import Distribution

RUN = [sys.executable, "-W", "error", "-c", "from clipmill.cli import main; main()"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("look")


@pytest.fixture(scope="module")
def uri(folder: Path) -> str:
    source = folder / "source"
    source.mkdir()
    for i in range(5):
        pixels = np.random.default_rng(i).integers(0, 256, (16, 16, 3), np.uint8)
        Image.fromarray(pixels).save(source / f"{i}.jpg")
        (source / f"{i}.txt").write_text(f"thing {i}")
    return write_dataset(ShardConfig(samples_per_shard=2), str(source), str(folder / "store"))


def clipmill(folder: Path, *arguments: str, columns: int = 200) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "CLIPMILL_CACHE": str(folder / "cache"),
        "COLUMNS": str(columns),
    }
    return subprocess.run(
        [*RUN, "data", *arguments],
        capture_output=True,
        text=True,
        check=False,
        cwd=folder,
        env=environment,
    )


def test_stats(folder: Path, uri: str) -> None:
    shown = clipmill(folder, "stats", uri)
    assert shown.returncode == 0, shown.stderr
    assert "5 in 3 shards" in shown.stdout
    assert "95%" in shown.stdout
    found = json.loads(clipmill(folder, "stats", uri, "--json", "--shards", "2").stdout)
    assert (found["num_samples"], found["shards_read"]) == (5, 2)
    assert found["captions"]["real"]["words"]["mean"] == 2


def test_stats_on_a_narrow_terminal(folder: Path, uri: str) -> None:
    lines = clipmill(folder, "stats", uri, columns=80).stdout.splitlines()
    assert max(map(len, lines)) <= 80
    for name in ("mean", "least", "50%", "most", "least to most"):
        assert sum(name in line for line in lines) == 3, name
    words, characters = (line.split()[:6] for line in lines if line.startswith(" real "))
    assert words == ["real", "5", "2", "2", "2", "2"]
    assert characters == ["real", "5", "7", "7", "7", "7"]


def test_preview(folder: Path, uri: str) -> None:
    done = clipmill(folder, "preview", uri, "--count", "3", "--output", "page.html")
    assert (done.returncode, done.stdout.strip()) == (0, "page.html"), done.stderr
    assert (folder / "page.html").read_text("utf-8").count("<article") == 3
    refused = clipmill(folder, "preview", uri, "--top", "score/x:real")
    assert refused.returncode == 2
    assert "score the dataset first" in refused.stderr


def test_verify(folder: Path, uri: str) -> None:
    whole = clipmill(folder, "verify", uri)
    assert (whole.returncode, ": whole (" in whole.stdout) == (0, True), whole.stderr
    copy = folder / "damaged"
    subprocess.run(["cp", "-r", uri, str(copy)], check=True)
    (copy / "shards" / "00001.tar").write_bytes(b"")
    damaged = clipmill(folder, "verify", str(copy))
    assert damaged.returncode == 1
    assert f"damaged: {copy}/shards/00001.tar is cut" in damaged.stdout
    found = json.loads(clipmill(folder, "verify", str(copy), "--json", "--sizes-only").stdout)
    assert not found["whole"]
    assert [fault["uri"] for fault in found["faults"]] == [f"{copy}/shards/00001.tar"]


def test_export(folder: Path, uri: str) -> None:
    size = ("--set", "samples_per_tar=4")
    done = clipmill(folder, "export", uri, "--store", str(folder / "out"), *size)
    assert done.returncode == 0, done.stderr
    exported = Path(done.stdout.strip())
    with tarfile.open(exported / "00001.tar") as tar:
        assert len(tar.getnames()) == 3
    refused = clipmill(folder, "export", uri, "--store", "out", "--captions", "synthetic")
    assert refused.returncode == 2


def test_names_have_room_beside_large_numbers_and_missing_ones() -> None:
    many = Distribution(
        count=1234567,
        missing=1234,
        mean=123456.7,
        low=1,
        high=123456,
        quantiles=(1, 2, 3, 4, 5),
        bins=(1,) * 24,
    )
    none = Distribution(count=0, missing=1234567)
    console = Console(width=80, file=io.StringIO())
    few = Distribution(count=9, mean=1, low=1, high=2, quantiles=(1, 1, 1, 1, 1), bins=(1,) * 24)
    console.print(stats_tables._distributions("Scores", "kind", {"real": few}, (0.5,)))
    assert "█" * 24 in console.file.getvalue()
    rows = {"score/clip-laion-2b-0123abcd: real": many, "score/text: words": none}
    console.print(stats_tables._distributions("Scores", "layer: column", rows, (0.5,)))
    text = console.file.getvalue()
    assert "…" not in text
    assert "score/text: words" in text
    assert "1,234,567 missing" in text
    assert max(map(len, text.splitlines())) <= 80

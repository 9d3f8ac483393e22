"""The page of samples, read as a browser does: by its elements."""

import base64
import io
import re
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from clipmill.data.dataset import Dataset
from clipmill.data.layers import commit_layer, write_layer_shard
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.read import read_shard
from clipmill.data.shards.write import write_dataset
from clipmill.data.stats import StreamingRange
from clipmill.errors import ConfigError
from clipmill.report.html.charts import share_below
from clipmill.report.preview import PreviewConfig, dataset_page, select_samples

LAYER, SCORE, RULE = "captions/coca-1", "score/clip", "select/basic"


class Text(HTMLParser):
    """The words of a page, and the ids and pictures of its samples."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words: list[str] = []
        self.samples: list[str] = []
        self.pictures: list[bytes] = []
        self.tags: set[str] = set()
        self.feed(page.partition("</head>")[2])

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.tags.add(tag)
        if tag == "article":
            self.samples.append((values["id"] or "").removeprefix("uid-"))
        if tag == "img":
            self.pictures.append(base64.b64decode((values["src"] or "").partition(",")[2]))

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(self.words)


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "cache"


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    """Eleven pictures, each of one color; sample i has the score i, but the third has none."""
    source = tmp_path / "source"
    source.mkdir()
    for i in range(11):
        Image.new("RGB", (20, 20 + 30 * (i == 5)), (i * 20, 0, 0)).save(source / f"{i:02d}.png")
        (source / f"{i:02d}.txt").write_text("<b>\u202ebold & <script>" if i == 4 else f"thing {i}")
    uri = write_dataset(ShardConfig(samples_per_shard=4), str(source), str(tmp_path / "store"))
    dataset = Dataset.open(uri)
    for index in range(3):
        uids = dataset.uids(index)
        numbers = [index * 4 + row for row in range(len(uids))]
        tables = {
            LAYER: {
                "captions": [[f"said of {n}", f"again of {n}"] for n in numbers],
                "fallback": [n == 7 for n in numbers],
            },
            SCORE: {
                "real": pa.array([None if n == 3 else n / 10 for n in numbers], pa.float32()),
                "coca-1": [n / 100 for n in numbers],
                "distance": [2**n for n in numbers],
            },
            RULE: {
                "keep": [n % 2 == 0 for n in numbers],
                "refused_by": [None if n % 2 == 0 else "caption-length" for n in numbers],
                "caption": ["real" for _ in numbers],
                "caption_index": pa.array([0 for _ in numbers], pa.int32()),
            },
        }
        for name, columns in tables.items():
            write_layer_shard(dataset, name, index, pa.table({"uid": uids, **columns}))
    for name in (LAYER, SCORE, RULE):
        dataset = commit_layer(dataset, name, parents=(), detail={})
    return dataset


@pytest.fixture
def uid(dataset: Dataset, cache: Path) -> Callable[[int], str]:
    """The uid of sample i, by its color."""
    found = {}
    for index in range(3):
        with read_shard(dataset, index, cache) as reader:
            for row in range(len(reader)):
                red = np.asarray(Image.open(io.BytesIO(reader.image(row))))[0, 0, 0]
                found[int(red) // 20] = reader.uid(row)
    return found.__getitem__


def silent(done: int, total: int, words: str) -> None:
    pass


def page(dataset: Dataset, cache: Path, **values: object) -> Text:
    return Text(dataset_page(dataset, PreviewConfig(**values), cache, report=silent))


def test_best_and_worst(dataset: Dataset, cache: Path, uid: Callable[[int], str]) -> None:
    found = page(
        dataset, cache, highest_by=f"{SCORE}:real", lowest_by=f"{SCORE}:real", num_samples=4
    )
    assert found.samples == [uid(i) for i in (10, 9, 8, 7, 0, 1, 2, 4)]
    reds = [np.asarray(Image.open(io.BytesIO(data)))[0, 0, 0] for data in found.pictures]
    assert [int(red) // 20 for red in reds] == [10, 9, 8, 7, 0, 1, 2, 4]
    assert "Best by score/clip:real" in found.text


def test_of_equal_scores_the_first(dataset: Dataset, cache: Path) -> None:
    for index in range(3):
        uids = dataset.uids(index)
        write_layer_shard(
            dataset, "score/same", index, pa.table({"uid": uids, "x": [1.0] * len(uids)})
        )
    same = commit_layer(dataset, "score/same", parents=(), detail={})
    for name in ("highest_by", "lowest_by"):
        (chosen,) = select_samples(
            same, PreviewConfig(num_samples=5, **{name: "score/same:x"}), cache
        )
        assert chosen.rows == ((0, 0), (0, 1), (0, 2), (0, 3), (1, 0))


def test_at_random(dataset: Dataset, cache: Path) -> None:
    drawn = [page(dataset, cache, num_samples=5, seed=seed).samples for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(set(drawn[0])) == 5
    everything = page(dataset, cache, num_samples=100).samples
    assert sorted(everything) == sorted(u for index in range(3) for u in dataset.uids(index))


def test_by_uid(dataset: Dataset, cache: Path, uid: Callable[[int], str]) -> None:
    found = page(dataset, cache, uids=(uid(6), uid(2)[:10], uid(6)))
    assert found.samples == [uid(6), uid(2)]
    with pytest.raises(ConfigError, match="no sample nobody"):
        page(dataset, cache, uids=("nobody",))


def test_all_that_is_known_of_a_sample(
    dataset: Dataset, cache: Path, uid: Callable[[int], str]
) -> None:
    text = page(dataset, cache, uids=(uid(7),)).text
    for words in (
        "thing 7",
        "said of 7",
        "again of 7",
        "3, 3 words · fallback",
        "score/clip: distance 128",
        "basic: refused by caption-length",
        "20 x 20 pixels",
        "07.png",
        "00001.tar, row 3",
    ):
        assert words in text
    assert re.search(r"score/clip\s+0\.7\s", text)  # of the real caption
    assert re.search(r"score/clip\s+0\.07\s", text)  # of the synthetic one
    assert "basic: kept" in page(dataset, cache, uids=(uid(6),)).text
    assert re.search(r"score/clip\s+missing", page(dataset, cache, uids=(uid(3),)).text)


def test_captions_are_never_markup(
    dataset: Dataset, cache: Path, uid: Callable[[int], str]
) -> None:
    found = page(dataset, cache, uids=(uid(4),))
    assert "<b>\u202ebold & <script>" in found.words
    assert not found.tags & {"script", "link", "iframe"}


def test_nothing_is_fetched(dataset: Dataset, cache: Path) -> None:
    text = dataset_page(dataset, PreviewConfig(), cache, report=silent)
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", text)
    assert not re.findall(r"url\(|@import", text)
    assert "default-src &#x27;none&#x27;" in text


def test_without_layers(tmp_path: Path, cache: Path) -> None:
    source = tmp_path / "plain"
    source.mkdir()
    Image.new("RGB", (300, 900)).save(source / "a.jpg")
    (source / "a.txt").write_text("word " * 5000)
    plain = Dataset.open(write_dataset(ShardConfig(), str(source), str(tmp_path / "plain-store")))
    found = page(plain, cache)
    assert len(found.samples) == 1
    assert "… 24,499 more characters" in found.text
    assert "Scores" not in found.text


@pytest.mark.parametrize(
    ("score", "expected"),
    [
        ("score/other:real", "score/clip:COLUMN"),
        (f"{SCORE}:other", "score/clip:real, score/clip:coca-1"),
    ],
)
def test_a_score_that_is_not_there(
    dataset: Dataset, cache: Path, score: str, expected: str
) -> None:
    with pytest.raises(ConfigError, match=expected):
        page(dataset, cache, lowest_by=score)


def test_count_out_of_range() -> None:
    with pytest.raises(ConfigError, match="num_samples was 0"):
        PreviewConfig(num_samples=0)


def test_share_below_is_numpys() -> None:
    values = np.random.default_rng(0).normal(size=5000)
    extent = StreamingRange()
    extent.add(values)
    distribution = extent.distribution([values])
    for value in (-1.0, 0.0, 0.3, 2.0):
        assert share_below(value, distribution) == pytest.approx((values < value).mean(), abs=0.02)
    assert share_below(values.max() + 1, distribution) == 1

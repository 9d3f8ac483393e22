"""Embeddings as a layer, and heads in the formats of LAION's, against their modules."""

import re
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from clipmill import stages
from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.layers import read_layer
from clipmill.data.scoring.embeddings import HeadScoreConfig
from clipmill.data.scoring.score import ScoreConfig, score
from clipmill.data.scoring.scorers import ClipScoreConfig
from clipmill.data.shards.read import read_shard
from clipmill.errors import ArtifactError, ConfigError
from clipmill.images import decode_rgb
from clipmill.lineage import lineage
from clipmill.models.checkpoint import CheckpointMetadata, save_checkpoint
from clipmill.models.clip import load_clip
from clipmill.models.towers import build_clip
from helpers.bare_dataset import add_layer, bare_dataset
from helpers.tiny_clip import CLIP

WIDTH = 12


def silent(done, total, words):
    pass


def fail(done, total, words):
    pytest.fail("worked again")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def clip(tmp_path):
    torch.manual_seed(0)
    metadata = CheckpointMetadata(kind="clip", architecture=CLIP.to_json(), recipe={})
    return save_checkpoint(str(tmp_path / "clip"), metadata, build_clip(CLIP).state_dict()).uri


@pytest.fixture
def embedded(tmp_path):
    """A dataset whose row 3 has no embedding, and its unit embeddings."""
    rows = F.normalize(torch.randn(9, WIDTH, generator=torch.Generator().manual_seed(0)), dim=-1)
    values = pa.array(rows.half().numpy().ravel())
    mask = pa.array(np.arange(9) == 3)
    column = pa.FixedSizeListArray.from_arrays(values, WIDTH, mask=mask)
    dataset = bare_dataset(tmp_path / "bare", (4, 0, 5))
    return add_layer(dataset, "score/embedding-1", {"image": column}), rows


def column_of(uri, layer, name):
    dataset = Dataset.open(uri)
    tables = [read_layer(dataset, layer, i, cache_folder()) for i in range(len(dataset.shards))]
    return pa.concat_tables(tables)[name]


class AestheticV2(nn.Module):
    """As improved-aesthetic-predictor lays out its layers."""

    def __init__(self):
        super().__init__()
        widths = [WIDTH, 10, 8, 6, 4, 1]
        linear = [nn.Linear(a, b) for a, b in pairwise(widths)]
        dropout = nn.Dropout(0.2)
        first = [module for layer in linear[:3] for module in (layer, dropout)]
        self.layers = nn.Sequential(*first, *linear[3:])

    def forward(self, x):
        return self.layers(x)


class H14Nsfw(nn.Module):
    """As LAION's h14_nsfw_model lays out its layers."""

    def __init__(self):
        super().__init__()
        widths = [WIDTH, 16, 24, 16, 8, 6, 4]
        hidden = [
            module
            for a, b in pairwise(widths)
            for module in (nn.Linear(a, b), nn.ReLU(), nn.Dropout(0.2))
        ]
        self.layers = nn.Sequential(*hidden[:-2], nn.Linear(4, 1))

    def forward(self, x):
        return self.layers(x)


class Normalized(nn.Module):
    """As the PyTorch form of LAION's ViT-L/14 detector lays out its layers."""

    def __init__(self):
        super().__init__()
        self.norm = nn.Module()
        self.norm.register_buffer("mean", torch.randn(WIDTH) / 10)
        self.norm.register_buffer("variance", torch.rand(WIDTH) + 0.1)
        self.linear_1, self.linear_2 = nn.Linear(WIDTH, 8), nn.Linear(8, 16)
        self.linear_3, self.linear_4 = nn.Linear(16, 8), nn.Linear(8, 1)

    def forward(self, x):
        x = (x - self.norm.mean) / self.norm.variance.sqrt()
        for layer in (self.linear_1, self.linear_2, self.linear_3):
            x = layer(x).relu()
        return self.linear_4(x).sigmoid()


class Linear(nn.Linear):
    """As LAION-Aesthetics V1 is."""

    def __init__(self):
        super().__init__(WIDTH, 1)


HEADS = [AestheticV2, H14Nsfw, Normalized, Linear]


@pytest.mark.parametrize("kind", HEADS)
@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_scores_are_those_of_the_head(embedded, tmp_path, kind, suffix):
    dataset, rows = embedded
    torch.manual_seed(1)
    head = kind().eval()
    for parameter in head.parameters():
        parameter.data *= 3  # or deep layers give nearly the same for all rows
    file = tmp_path / f"head{suffix}"
    (save_file if suffix == ".safetensors" else torch.save)(head.state_dict(), file)
    config = ScoreConfig(head=HeadScoreConfig(name="aesthetic", file=str(file)))
    (layer,) = score(config, dataset.uri, report=silent)
    assert re.fullmatch(r"score/aesthetic-[0-9a-f]{8}", layer)
    scores = column_of(dataset.uri, layer, "aesthetic").to_pylist()
    with torch.no_grad():
        expected = head(rows)[:, 0].tolist()
    assert scores[3] is None
    for row in (0, 1, 2, 4, 5, 6, 7, 8):
        assert scores[row] == pytest.approx(expected[row], rel=5e-3, abs=1e-3)
    assert np.std(expected) > 1e-2
    parents = {parent.role: parent for parent in lineage(dataset.layer_uri(layer)).parents}
    assert parents["head"].uri == str(file)
    assert parents["score"].uri == dataset.layer_uri("score/embedding-1")
    assert score(config, dataset.uri, report=fail) == (layer,)


def test_a_head_under_another_key_and_given_functions(embedded, tmp_path):
    dataset, rows = embedded
    torch.manual_seed(1)
    layers = nn.Sequential(nn.Linear(WIDTH, 8), nn.ReLU(), nn.Linear(8, 1))
    state = {f"module.layers.{name}": tensor for name, tensor in layers.state_dict().items()}
    file = tmp_path / "head.pt"
    torch.save({"state_dict": state, "epoch": 3}, file)
    head = HeadScoreConfig(name="watermark", file=str(file), activation="relu", output="sigmoid")
    (layer,) = score(ScoreConfig(head=head), dataset.uri, report=silent)
    scores = column_of(dataset.uri, layer, "watermark").to_pylist()
    with torch.no_grad():
        expected = layers(rows).sigmoid()[:, 0]
    assert scores[0] == pytest.approx(float(expected[0]), abs=1e-3)
    unknown = HeadScoreConfig(name="watermark", file=str(file))
    with pytest.raises(ConfigError, match="numbered 0, 2, which doesn't tell the activation"):
        score(ScoreConfig(head=unknown), dataset.uri, report=silent)


def with_tensor(name, shape):
    state = AestheticV2().state_dict()
    state[name] = torch.zeros(shape)
    return state


@pytest.mark.parametrize(
    ("state", "trouble"),
    [
        ({"classifier.weight": torch.zeros(1, WIDTH)}, "tensors classifier.weight"),
        ({"weight": torch.zeros(1, WIDTH)}, "tensors 0.weight"),
        (with_tensor("layers.9.weight", (1, 1)), "tensors layers"),
        (with_tensor("layers.2.weight", (8, 11)), r"shape \(8, 11\) with a bias of \(8,\) after"),
        (with_tensor("layers.4.bias", (7,)), r"shape \(6, 8\) with a bias of \(7,\)"),
        ({"weight": torch.zeros(5, WIDTH), "bias": torch.zeros(5)}, "5 outputs"),
        (
            Normalized().state_dict() | {"norm.mean": torch.zeros(3)},
            r"norm.mean of shape \(3,\)",
        ),
    ],
)
def test_what_isnt_a_head(embedded, tmp_path, state, trouble):
    dataset, _ = embedded
    file = tmp_path / "head.pth"
    torch.save(state, file)
    config = ScoreConfig(head=HeadScoreConfig(name="aesthetic", file=str(file)))
    with pytest.raises(ConfigError, match=f"isn't a head on embeddings: it has.*{trouble}"):
        score(config, dataset.uri, report=silent)


def test_embeddings_of_another_width(embedded, tmp_path):
    dataset, _ = embedded
    file = tmp_path / "head.pth"
    torch.save(nn.Linear(768, 1).state_dict(), file)
    config = ScoreConfig(head=HeadScoreConfig(name="aesthetic", file=str(file)))
    with pytest.raises(ConfigError, match="score/embedding-1 are 12 wide") as caught:
        score(config, dataset.uri, report=silent)
    assert "768, the head's width" in str(caught.value)


def test_a_pickle_with_code_is_refused(embedded, tmp_path):
    dataset, _ = embedded
    file = tmp_path / "head.pth"
    torch.save(nn.Linear(WIDTH, 1), file)
    config = ScoreConfig(head=HeadScoreConfig(name="aesthetic", file=str(file)))
    with pytest.raises(ArtifactError, match="can't be read as weights"):
        score(config, dataset.uri, report=silent)


def test_a_head_without_embeddings_or_file(tmp_path):
    dataset = bare_dataset(tmp_path / "bare", (2,))
    config = ScoreConfig(head=HeadScoreConfig(name="aesthetic", file="x.pth"))
    with pytest.raises(ConfigError, match="no layers of the dataset are named score/embedding"):
        score(config, dataset.uri, report=silent)
    with pytest.raises(ConfigError, match=r"head\.file was empty"):
        score(ScoreConfig(head=HeadScoreConfig(name="x")), dataset.uri, report=silent)


@pytest.mark.parametrize("name", ["", "clip", "Aesthetic", "a/b"])
def test_names_of_heads(name):
    with pytest.raises(ConfigError, match=r"head\.name was"):
        HeadScoreConfig(name=name)


def test_embeddings_are_those_of_the_clip(make_dataset, clip, monkeypatch):
    dataset = make_dataset(count=7)

    def decode(data):
        return None if data == broken else decode_rgb(data)

    with read_shard(dataset, 0, cache_folder()) as reader:
        broken = reader.image(1)
    monkeypatch.setattr("clipmill.data.scoring.score._decode", decode)
    (layer,) = stages.score("score-embedding", [], dataset.uri, "", model=clip)
    embeddings = column_of(dataset.uri, layer, "image")
    assert embeddings.type == pa.list_(pa.float16(), CLIP.embed_dim)
    model = load_clip(clip)
    row = 0
    for index in range(len(dataset.shards)):
        with read_shard(dataset, index, cache_folder()) as reader:
            for number in range(len(reader)):
                stored = embeddings[row].as_py()
                if reader.image(number) == broken:
                    assert stored is None
                else:
                    (expected,) = model.encode_images([decode_rgb(reader.image(number))])
                    assert np.abs(np.array(stored) - expected.numpy()).max() < 2e-3
                row += 1
    assert row == 7


def test_embeddings_in_parts_and_without_a_readable_image(make_dataset, clip, monkeypatch):
    dataset = make_dataset(count=7)
    monkeypatch.setattr("clipmill.data.scoring.score._decode", lambda data: None)
    config = ScoreConfig(embedding=ClipScoreConfig(model=clip))
    (layer,) = score(config, dataset.uri, report=silent, start=0, stop=1)
    assert layer not in Dataset.open(dataset.uri).layers
    assert score(config, dataset.uri, report=silent, start=1) == (layer,)
    embeddings = column_of(dataset.uri, layer, "image")
    assert embeddings.null_count == 7
    assert embeddings.type.list_size == CLIP.embed_dim

"""Mixtures of datasets: shares, epochs of each source, and orders that nothing else changes."""

import itertools
import json
import math
from collections import Counter
from dataclasses import replace

import pyarrow as pa
import pytest
import torch

from clipmill.data.dataset import Dataset
from clipmill.data.layers import commit_layer, write_layer_shard
from clipmill.data.loading.config import DataLoaderConfig
from clipmill.data.loading.dataloader import PairDataLoader
from clipmill.data.loading.mixture import (
    BLOCK,
    Mixture,
    MixtureOrder,
    MixtureSource,
    parse_mixture,
)
from clipmill.data.loading.view import ViewConfig
from clipmill.data.shards.plan import ShardConfig
from clipmill.data.shards.write import write_dataset
from clipmill.errors import ArtifactError, ConfigError
from helpers.bare_dataset import bare_dataset

LAYER = "captions/test-1"
SIZES = {"large": 23, "small": 5}


@pytest.fixture(scope="module")
def uris(tmp_path_factory):
    """Two datasets, whose images are of one color each; the large one has a caption layer."""
    from PIL import Image

    folder = tmp_path_factory.mktemp("sources")
    made = {}
    for label, count in SIZES.items():
        source = folder / label
        source.mkdir()
        for i in range(count):
            Image.new("RGB", (4, 4), (i, len(label), 0)).save(source / f"{label}{i}.png")
            (source / f"{label}{i}.txt").write_text(f"{label} {i}")
        config = ShardConfig(samples_per_shard=4)
        made[label] = write_dataset(config, str(source), str(folder / "store"))
    large = Dataset.open(made["large"])
    for index in range(len(large.shards)):
        uids = large.uids(index)
        table = pa.table({"uid": uids, "captions": [[f"synthetic {uid}"] for uid in uids]})
        write_layer_shard(large, LAYER, index, table)
    commit_layer(large, LAYER, parents=(), detail={})
    return made


def configs(uris, large=0.7, small=0.3):
    return (
        MixtureSource(dataset=uris["large"], weight=large, name="large"),
        MixtureSource(dataset=uris["small"], weight=small, name="small"),
    )


def transform(data, random):
    return torch.full((3, 1, 1), float(random.random()))


def tokenize(texts):
    return torch.tensor([list(text.ljust(48).encode()) for text in texts])


def batches(mixture, tmp_path, count, *, world_size=1, num_workers=0, **options):
    """Sources, captions and crops of each batch, of all ranks together."""
    loaders = [
        PairDataLoader(
            mixture,
            DataLoaderConfig(num_workers=num_workers, shuffle_shards=2),
            batch_size=8,
            transform=transform,
            tokenize=tokenize,
            cache=tmp_path,
            rank=rank,
            world_size=world_size,
            **options,
        )
        for rank in range(world_size)
    ]
    ranks = [list(itertools.islice(loader, count)) for loader in loaders]
    found = []
    for parts in zip(*ranks, strict=True):
        sources = [mixture.names[i] for part in parts for i in part.source_B]
        texts = [bytes(t.tolist()).decode().rstrip() for p in parts for t in p.real_BT]
        crops = torch.cat([part.images_B3HW for part in parts]).flatten().tolist()
        found.append((sources, texts, crops))
    return found


@pytest.mark.parametrize("quotas", [(70_000, 30_000), (1, 99_998, 1), (BLOCK,)])
def test_each_block_has_exactly_its_shares(quotas):
    order = MixtureOrder(quotas, seed=3)
    located = [order.locate(position) for position in range(2 * BLOCK)]
    for block in (located[:BLOCK], located):
        counts = Counter(source for source, _ in block)
        assert [counts[i] for i in range(len(quotas))] == [
            quota * len(block) // BLOCK for quota in quotas
        ]
    for source in range(len(quotas)):
        own = [position for s, position in located if s == source]
        assert own == list(range(len(own)))
    for position in (0, 1, 777, BLOCK - 1, BLOCK, BLOCK + 5, 2 * BLOCK - 3):
        counts = Counter(source for source, _ in located[:position])
        assert order.num_seen(position) == [counts[i] for i in range(len(quotas))]


def test_a_batch_has_the_shares_in_expectation():
    order = MixtureOrder((70_000, 30_000), seed=0)
    size = 100
    numbers = [
        sum(order.locate(p)[0] for p in range(start, start + size))
        for start in range(0, BLOCK, size)
    ]
    mean = sum(numbers) / len(numbers)
    deviation = math.sqrt(sum((n - mean) ** 2 for n in numbers) / len(numbers))
    assert mean == 30
    # That of independent draws is the root of 100 * 0.7 * 0.3.
    assert deviation == pytest.approx(4.58, rel=0.1)
    other = MixtureOrder((70_000, 30_000), seed=1)
    assert any(order.locate(p) != other.locate(p) for p in range(20))
    assert order.locate(10**15)[1] == pytest.approx(10**15 * 0.7, rel=0.6)  # at once


def test_ranks_workers_and_the_order_of_the_sources_change_nothing(uris, tmp_path):
    mixture = Mixture.open(configs(uris), ViewConfig())
    expected = batches(mixture, tmp_path, 6)
    assert batches(mixture, tmp_path, 6, world_size=2, num_workers=1) == expected
    assert batches(mixture, tmp_path, 6, world_size=8) == expected
    assert batches(mixture, tmp_path, 3, start_step=3, num_workers=2) == expected[3:]
    other = Mixture.open(configs(uris)[::-1], ViewConfig())
    assert batches(other, tmp_path, 6) == expected
    assert batches(mixture, tmp_path, 6, seed=1) != expected


def test_a_source_begins_its_next_epoch_with_a_new_shuffle(uris, tmp_path):
    mixture = Mixture.open(configs(uris), ViewConfig())
    found = batches(mixture, tmp_path, 30)
    by_source = {name: [] for name in SIZES}
    for sources, texts, _ in found:
        for source, text in zip(sources, texts, strict=True):
            assert text.startswith(source)
            by_source[source].append(text)
    assert len(by_source["small"]) == pytest.approx(0.3 * 240, rel=0.2)
    epochs = {}
    for name, size in SIZES.items():
        texts = by_source[name]
        epochs[name] = [texts[i : i + size] for i in range(0, len(texts) - size + 1, size)]
        assert len(epochs[name]) > 2
        assert all(sorted(e) == sorted(f"{name} {i}" for i in range(size)) for e in epochs[name])
        assert epochs[name][0] != epochs[name][1]
    # Crops of a sample differ from epoch to epoch.
    crops = [c for _, _, crops in found for c in crops]
    assert len(set(crops)) > 200


def test_each_source_has_its_own_view(uris, tmp_path):
    own = configs(uris)
    views = Mixture.open((replace(own[0], subset_fraction=0.4), own[1]), ViewConfig())
    sizes = {s.name: sum(s.view.shard_sizes()) for s in views.sources}
    assert sizes["small"] == 5
    assert 0 < sizes["large"] < 23
    texts = {text for _, texts, _ in batches(views, tmp_path, 20) for text in texts}
    assert len(texts) == sum(sizes.values())
    assert {parent.role for parent in views.parents} == {"dataset"}
    assert len(views.parents) == 2


def test_weights_are_relative_and_places_no_part_of_the_identity(uris):
    found = Mixture.open(configs(uris, 7, 3), ViewConfig()).resolve()
    assert found == Mixture.open(configs(uris)[::-1], ViewConfig()).resolve()
    assert found != Mixture.open(configs(uris, 3, 7), ViewConfig()).resolve()
    assert sorted(source.weight for source in found) == [0.3, 0.7]
    assert all(source.dataset == Dataset.open(uris[name]).digest
               for source, name in zip(found, Mixture.open(configs(uris), ViewConfig()).names,
                                       strict=True))  # fmt: skip


def test_thirds_fill_a_block(tmp_path):
    sources = []
    for i in range(3):
        dataset = bare_dataset(tmp_path / str(i), [2], label=f"x{i}")
        sources.append(MixtureSource(dataset=dataset.uri, weight=1e300, name=f"n{i}"))
    assert Mixture.open(sources, ViewConfig()).quotas == (33_334, 33_333, 33_333)


@pytest.mark.parametrize("weight", [0, -1, math.inf, math.nan])
def test_a_weight_must_be_a_number_above_0(weight):
    with pytest.raises(ConfigError, match="weight of out/x was"):
        MixtureSource(dataset="out/x", weight=weight)
    with pytest.raises(ConfigError, match="weight of out/x was"):
        parse_mixture([f"out/x={weight}"])


def test_sources_that_can_not_be(uris, tmp_path):
    large, small = configs(uris)
    cases = {
        "source large of the mixture: there is no dataset": (
            ArtifactError,
            (replace(large, dataset=str(tmp_path)), small),
            ViewConfig(),
        ),
        "source small of the mixture: 'captions/test-1' is not a captions layer": (
            ConfigError,
            (large, small),
            ViewConfig(captions="both", layer=LAYER),
        ),
        "the mixture has the same dataset more than once": (
            ConfigError,
            (large, replace(large, name="again")),
            ViewConfig(),
        ),
        "have the same name 'small'": (
            ConfigError,
            (replace(large, name="small"), small),
            ViewConfig(),
        ),
        "captions differ: ": (
            ConfigError,
            (replace(large, captions="synthetic", layer=LAYER), small),
            ViewConfig(),
        ),
        "less than a sample of 100,000": (
            ConfigError,
            (large, replace(small, weight=1e-7)),
            ViewConfig(),
        ),
    }
    for words, (kind, sources, view) in cases.items():
        with pytest.raises(kind, match=words):
            Mixture.open(sources, view)
    empty = Mixture.open((large, replace(small, subset_fraction=1e-9)), ViewConfig())
    with pytest.raises(ConfigError, match="has no sample"):
        batches(empty, tmp_path, 1)


def test_sources_are_written_as_text_or_json(tmp_path):
    path = tmp_path / "mixture.json"
    path.write_text(json.dumps([{"dataset": "s3://a/c", "weight": 2, "layer": LAYER}]))
    found = parse_mixture(["s3://a/datasets/x=0.7", "coco=/a=b/y=.3", str(path)])
    assert [(s.label, s.dataset, s.weight, s.layer) for s in found] == [
        ("x", "s3://a/datasets/x", 0.7, None),
        ("coco", "/a=b/y", 0.3, None),
        ("c", "s3://a/c", 2.0, LAYER),
    ]
    path.write_text('{"dataset": "x"}')
    for value in ("s3://a/x", "s3://a/x=much", "=1", str(path)):
        with pytest.raises(ConfigError):
            parse_mixture([value])
    path.write_text('[{"dataset": "x", "weigth": 1}]')
    with pytest.raises(ConfigError, match=r"mixture.json\[0\].weigth is not a field"):
        parse_mixture([str(path)])

"""Batches: what is in them, and that nobody's number of ranks or workers changes them."""

import itertools
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from torch import Tensor

from clipmill.data.dataset import Dataset
from clipmill.data.loading import dataloader as loader_module
from clipmill.data.loading.config import DataLoaderConfig
from clipmill.data.loading.dataloader import PairBatch, PairDataLoader
from clipmill.data.loading.sampler import EpochShuffle
from clipmill.data.loading.view import View, ViewConfig, in_subset
from clipmill.data.shards.read import read_shard
from clipmill.errors import ArtifactError, ConfigError
from clipmill.images import decode_rgb
from helpers.bare_dataset import add_layer

MakeDataset = Callable[..., Dataset]
AddCaptions = Callable[[Dataset, str], Dataset]
LAYER = "captions/test-1"
TEXT_LENGTH = 48


def transform(data: bytes, random: np.random.Generator) -> Tensor:
    """Give the first pixel (3 x 1 x 1), and a random number in place of its blue."""
    pixel = torch.tensor(decode_rgb(data).getpixel((0, 0)), dtype=torch.float64)
    pixel[2] = random.random()
    return pixel.reshape(3, 1, 1)


def tokenize(texts: list[str]) -> Tensor:
    return torch.tensor([list(text.ljust(TEXT_LENGTH).encode()) for text in texts])


def texts_of(tokens_BT: Tensor) -> list[str]:
    return [bytes(tokens.tolist()).decode().rstrip() for tokens in tokens_BT]


def make_loader(view: View, tmp_path: Path, **options: int) -> PairDataLoader:
    config = {"num_workers": 0, "shuffle_shards": 2}
    names = ("rank", "world_size", "start_step", "batch_size", "seed", "cache_bytes")
    own = {"batch_size": 8} | {name: options.pop(name) for name in names if name in options}
    return PairDataLoader(
        view,
        DataLoaderConfig(**{**config, **options}),
        transform=transform,
        tokenize=tokenize,
        cache=tmp_path / "cache",
        **own,
    )


def take(loader: PairDataLoader, count: int) -> list[PairBatch]:
    return list(itertools.islice(loader, count))


def global_batches(
    view: View, tmp_path: Path, count: int, *, world_size: int = 1, **options: int
) -> list[tuple[object, ...]]:
    """The batches of all ranks, joined."""
    ranks = [
        take(make_loader(view, tmp_path, rank=rank, world_size=world_size, **options), count)
        for rank in range(world_size)
    ]
    return [
        (
            [uid for part in parts for uid in part.uids],
            torch.cat([part.images_B3HW for part in parts]).tolist(),
            [text for part in parts for text in texts_of(part.real_BT)],
            [text for part in parts for text in texts_of(part.synthetic_BT)],
        )
        for parts in zip(*ranks, strict=True)
    ]


@pytest.fixture
def view(make_dataset: MakeDataset, add_captions: AddCaptions) -> View:
    return View(add_captions(make_dataset(), LAYER), ViewConfig(captions="both", layer=LAYER))


@pytest.mark.parametrize(("world_size", "num_workers"), [(1, 2), (2, 0), (2, 1), (4, 0), (8, 0)])
def test_ranks_and_workers_change_nothing(
    view: View, tmp_path: Path, world_size: int, num_workers: int
) -> None:
    expected = global_batches(view, tmp_path, 8)
    options = {"world_size": world_size, "num_workers": num_workers}
    assert global_batches(view, tmp_path, 8, **options) == expected


@pytest.mark.parametrize(("cursor", "num_workers"), [(1, 0), (3, 2), (100, 0)])
def test_resuming_goes_on_where_it_stopped(
    view: View, tmp_path: Path, cursor: int, num_workers: int
) -> None:
    whole = global_batches(view, tmp_path, cursor + 4)
    resumed = global_batches(view, tmp_path, 4, start_step=cursor, num_workers=num_workers)
    assert resumed == whole[cursor:]


def test_resuming_late_costs_no_more(view: View, tmp_path: Path) -> None:
    # Walking there would take days.
    late = make_loader(view, tmp_path, start_step=10**12)
    assert [len(batch.uids) for batch in take(late, 2)] == [8, 8]


def test_epochs_follow_one_another_without_a_gap(view: View, tmp_path: Path) -> None:
    num_samples = view.dataset.num_samples
    uids = [u for b in take(make_loader(view, tmp_path), 3 * num_samples // 8 + 1) for u in b.uids]
    epochs = [uids[n : n + num_samples] for n in (0, num_samples, 2 * num_samples)]
    everything = {u for i in range(len(view.dataset.shards)) for u in view.dataset.uids(i)}
    assert [set(epoch) for epoch in epochs] == [everything] * 3
    assert epochs[0] != epochs[1] != epochs[2]


def test_batch_larger_than_the_dataset(view: View, tmp_path: Path) -> None:
    (batch,) = take(make_loader(view, tmp_path, batch_size=2 * view.dataset.num_samples), 1)
    assert set(Counter(batch.uids).values()) == {2}


def test_images_and_captions_belong_together(view: View, tmp_path: Path) -> None:
    uid_of = {}
    for index in range(len(view.dataset.shards)):
        with read_shard(view.dataset, index, tmp_path / "cache") as reader:
            uid_of.update({reader.caption(r): reader.uid(r) for r in range(len(reader))})
    for batch in take(make_loader(view, tmp_path), 4):
        synthetic = texts_of(batch.synthetic_BT)
        for row, real in enumerate(texts_of(batch.real_BT)):
            assert batch.uids[row] == uid_of[real]
            assert synthetic[row].startswith(f"synthetic {batch.uids[row]} ")
            number = int(real.split()[1])
            (path,) = (tmp_path / "source").glob(f"*/{number:03d}.[jpw]*")
            with Image.open(path) as image:
                pixel = image.convert("RGB").getpixel((0, 0))
            assert batch.images_B3HW[row, :2, 0, 0].tolist() == list(pixel[:2])


def test_each_pass_draws_anew(view: View, tmp_path: Path) -> None:
    drawn: dict[str, set[str]] = {}
    noise = []
    for batch in take(make_loader(view, tmp_path), 60):
        noise += batch.images_B3HW[:, 2, 0, 0].tolist()
        for uid, text in zip(batch.uids, texts_of(batch.synthetic_BT), strict=True):
            drawn.setdefault(uid, set()).add(text)
    assert len(set(noise)) == len(noise)
    # 20 draws from 3 captions each: all but certain to see every one.
    assert all(len(texts) == 3 for texts in drawn.values())


def test_captions_leave_the_pixels_alone(view: View, tmp_path: Path) -> None:
    both = take(make_loader(view, tmp_path), 3)
    for captions, layer in (("real", ""), ("synthetic", LAYER)):
        config = ViewConfig(captions=captions, layer=layer)
        other = take(make_loader(View(view.dataset, config), tmp_path), 3)
        for ours, theirs in zip(both, other, strict=True):
            assert torch.equal(ours.images_B3HW, theirs.images_B3HW)
            assert (theirs.real_BT is None) == (captions == "synthetic")
            assert (theirs.synthetic_BT is None) == (captions == "real")


def test_fraction_shows_its_subset_alone(make_dataset: MakeDataset, tmp_path: Path) -> None:
    dataset = make_dataset()
    loader = make_loader(View(dataset, ViewConfig(subset_fraction=0.5)), tmp_path)
    expected = {
        uid
        for index in range(len(dataset.shards))
        for uid in dataset.uids(index)
        if in_subset(uid, 0.5)
    }
    assert loader.num_samples == len(expected) < dataset.num_samples
    assert {uid for batch in take(loader, 4) for uid in batch.uids} == expected


def test_training_random_stream_is_left_alone(view: View, tmp_path: Path) -> None:
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    take(make_loader(view, tmp_path), 2)
    assert torch.equal(torch.rand(3), expected)


@pytest.mark.parametrize("num_workers", [0, 1])
def test_trouble_of_a_worker_keeps_its_words(view: View, tmp_path: Path, num_workers: int) -> None:
    for path in Path(view.dataset.uri).glob("shards/*.tar"):
        path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ArtifactError, match="what to do"):
        take(make_loader(view, tmp_path, num_workers=num_workers), 1)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_remote_dataset_streams_through_a_bounded_cache(
    make_dataset: MakeDataset,
    add_captions: AddCaptions,
    tmp_path: Path,
    s3: dict[str, str],
    num_workers: int,
) -> None:
    view_config = ViewConfig(captions="both", layer=LAYER)
    local = View(add_captions(make_dataset(count=60), LAYER), view_config)
    remote_dataset = add_captions(
        make_dataset(count=60, store=f"s3://tests/{tmp_path.name}"), LAYER
    )
    sizes = [shard.num_bytes for shard in remote_dataset.shards]
    limit = int(2.8 * max(sizes))
    # One shard a block: two at a time, and their captions, fit.
    options = {"shuffle_shards": 1, "cache_bytes": limit, "num_workers": num_workers}
    found = global_batches(View(remote_dataset, view_config), tmp_path / "remote", 16, **options)
    assert found == global_batches(local, tmp_path / "local", 16, shuffle_shards=1)
    cache = tmp_path / "remote" / "cache"
    cached = sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())
    assert cached < sum(sizes) / 2


def test_next_block_is_downloaded_meanwhile(
    make_dataset: MakeDataset, tmp_path: Path, s3: dict[str, str]
) -> None:
    dataset = make_dataset(store=f"s3://tests/{tmp_path.name}")
    view = View(dataset, ViewConfig())
    take(make_loader(view, tmp_path, batch_size=2, shuffle_shards=1), 1)
    sizes = view.shard_sizes()
    order = EpochShuffle(sizes, seed=0, epoch=0, shuffle_shards=1)
    (following,) = order.block_shards(1)
    path = tmp_path / "cache" / dataset.shards[following].sha256 / f"{following:05d}.tar"
    deadline = time.monotonic() + 60
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_cache_too_small_for_the_order(
    view: View, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_loader(view, tmp_path, cache_bytes=1)  # a local dataset isn't copied
    monkeypatch.setattr(loader_module, "is_remote", lambda uri: True)
    needed = sum(sorted((s.num_bytes for s in view.dataset.shards), reverse=True)[:4])
    make_loader(view, tmp_path, cache_bytes=needed)
    with pytest.raises(ConfigError, match=f"at least {needed}"):
        make_loader(view, tmp_path, cache_bytes=needed - 1)


def test_ranks_must_share_evenly(view: View, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="multiple of the number of ranks"):
        make_loader(view, tmp_path, world_size=3)


def test_empty_view(make_dataset: MakeDataset, tmp_path: Path) -> None:
    view = View(make_dataset(), ViewConfig(subset_fraction=1e-9))
    with pytest.raises(ConfigError, match="has no sample"):
        make_loader(view, tmp_path)


@pytest.mark.parametrize(
    "values",
    [{"num_workers": -1}, {"prefetch_batches": 0}, {"shuffle_shards": 0}],
)
def test_config_out_of_range(values: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match="at least"):
        DataLoaderConfig(**values)


def test_chosen_captions_of_selected_samples(
    make_dataset: MakeDataset, add_captions: AddCaptions, tmp_path: Path
) -> None:
    dataset = add_captions(make_dataset(), LAYER)
    keep = [row % 3 != 0 for row in range(23)]
    columns = {
        "keep": keep,
        "refused_by": pa.array([None if k else "test" for k in keep], pa.string()),
        "caption": ["real" if row % 2 else LAYER for row in range(23)],
        "caption_index": pa.array([0 if row % 2 else row % 3 for row in range(23)], pa.int32()),
    }
    dataset = add_layer(dataset, "select/x", columns)
    expected = {}
    for index in range(len(dataset.shards)):
        with read_shard(dataset, index, tmp_path / "cache") as reader:
            for row in range(len(reader)):
                number, uid = 4 * index + row, reader.uid(row)
                text = reader.caption(row) if number % 2 else f"synthetic {uid} {number % 3}"
                if keep[number]:
                    expected[uid] = text
    view = View(dataset, ViewConfig(captions="selected", selection_layers=("select/x",)))
    loader = make_loader(view, tmp_path, batch_size=len(expected))
    assert loader.num_samples == len(expected)
    (batch,) = take(loader, 1)
    assert batch.synthetic_BT is None
    assert dict(zip(batch.uids, texts_of(batch.real_BT), strict=True)) == expected

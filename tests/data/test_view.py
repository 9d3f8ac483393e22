"""Which captions and samples a view lets through."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from clipmill.data.dataset import Dataset
from clipmill.data.loading.view import View, ViewConfig, in_subset
from clipmill.errors import ArtifactError, ConfigError
from helpers.bare_dataset import add_layer

MakeDataset = Callable[..., Dataset]
AddCaptions = Callable[[Dataset, str], Dataset]
LAYER = "captions/test-1"


def test_nested_subsets_have_about_their_size() -> None:
    uids = [f"{i:020x}" for i in range(20_000)]
    subsets = [{uid for uid in uids if in_subset(uid, f)} for f in (0.01, 0.1, 0.5, 1.0)]
    assert subsets[0] < subsets[1] < subsets[2] < subsets[3] == set(uids)
    # Five standard deviations of a binomial.
    for subset, fraction in zip(subsets, (0.01, 0.1, 0.5, 1.0), strict=True):
        spread = np.sqrt(len(uids) * fraction * (1 - fraction))
        assert abs(len(subset) - len(uids) * fraction) <= 5 * spread


@pytest.mark.parametrize("fraction", [0.2, 0.5, 1.0])
def test_sizes_agree_with_the_rows(make_dataset: MakeDataset, fraction: float) -> None:
    dataset = make_dataset()
    view = View(dataset, ViewConfig(subset_fraction=fraction))
    rows = [view.select(dataset.uids(index)) for index in range(len(dataset.shards))]
    assert view.shard_sizes() == [len(r) for r in rows]
    for index, selected in enumerate(rows):
        uids = dataset.uids(index)
        assert [uids[r] for r in selected] == [u for u in uids if in_subset(u, fraction)]
    assert sum(view.shard_sizes()) == dataset.num_samples or fraction < 1


def test_parents_and_digest(make_dataset: MakeDataset, add_captions: AddCaptions) -> None:
    dataset = add_captions(make_dataset(), LAYER)
    view = View(dataset, ViewConfig(captions="both", layer=LAYER))
    assert [(p.role, p.uri, p.digest) for p in view.parents] == [
        ("dataset", dataset.uri, dataset.digest),
        ("captions", dataset.layer_uri(LAYER), dataset.layers[LAYER].digest),
    ]
    same = View(add_captions(dataset, "captions/unused"), view.config)
    assert same.digest == view.digest
    others = [
        View(dataset, ViewConfig()),
        View(dataset, dataclasses.replace(view.config, captions="synthetic")),
        View(dataset, dataclasses.replace(view.config, subset_fraction=0.5)),
    ]
    assert len({view.digest, *(other.digest for other in others)}) == 4


def test_captions_need_a_layer(make_dataset: MakeDataset, add_captions: AddCaptions) -> None:
    dataset = make_dataset()
    with pytest.raises(ConfigError, match="has none yet") as caught:
        View(dataset, ViewConfig(captions="synthetic"))
    assert f"clipmill data recaption {dataset.uri}" in caught.value.action
    dataset = add_captions(dataset, LAYER)
    with pytest.raises(ConfigError, match=f"expected: one of {LAYER}") as caught:
        View(dataset, ViewConfig(captions="both", layer=LAYER.lower()[:-1]))
    assert caught.value.action == f"did you mean {LAYER!r}?"


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(ConfigError, match="fraction"):
        ViewConfig(subset_fraction=fraction)


def test_layer_for_real_captions_is_a_contradiction() -> None:
    with pytest.raises(ConfigError, match="no layer for real or selected captions"):
        ViewConfig(captions="real", layer=LAYER)


SELECT = "select/test-1"


def select_layer(
    dataset: Dataset, name: str, keep: list[bool], chosen: list[int | None]
) -> Dataset:
    """Commit a select layer; ``chosen`` is a place among the synthetic captions, None for real."""
    columns = {
        "keep": keep,
        "refused_by": pa.array([None if k else "test" for k in keep], pa.string()),
        "caption": ["real" if c is None else LAYER for c in chosen],
        "caption_index": pa.array([c or 0 for c in chosen], pa.int32()),
    }
    return add_layer(dataset, name, columns)


def test_select_layers_narrow_a_view(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))
    dataset = make_dataset(count=23)
    keeps = {
        "select/odd-1": [row % 2 == 1 for row in range(23)],
        "select/third-1": [row % 3 == 0 for row in range(23)],
    }
    for name, keep in keeps.items():
        dataset = select_layer(dataset, name, keep, [None] * 23)
    uids = [uid for index in range(6) for uid in dataset.uids(index)]
    for names in (["select/odd-1"], ["select/third-1"], list(keeps)):
        for fraction in (1.0, 0.5):
            view = View(
                dataset, ViewConfig(selection_layers=tuple(names), subset_fraction=fraction)
            )
            found = []
            for index in range(6):
                own = dataset.uids(index)
                rows = view.open_shard(index, own, tmp_path / "cache").rows
                found.append([own[row] for row in rows])
            assert view.shard_sizes() == [len(part) for part in found]
            assert [uid for part in found for uid in part] == [
                uid
                for row, uid in enumerate(uids)
                if all(keeps[name][row] for name in names) and in_subset(uid, fraction)
            ]


def test_sizes_of_one_selection_are_known_without_its_files(
    make_dataset: MakeDataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CLIPMILL_CACHE", str(tmp_path / "cache"))
    dataset = select_layer(make_dataset(count=9), SELECT, [row > 5 for row in range(9)], [None] * 9)
    for file in Path(dataset.layer_uri(SELECT)).glob("*.parquet"):
        file.unlink()
    assert View(dataset, ViewConfig(selection_layers=(SELECT,))).shard_sizes() == [0, 2, 1]


def test_chosen_captions(
    make_dataset: MakeDataset, add_captions: AddCaptions, tmp_path: Path
) -> None:
    dataset = add_captions(make_dataset(count=6), LAYER)
    dataset = select_layer(dataset, SELECT, [True] * 6, [None, 0, 2, None, None, 1])
    view = View(dataset, ViewConfig(captions="selected", selection_layers=(SELECT,)))
    found = [view.open_shard(index, dataset.uids(index), tmp_path / "cache") for index in range(2)]
    first, second = (dataset.uids(index) for index in range(2))
    assert found[0].selected == (None, f"synthetic {first[1]} 0", f"synthetic {first[2]} 2", None)
    assert found[1].selected == (None, f"synthetic {second[1]} 1")
    assert found[0].synthetic is None
    plain = View(dataset, ViewConfig(selection_layers=(SELECT,)))
    assert plain.open_shard(0, first, tmp_path / "cache").selected is None


def test_a_choice_of_a_caption_that_is_not_there(
    make_dataset: MakeDataset, add_captions: AddCaptions, tmp_path: Path
) -> None:
    dataset = add_captions(make_dataset(count=2), LAYER)
    dataset = select_layer(dataset, SELECT, [True] * 2, [None, 3])
    view = View(dataset, ViewConfig(captions="selected", selection_layers=(SELECT,)))
    with pytest.raises(ArtifactError, match="selects a caption that its layer doesn't have"):
        view.open_shard(0, dataset.uids(0), tmp_path / "cache")


def test_digest_and_parents_follow_the_selection(make_dataset: MakeDataset) -> None:
    dataset = select_layer(make_dataset(count=5), SELECT, [True] * 5, [None] * 5)
    view = View(dataset, ViewConfig(selection_layers=(SELECT,)))
    assert [(p.role, p.uri, p.digest) for p in view.parents] == [
        ("dataset", dataset.uri, dataset.digest),
        ("select", dataset.layer_uri(SELECT), dataset.layers[SELECT].digest),
    ]
    other = select_layer(dataset, "select/test-2", [False] * 5, [None] * 5)
    digests = {
        View(other, config).digest
        for config in (
            ViewConfig(),
            view.config,
            ViewConfig(selection_layers=("select/test-2",)),
            ViewConfig(captions="selected", selection_layers=(SELECT,)),
            ViewConfig(selection_layers=(SELECT,), subset_fraction=0.5),
        )
    }
    assert len(digests) == 5
    assert view.digest in digests


def test_select_layers_need_to_be_there(
    make_dataset: MakeDataset, add_captions: AddCaptions
) -> None:
    dataset = add_captions(make_dataset(count=3), LAYER)
    with pytest.raises(ConfigError, match="'select/none' is not a select layer"):
        View(dataset, ViewConfig(selection_layers=("select/none",)))
    with pytest.raises(ConfigError, match=f"'{LAYER}' is not a select layer"):
        View(dataset, ViewConfig(selection_layers=(LAYER,)))
    with pytest.raises(ConfigError, match="selection_layers was empty"):
        ViewConfig(captions="selected")
    with pytest.raises(ConfigError, match="no layer for real or selected captions"):
        ViewConfig(captions="selected", selection_layers=(SELECT,), layer=LAYER)

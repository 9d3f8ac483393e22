"""Which captions and samples a view lets through."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest

from clipmill.data.dataset import Dataset
from clipmill.data.view import View, ViewConfig, in_fraction
from clipmill.errors import ConfigError

MakeDataset = Callable[..., Dataset]
AddCaptions = Callable[[Dataset, str], Dataset]
LAYER = "captions/test-1"


def test_nested_subsets_have_about_their_size() -> None:
    uids = [f"{i:020x}" for i in range(20_000)]
    subsets = [{uid for uid in uids if in_fraction(uid, f)} for f in (0.01, 0.1, 0.5, 1.0)]
    assert subsets[0] < subsets[1] < subsets[2] < subsets[3] == set(uids)
    # Five standard deviations of a binomial.
    for subset, fraction in zip(subsets, (0.01, 0.1, 0.5, 1.0), strict=True):
        spread = np.sqrt(len(uids) * fraction * (1 - fraction))
        assert abs(len(subset) - len(uids) * fraction) <= 5 * spread


@pytest.mark.parametrize("fraction", [0.2, 0.5, 1.0])
def test_sizes_agree_with_the_rows(make_dataset: MakeDataset, fraction: float) -> None:
    dataset = make_dataset()
    view = View(dataset, ViewConfig(fraction=fraction))
    rows = [view.select(dataset.uids(index)) for index in range(len(dataset.shards))]
    assert view.shard_sizes() == [len(r) for r in rows]
    for index, selected in enumerate(rows):
        uids = dataset.uids(index)
        assert [uids[r] for r in selected] == [u for u in uids if in_fraction(u, fraction)]
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
        View(dataset, dataclasses.replace(view.config, fraction=0.5)),
    ]
    assert len({view.digest, *(other.digest for other in others)}) == 4


def test_captions_need_a_layer(make_dataset: MakeDataset, add_captions: AddCaptions) -> None:
    dataset = make_dataset()
    with pytest.raises(ConfigError, match="there is none"):
        View(dataset, ViewConfig(captions="synthetic"))
    dataset = add_captions(dataset, LAYER)
    with pytest.raises(ConfigError, match=f"expected: one of {LAYER}"):
        View(dataset, ViewConfig(captions="both", layer="captions/other"))


@pytest.mark.parametrize("fraction", [0.0, -0.1, 1.1])
def test_fraction_out_of_range(fraction: float) -> None:
    with pytest.raises(ConfigError, match="fraction"):
        ViewConfig(fraction=fraction)


def test_layer_for_real_captions_is_a_contradiction() -> None:
    with pytest.raises(ConfigError, match="no layer for real captions"):
        ViewConfig(captions="real", layer=LAYER)

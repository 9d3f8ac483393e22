"""Pairs that training doesn't see."""

import json
from pathlib import Path

import pytest

from clipmill.data.dataset import Dataset
from clipmill.data.loading.view import MIN_PAIRS, View, ViewConfig, fit_batch_size, hold_out
from clipmill.errors import SourceError
from helpers.bare_dataset import bare_dataset


@pytest.mark.parametrize("sizes", [[20], [7, 0, 33, 20], [300, 300], [5_000]])
def test_the_cut_is_exact_and_is_what_training_sees(sizes, tmp_path):
    dataset = bare_dataset(tmp_path, sizes)
    cut = hold_out(dataset)
    assert cut.num_train + cut.num_held_out == sum(sizes)
    assert cut.num_held_out == min(round(sum(sizes) / 4), 1_000)
    view = View(dataset, ViewConfig(subset_fraction=json.loads(repr(cut.fraction))))
    assert sum(view.shard_sizes(tmp_path / "cache")) == cut.num_train


def test_too_few_pairs_are_refused_with_what_was_left_out(tmp_path):
    bare_dataset(tmp_path, [MIN_PAIRS - 1])
    manifest = tmp_path / "dataset.json"
    value = json.loads(manifest.read_text()) | {"quarantine": {"missing_caption": 3}}
    Path(manifest).write_text(json.dumps(value))
    with pytest.raises(SourceError, match=r"only 19 .*left out: 3 missing_caption") as found:
        hold_out(Dataset.open(str(tmp_path)))
    assert "at least 20 pairs" in found.value.expected


@pytest.mark.parametrize(
    ("num_train", "batch"), [(15, 4), (16, 8), (45, 16), (63, 16), (64, 32), (10_000, 32)]
)
def test_a_batch_is_at_most_half_of_the_pairs(num_train, batch):
    assert fit_batch_size(num_train, 32) == batch

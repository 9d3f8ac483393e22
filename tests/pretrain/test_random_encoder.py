"""Encoders that learned nothing."""

from dataclasses import replace

import torch

from clipmill.lineage import lineage
from clipmill.models.checkpoint import load_checkpoint, read_metadata
from clipmill.models.towers import build_clip
from clipmill.pretrain.clip import random_encoder
from clipmill.recipes.pretrain import clip_tiny
from helpers.tiny_clip import CLIP


def config(seed):
    full = clip_tiny()
    return replace(full, model=CLIP, train=replace(full.train, seed=seed))


def tensors(uri):
    return load_checkpoint(uri)[1]


def test_weights_follow_from_the_seed(tmp_path):
    torch.manual_seed(5)
    first = random_encoder(config(3), str(tmp_path / "a"))
    torch.manual_seed(6)
    second = random_encoder(config(3), str(tmp_path / "b"))
    other = random_encoder(config(4), str(tmp_path / "a"))
    torch.manual_seed(3)
    expected = build_clip(CLIP).state_dict()
    for name, tensor in expected.items():
        assert torch.equal(tensors(first)[name], tensor)
    assert read_metadata(first).digest == read_metadata(second).digest
    assert first != other
    assert read_metadata(first).digest != read_metadata(other).digest
    name = "visual.conv1.weight"
    assert not torch.equal(tensors(first)[name], tensors(other)[name])


def test_the_random_numbers_of_the_process_go_on(tmp_path):
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    random_encoder(config(1), str(tmp_path))
    assert torch.equal(torch.rand(3), expected)


def test_the_card_says_that_they_are_random(tmp_path):
    uri = random_encoder(config(2), str(tmp_path))
    metadata = read_metadata(uri)
    assert metadata.kind == "clip"
    assert metadata.architecture == CLIP.to_json()
    assert metadata.summary == {"weights": "random", "seed": "2"}
    assert "/random-" in uri
    assert lineage(uri).parents == ()


def test_made_once(tmp_path):
    """Training's length doesn't matter to what wasn't trained."""
    uri = random_encoder(config(2), str(tmp_path))
    longer = replace(config(2), train=replace(config(2).train, steps=9))
    changed = read_metadata(uri)
    assert random_encoder(longer, str(tmp_path)) == uri
    assert read_metadata(uri) == changed

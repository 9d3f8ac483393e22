"""Recall among neighbours, against cases counted by hand and a plain reference."""

import pytest
import torch

from clipmill.models.retrieval import recall


def test_by_hand():
    """Two images, three captions: image 0 has the first two."""
    images = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    texts = torch.tensor([[0.6, 0.8], [0.8, 0.6], [0.9, 0.4]])
    found = recall(images, texts, torch.tensor([0, 0, 1]))
    # Image 0's nearest caption is the third, which is foreign; image 1's is the first, foreign too,
    # as is the second, so that its own comes third. The first caption is nearer to image 1; the
    # second to its own; the third to image 0.
    assert found == {
        "image_to_text_r1": 0.0,
        "image_to_text_r5": 1.0,
        "image_to_text_r10": 1.0,
        "text_to_image_r1": pytest.approx(1 / 3),
        "text_to_image_r5": 1.0,
        "text_to_image_r10": 1.0,
    }


def test_a_model_that_sees_no_difference_finds_nothing():
    found = recall(torch.ones(12, 3), torch.ones(12, 3))
    assert set(found.values()) == {0.0}


def test_an_image_without_caption_is_only_a_distraction():
    images = torch.eye(3)
    found = recall(images, images[[0, 2]], torch.tensor([0, 2]))
    assert set(found.values()) == {1.0}


@pytest.mark.parametrize("seed", range(3))
def test_against_sorting(seed, monkeypatch):
    """In blocks smaller than the data, as a plain sort of every row has it."""
    monkeypatch.setattr("clipmill.models.retrieval._BLOCK_ROWS", 7)
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(30, 8, generator=generator)
    owners = torch.randint(0, 30, (80,), generator=generator)
    texts = images[owners] + 2 * torch.randn(80, 8, generator=generator)
    found = recall(images, texts, owners)
    similarity = images @ texts.T
    for k in (1, 5, 10):
        asked = sorted(set(owners.tolist()))
        near = similarity.argsort(1, descending=True)[:, :k]
        hits = [i in owners[near[i]].tolist() for i in asked]
        assert found[f"image_to_text_r{k}"] == pytest.approx(sum(hits) / len(asked))
        near = similarity.T.argsort(1, descending=True)[:, :k]
        hits = [owners[c].item() in near[c].tolist() for c in range(80)]
        assert found[f"text_to_image_r{k}"] == pytest.approx(sum(hits) / 80)

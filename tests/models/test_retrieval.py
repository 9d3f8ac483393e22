"""Recall among neighbours, against cases counted by hand and a plain reference."""

import pytest
import torch

from clipmill.models.retrieval import pair_accuracy, recall


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


def test_pair_accuracy_by_hand():
    """Texts of the first two pairs are exchanged: each side loses once and ties once."""
    images = torch.eye(3)
    found = pair_accuracy(images, images[[1, 0, 2]])
    # Query 0: its own text scores 0, the others 1 and 0; query 2: 1 against 0 and 0.
    assert found["pair_accuracy"] == pytest.approx((0.25 + 0.25 + 1) / 3)
    assert found["pair_accuracy_error"] == pytest.approx(
        torch.tensor([0.25, 0.25, 1.0]).double().std().item() / 3**0.5
    )
    assert pair_accuracy(images, images) == {"pair_accuracy": 1.0, "pair_accuracy_error": 0.0}


@pytest.mark.parametrize("seed", range(3))
def test_pair_accuracy_against_counting(seed):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(20, 4, generator=generator)
    texts = images + 2 * torch.randn(20, 4, generator=generator)
    found = pair_accuracy(images, texts)["pair_accuracy"]
    won = [
        [(own(i, i) > own(i, j)) + (own(i, i) > own(j, i)) for j in range(20) if j != i]
        for own in (lambda i, j: float(images[i] @ texts[j]),)
        for i in range(20)
    ]
    assert found == pytest.approx(sum(map(sum, won)) / (2 * 20 * 19))


def test_guessing_is_right_half_of_the_time():
    same = torch.ones(12, 3)
    assert pair_accuracy(same, same) == {"pair_accuracy": 0.5, "pair_accuracy_error": 0.0}
    generator = torch.Generator().manual_seed(0)
    found = pair_accuracy(*torch.randn(2, 400, 16, generator=generator))
    assert abs(found["pair_accuracy"] - 0.5) < 3 * found["pair_accuracy_error"]
    # A standard error of a mean of 400 shares of which each spreads over most of 0 to 1.
    assert 0.005 < found["pair_accuracy_error"] < 0.02

"""Losses over a matrix that is computed in chunks, against open_clip's over the full one."""

import pytest
import torch
from open_clip.loss import ClipLoss, DistillClipLoss, SigLipLoss
from torch.nn import functional as F

from clipmill.pretrain import contrastive
from clipmill.pretrain.contrastive import (
    DistillationLoss,
    InfoNceLoss,
    SiglipLoss,
    row_losses,
)


@pytest.fixture(params=[1, 22, 10**6], ids=["a row", "3 rows", "whole"], autouse=True)
def piece_elements(request, monkeypatch):
    monkeypatch.setattr(contrastive, "MAX_CHUNK_ELEMENTS", request.param)


def mean_loss(*arguments):
    return row_losses(*arguments).loss


def unit_rows(num_rows, width, seed):
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randn(num_rows, width, dtype=torch.double, generator=generator)
    return F.normalize(rows, dim=1)


def leaves():
    """Images, texts, scale and bias."""
    made = [unit_rows(7, 5, 0), unit_rows(7, 5, 1), torch.tensor(12.0).double(), torch.tensor(-3.0)]
    return [value.double().requires_grad_() for value in made]


def assert_same(found, expected, inputs):
    torch.testing.assert_close(found, expected)
    # Twice the loss: what comes from above must be passed on.
    ours, theirs = (torch.autograd.grad(2 * loss, inputs) for loss in (found, expected))
    for a, b in zip(ours, theirs, strict=True):
        torch.testing.assert_close(a, b)


def test_cross_entropy_is_open_clips():
    images, texts, scale, _ = leaves()
    rule = InfoNceLoss(0)
    to_text = mean_loss(images, texts, scale, rule)
    to_image = mean_loss(texts, images, scale, rule)
    assert_same((to_text + to_image) / 2, ClipLoss()(images, texts, scale), (images, texts, scale))


def test_sigmoid_is_open_clips():
    images, texts, scale, bias = inputs = leaves()
    found = mean_loss(images, texts, scale, SiglipLoss(0), bias)
    assert_same(found, SigLipLoss()(images, texts, scale, bias), inputs)


def test_one_teacher_is_open_clips():
    images, texts, scale, _ = leaves()
    teacher_images, teacher_texts = unit_rows(7, 6, 2), unit_rows(7, 6, 3)
    pairs = [(images, texts, teacher_images, teacher_texts)]
    pairs.append((texts, images, teacher_texts, teacher_images))
    parts = [mean_loss(a, b, scale, DistillationLoss(ta, tb, (6,), 20.0)) for a, b, ta, tb in pairs]
    _, expected = DistillClipLoss()(
        images, texts, scale, teacher_images, teacher_texts, torch.tensor(20.0)
    )
    assert_same(sum(parts) / 2, expected, (images, texts, scale))


def test_of_several_teachers_the_mean_is_taken_after_the_softmax():
    images, texts, scale, _ = leaves()
    rows = torch.cat([unit_rows(7, 3, 4), unit_rows(7, 2, 5)], dim=1)
    columns = torch.cat([unit_rows(7, 3, 6), unit_rows(7, 2, 7)], dim=1)
    found = mean_loss(images, texts, scale, DistillationLoss(rows, columns, (3, 2), 20.0))
    first = (20 * rows[:, :3] @ columns[:, :3].T).softmax(1)
    second = (20 * rows[:, 3:] @ columns[:, 3:].T).softmax(1)
    logits = scale * images @ texts.T
    expected = F.cross_entropy(logits, (first + second) / 2)
    assert_same(found, expected, (images, texts, scale))


@pytest.mark.parametrize("rule", [InfoNceLoss, SiglipLoss])
def test_rows_of_a_later_rank_belong_to_later_columns(rule):
    images, texts, scale, bias = leaves()
    parts = [
        mean_loss(images[start : start + 2], texts, scale, rule(start), bias) * 2 / 7
        for start in range(0, 6, 2)
    ]
    parts.append(mean_loss(images[6:], texts, scale, rule(6), bias) / 7)
    whole = mean_loss(images, texts, scale, rule(0), bias)
    assert_same(sum(parts), whole, (images, texts, scale, bias))


def test_gradients_are_those_of_small_steps():
    inputs = leaves()
    torch.autograd.gradcheck(
        lambda a, b, scale, bias: mean_loss(a, b, scale, InfoNceLoss(0), bias), inputs
    )


def test_autocast_leaves_the_precision_alone():
    images, texts, scale, _ = leaves()
    with torch.autocast("cpu", torch.bfloat16):
        found = mean_loss(images, texts, scale, InfoNceLoss(0))
    assert torch.equal(found, mean_loss(images, texts, scale, InfoNceLoss(0)))


def test_no_piece_is_larger_than_allowed():
    sizes = []
    images, texts, scale, _ = leaves()

    def rule(logits, start):
        sizes.append(logits.numel())
        return InfoNceLoss(0)(logits, start)

    mean_loss(images, texts, scale, rule)
    assert max(sizes) <= max(contrastive.MAX_CHUNK_ELEMENTS, 7)
    assert sum(sizes) == 49

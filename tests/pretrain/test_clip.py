"""CLIP's objective against open_clip's loss, in one piece and in several."""

import pytest
import torch
from open_clip.loss import ClipLoss
from tiny import CLIP, pair_batch

from clipmill.engine.batch import split
from clipmill.engine.distributed import Ranks
from clipmill.models.towers import CLIP_MEAN, CLIP_STD
from clipmill.pretrain.clip_objective import ClipObjective

G, S, G_S = ("real",), ("synthetic",), ("real", "synthetic")


def objective():
    torch.manual_seed(0)
    made = ClipObjective(CLIP, Ranks())
    with torch.no_grad():
        made.clip.logit_scale.fill_(1.5)
    return made


def gradients(made, batch, num_pieces):
    made.zero_grad(set_to_none=True)
    losses = made.accumulate(split(batch, num_pieces), made)
    return losses, {name: p.grad.clone() for name, p in made.named_parameters()}


@pytest.mark.parametrize("kinds", [G, S, G_S])
def test_loss_is_open_clips(kinds):
    """Of CLIP's own forward on normalised images; both kinds of caption are added."""
    made, batch = objective(), pair_batch(kinds)
    found = made(batch)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    images = (batch.images_B3HW / 255 - mean) / std
    assert tuple(found) == kinds
    for kind in kinds:
        tokens = batch.real_BT if kind == "real" else batch.synthetic_BT
        features = made.clip(images, tokens)
        expected = ClipLoss()(
            features["image_features"], features["text_features"], features["logit_scale"]
        )
        torch.testing.assert_close(found[kind], expected)


def test_gradient_of_g_and_s_is_that_of_the_sum():
    made, batch = objective(), pair_batch(G_S)
    _, both = gradients(made, batch, 1)
    parts = []
    for kind in G_S:
        made.zero_grad(set_to_none=True)
        made(batch)[kind].backward()
        parts.append({n: p.grad for n, p in made.named_parameters() if p.grad is not None})
    for name, gradient in both.items():
        expected = sum(part[name] for part in parts if name in part)
        torch.testing.assert_close(gradient, expected, msg=name)


@pytest.mark.parametrize("kinds", [G, G_S])
@pytest.mark.parametrize("num_pieces", [2, 4, 8])
def test_micro_batches_give_the_gradients_of_the_whole(kinds, num_pieces):
    made, batch = objective(), pair_batch(kinds)
    expected_losses, expected = gradients(made, batch, 1)
    losses, found = gradients(made, batch, num_pieces)
    assert "clip.logit_scale" in found
    for kind in kinds:
        torch.testing.assert_close(losses[kind], expected_losses[kind])
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5, msg=name)


def test_micro_batches_under_autocast_give_every_parameter_its_gradient():
    """The pass without gradients must leave no casted weights behind for the one with them."""
    made, batch = objective(), pair_batch(G_S)
    with torch.autocast("cpu", torch.bfloat16):
        _, expected = gradients(made, batch, 1)
        _, found = gradients(made, batch, 2)
    for name, gradient in expected.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(found[name], gradient, rtol=0.1, atol=0.1 * scale, msg=name)


@pytest.mark.parametrize(("before", "after"), [(6.0, 4.6051702), (-1.0, 0.0), (2.0, 2.0)])
def test_logit_scale_stays_within_clips_bounds(before, after):
    made = objective()
    with torch.no_grad():
        made.clip.logit_scale.fill_(before)
    made.after_step()
    assert made.clip.logit_scale.item() == pytest.approx(after)

"""CLIP's objective against open_clip's loss, in one piece and in several."""

from dataclasses import replace

import pytest
import torch
from open_clip.loss import ClipLoss, SigLipLoss

from clipmill.engine.distributed import DistributedContext
from clipmill.engine.objective import split_batch
from clipmill.errors import ConfigError
from clipmill.models.config import (
    CLIP_MEAN,
    CLIP_STD,
    RangeAugmentConfig,
    TowerOptions,
    VisionConfig,
)
from clipmill.pretrain.clip import ClipObjective
from clipmill.pretrain.config import DistillationConfig
from helpers.tiny_clip import CLIP, pair_batch, reinforced_batch

G, S, G_S = ("real",), ("synthetic",), ("real", "synthetic")
DISTILLATION = DistillationConfig(contrastive_weight=0.25, weight=0.75, teacher_widths=(6, 4))
CONVOLUTIONAL = replace(CLIP, vision=VisionConfig(image_size=16, timm_model="test_resnet"))


def objective(config=CLIP, **options):
    torch.manual_seed(0)
    made = ClipObjective(config, DistributedContext(), **options)
    with torch.no_grad():
        made.clip.logit_scale.fill_(1.5)
    return made


def gradients(made, batch, num_pieces):
    made.zero_grad(set_to_none=True)
    losses = made.accumulate(split_batch(batch, num_pieces), made)
    return losses, {name: p.grad.clone() for name, p in made.named_parameters()}


def assert_pieces_are_the_whole(made, batch, num_pieces):
    expected_losses, expected = gradients(made, batch, 1)
    losses, found = gradients(made, batch, num_pieces)
    assert losses.keys() == expected_losses.keys()
    for name, loss in losses.items():
        torch.testing.assert_close(loss, expected_losses[name])
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-5, atol=1e-5, msg=name)


@pytest.mark.parametrize("kinds", [G, S, G_S])
def test_loss_is_open_clips(kinds):
    """Of CLIP's own forward on normalized images; both kinds of caption are added."""
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
    assert_pieces_are_the_whole(objective(), pair_batch(kinds), num_pieces)


def test_micro_batches_with_siglips_loss():
    made = objective(replace(CLIP, loss="sigmoid"))
    assert_pieces_are_the_whole(made, pair_batch(G_S), 4)
    assert made.clip.logit_bias.grad.abs() > 0


def test_micro_batches_with_distillation():
    made = objective(distillation=DISTILLATION)
    assert_pieces_are_the_whole(made, reinforced_batch(), 4)


def test_dropped_patches_are_the_same_in_both_passes(monkeypatch):
    """And the next step drops others: the random stream has moved on once."""
    made = objective(options=TowerOptions(patch_dropout=0.5))
    seen = []

    def embed(images, batch, original=made._embed):
        found = original(images, batch)
        seen.append(found["image"].detach().clone())
        return found

    monkeypatch.setattr(made, "_embed", embed)
    gradients(made, pair_batch(G), 2)
    assert torch.equal(seen[0], seen[2])
    assert torch.equal(seen[1], seen[3])
    gradients(made, pair_batch(G), 2)
    assert not torch.equal(seen[0], seen[4])


def test_learnt_augmentation_in_pieces_is_that_of_all_features_at_once():
    """Its loss, and every gradient: of what it does to the images and of its own ranges."""
    made, batch = objective(range_augment=RangeAugmentConfig()), pair_batch(G_S)
    made.before_step(0.3)
    made.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    found = made.accumulate(split_batch(batch, 2), made)
    gradient = {name: p.grad.clone() for name, p in made.named_parameters()}
    made.zero_grad(set_to_none=True)
    torch.manual_seed(5)
    pieces = [made(piece, features_only=True) for piece in split_batch(batch, 2)]
    whole = {kind: torch.cat([p[kind] for p in pieces]) for kind in ("image", *G_S)}
    loss = torch.stack([p["range_augment"] for p in pieces]).mean()
    scale = made.clip.logit_scale.exp()
    contrastive = [ClipLoss()(whole["image"], whole[kind], scale) for kind in G_S]
    (sum(contrastive) + loss).backward()
    assert tuple(found) == (*G_S, "range_augment")
    torch.testing.assert_close(found["range_augment"], loss.detach())
    assert gradient["range_augment.brightness.raw_high"].abs() > 0
    for name, parameter in made.named_parameters():
        torch.testing.assert_close(gradient[name], parameter.grad, rtol=1e-5, atol=1e-5, msg=name)


def test_learnt_augmentation_is_for_training():
    plain, made = objective().eval(), objective(range_augment=RangeAugmentConfig()).eval()
    made.clip.load_state_dict(plain.clip.state_dict())
    batch = pair_batch(G)
    assert made(batch) == plain(batch)


def test_running_statistics_move_once_a_micro_batch():
    batch, found = pair_batch(G), []
    for num_pieces in (1, 2):
        made = objective(CONVOLUTIONAL)
        made.train()
        pieces = split_batch(batch, num_pieces)
        if num_pieces == 2:
            made.accumulate(pieces, made)
        else:
            for piece in split_batch(batch, 2):
                made.features(piece)
        found.append({k: v for k, v in made.state_dict().items() if "running_" in k})
    assert found[0]
    for name, expected in found[0].items():
        torch.testing.assert_close(found[1][name], expected, msg=name)


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


def test_siglips_loss_is_open_clips():
    made, batch = objective(replace(CLIP, loss="sigmoid")), pair_batch(G)
    features = made.features(batch)
    expected = SigLipLoss()(
        features["image"], features["real"], made.clip.logit_scale.exp(), made.clip.logit_bias
    )
    torch.testing.assert_close(made(batch)["real"], expected)


def test_siglip_starts_as_its_paper_says():
    made = ClipObjective(replace(CLIP, loss="sigmoid"), DistributedContext())
    assert made.clip.logit_scale.exp().item() == pytest.approx(10)
    assert made.clip.logit_bias.item() == -10


def test_distilled_losses_are_weighted():
    batch = reinforced_batch()
    both = objective(distillation=DISTILLATION)(batch)
    assert set(both) == {"real", "real_distillation", "synthetic", "synthetic_distillation"}
    torch.testing.assert_close(both["real"], 0.25 * objective()(batch)["real"])
    alone = objective(distillation=DistillationConfig(teacher_widths=(6, 4)))(batch)
    assert set(alone) == {"real_distillation", "synthetic_distillation"}
    torch.testing.assert_close(both["real_distillation"], 0.75 * alone["real_distillation"])


def test_teachers_equal_to_the_student_leave_no_gradient():
    made = objective(distillation=DistillationConfig(teacher_widths=(16,)))
    batch = reinforced_batch()
    with torch.no_grad():
        made.clip.logit_scale.fill_(torch.tensor(100.0).log())
    features = {k: v.detach() for k, v in made.features(batch).items()}
    batch.teacher_image_BE = features["image"].roll(1, 0)
    batch.teacher_real_BE = features["real"]
    batch.teacher_synthetic_BE = features["synthetic"]
    _, others = gradients(made, batch, 1)
    batch.teacher_image_BE = features["image"]
    _, own = gradients(made, batch, 1)
    for name, gradient in own.items():
        assert gradient.abs().max() <= 1e-4 * others[name].abs().max(), name


def test_checkpointed_blocks_change_no_gradient():
    batch = pair_batch(G)
    _, expected = gradients(objective(), batch, 1)
    made = objective(options=TowerOptions(gradient_checkpointing=True))
    runs = []
    block = made.clip.visual.transformer.resblocks[0]
    block.register_forward_pre_hook(lambda *_: runs.append(1))
    _, found = gradients(made, batch, 1)
    assert len(runs) == 2
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, msg=name)


def test_patches_of_a_tower_without_them():
    with pytest.raises(ConfigError, match="test_resnet has no patches"):
        ClipObjective(CONVOLUTIONAL, DistributedContext(), options=TowerOptions(patch_dropout=0.5))


@pytest.mark.parametrize("weights", [(0.0, 0.0), (-1.0, 1.0)])
def test_weights_that_train_nothing(weights):
    with pytest.raises(ConfigError, match="weights were"):
        DistillationConfig(contrastive_weight=weights[0], weight=weights[1])

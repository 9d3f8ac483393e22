"""Fifty steps of our loop and of open_clip's own, from the same weights on the same batches."""

from types import SimpleNamespace

import pytest
import torch
from open_clip.loss import ClipLoss
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch

from clipmill.engine.config import AdamWConfig, ScheduleConfig, TrainConfig
from clipmill.engine.trainer import train
from clipmill.models.encoders import Normalize
from clipmill.models.towers import build_clip
from clipmill.pretrain.clip import ClipObjective
from helpers.tiny_clip import CLIP, pair_batch

STEPS, BATCH, RATE, WARMUP = 50, 8, 3e-3, 10


class RecordingLoss(ClipLoss):
    """open_clip's loss, noting each value."""

    def __init__(self):
        super().__init__()
        self.values = []

    def forward(self, *args, **kwargs):
        losses = super().forward(*args, **kwargs)
        self.values.append(losses["contrastive_loss"].item())
        return losses


class Batches(list):
    """What open_clip's loop asks of a dataloader."""

    num_batches = STEPS
    num_samples = STEPS * BATCH


def built():
    torch.manual_seed(0)
    return build_clip(CLIP)


def their_losses(batches, decay):
    model, loss = built(), RecordingLoss()
    names = ("bn", "ln", "bias", "logit_scale")
    plain, decayed = [], []
    for name, parameter in model.named_parameters():
        is_plain = parameter.ndim < 2 or any(n in name for n in names)
        (plain if is_plain else decayed).append(parameter)
    optimizer = torch.optim.AdamW(
        [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": decay}],
        lr=RATE,
        betas=(0.9, 0.95),
        eps=1e-6,
    )
    normalize = Normalize()
    images = [normalize(b.images_B3HW / 255) for b in batches]
    data = SimpleNamespace(
        set_epoch=lambda _: None,
        dataloader=Batches((i, b.real_BT) for i, b in zip(images, batches, strict=True)),
    )
    args = SimpleNamespace(
        device="cpu",
        precision="fp32",
        distill=False,
        accum_freq=1,
        skip_scheduler=False,
        horovod=False,
        grad_clip_norm=None,
        rank=0,
        world_size=1,
        batch_size=BATCH,
        log_every_n_steps=1000,
        wandb=False,
        tensorboard=False,
        save_logs=False,
    )
    scheduler = cosine_lr(optimizer, RATE, WARMUP, STEPS)
    train_one_epoch(model, {"train": data}, loss, 0, optimizer, None, scheduler, None, args)
    return loss.values


def our_losses(batches, decay, micro_batches, folder):
    def objective(dist):
        made = ClipObjective(CLIP, dist)
        made.clip.load_state_dict(built().state_dict())
        return made

    config = TrainConfig(
        steps=STEPS,
        batch_size=BATCH,
        grad_accum_steps=micro_batches,
        schedule=ScheduleConfig(lr=RATE, min_lr=0.0, warmup_steps=WARMUP),
        optimizer=AdamWConfig(betas=(0.9, 0.95), epsilon=1e-6, weight_decay=decay),
        log_every=1,
    )
    trained = train(
        objective,
        lambda cursor, _: iter(batches[cursor:]),
        config,
        name="clip",
        checkpoint_uri=str(folder / "state"),
        report=lambda *_: None,
    )
    return [record["loss"] for record in trained.log]


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_losses_are_those_of_open_clips_loop(tmp_path, micro_batches):
    batches = [pair_batch(("real",), BATCH, seed=step) for step in range(STEPS)]
    expected = their_losses(batches, 0.2)
    found = our_losses(batches, 0.2, micro_batches, tmp_path)
    assert len(found) == len(expected) == STEPS
    assert expected[-1] < expected[0]
    assert found == pytest.approx(expected, abs=1e-4)
    # The comparison would notice a small change of the recipe.
    assert our_losses(batches, 0.0, 1, tmp_path / "other") != pytest.approx(expected, abs=1e-4)

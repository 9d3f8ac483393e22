"""Our loss curve against that of open_clip's own training loop: same seed, data and order."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from open_clip.loss import ClipLoss
from open_clip_train.scheduler import cosine_lr
from open_clip_train.train import train_one_epoch
from tiny import CLIP, pair_batch

from clipmill.engine.config import AdamWConfig, TrainConfig
from clipmill.engine.loop import train
from clipmill.engine.schedule import ScheduleConfig
from clipmill.models.normalization import Normalize
from clipmill.models.towers import build_clip
from clipmill.pretrain.clip_objective import ClipObjective

STEPS, WARMUP, BATCH, PEAK, DECAY = 50, 5, 8, 2e-3, 0.2
NUM_BATCHES = 3  # seen again and again, so that there is something to learn


def open_clip_losses(model):
    """The losses that ``train_one_epoch`` goes by."""
    normalize, losses = Normalize(), []

    class Recorded(ClipLoss):
        def forward(self, *arguments, **keywords):
            found = super().forward(*arguments, **keywords)
            losses.append(found["contrastive_loss"].item())
            return found

    class Batches:
        num_batches, num_samples = STEPS, STEPS * BATCH

        def __iter__(self):
            for batch in batches(0):
                yield normalize(batch.images_B3HW.float() / 255), batch.real_BT

    # The groups of open_clip_train's main().
    named = list(model.named_parameters())

    def is_plain(name, parameter):
        words = ("bn", "ln", "bias", "logit_scale")
        return parameter.ndim < 2 or any(word in name for word in words)

    optimizer = torch.optim.AdamW(
        [
            {"params": [p for n, p in named if is_plain(n, p)], "weight_decay": 0.0},
            {"params": [p for n, p in named if not is_plain(n, p)], "weight_decay": DECAY},
        ],
        lr=PEAK,
        betas=(0.9, 0.95),
        eps=1e-6,
    )
    arguments = SimpleNamespace(
        device="cpu",
        precision="fp32",
        distill=False,
        accum_freq=1,
        skip_scheduler=False,
        grad_clip_norm=None,
        rank=0,
        local_rank=0,
        log_local=False,
        log_every_n_steps=1000,
        batch_size=BATCH,
        world_size=1,
        wandb=False,
    )
    data = {"train": SimpleNamespace(dataloader=Batches(), set_epoch=lambda epoch: None)}
    schedule = cosine_lr(optimizer, PEAK, WARMUP, STEPS)
    train_one_epoch(model, data, Recorded(), 0, optimizer, None, schedule, None, arguments)
    return losses


def batches(cursor):
    return (pair_batch(("real",), BATCH, seed=s % NUM_BATCHES) for s in range(cursor, STEPS))


def our_losses(model, folder):
    def objective(here):
        made = ClipObjective(CLIP, here)
        made.clip.load_state_dict(model.state_dict())
        return made

    config = TrainConfig(
        steps=STEPS,
        batch_size=BATCH,
        schedule=ScheduleConfig(peak=PEAK, minimum=0.0, warmup_steps=WARMUP),
        optimizer=AdamWConfig(betas=(0.9, 0.95), epsilon=1e-6, weight_decay=DECAY),
        log_steps=1,
    )
    trained = train(
        objective,
        lambda cursor, here: batches(cursor),
        config,
        name="clip",
        state_uri=str(folder),
        report=lambda *_: None,
    )
    return [record["loss"] for record in trained.log]


def test_both_loops_follow_one_curve(tmp_path):
    torch.manual_seed(0)
    model = build_clip(CLIP)
    expected = open_clip_losses(copy.deepcopy(model))
    found = our_losses(model, tmp_path)
    assert len(found) == len(expected) == STEPS
    assert found == pytest.approx(expected, abs=1e-4)
    assert min(expected) < math.log(BATCH) - 0.2  # it learned something to agree about

"""CLIP training steps: clipmill's trainer, open_clip's training loop, and bare PyTorch.

All train one network, from the same weights, on one batch with texts of equal length. open_clip's
loop and the limit get images that are normalized already; clipmill does it in the step.
"""

import itertools
import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness.case import LIMIT, Case, Contender, Sizes
from harness.session import Session

from parts.models import TINY_CLIP

LR, WEIGHT_DECAY, WARMUP_STEPS = 1e-4, 0.2, 10
BETAS, EPSILON = (0.9, 0.95), 1e-6
ANSWER_STEPS = 3
_NUM_STEPS = 1_000_000


def clip_config(recipe: str, sizes: Sizes) -> Any:
    """Return the architecture of a recipe, or a tiny one."""
    from clipmill.pretrain.config import PretrainConfig
    from clipmill.recipes.registry import get_recipe

    return TINY_CLIP if sizes["tiny"] else get_recipe(recipe, PretrainConfig).model


def tensors(config: Any, sizes: Sizes) -> tuple[Any, Any, Any]:
    """Return a batch as clipmill's loader makes it, its normalized images, and its texts."""
    from towers import pairs

    from clipmill.models.encoders import Normalize

    batch = pairs(config, sizes["batch_size"])
    images = Normalize(config.vision.mean, config.vision.std)(batch.images_B3HW.float() / 255)
    return batch, images, batch.real_BT


def evaluation_loss(model: Any, images: Any, texts: Any) -> float:
    """Return the contrastive loss without changing the model."""
    import torch

    model.eval()
    with torch.no_grad():
        image = model.encode_image(images, normalize=True)
        logits = model.logit_scale.exp() * image @ model.encode_text(texts, normalize=True).T
        loss = _contrastive(logits)
    model.train()
    return float(loss)


def _contrastive(logits: Any) -> Any:
    import torch

    labels = torch.arange(len(logits))
    cross_entropy = torch.nn.functional.cross_entropy
    return (cross_entropy(logits, labels) + cross_entropy(logits.T, labels)) / 2


class Steps:
    """Called before each step: answers after a few, then ends laps and waits for the next."""

    def __init__(self, session: Session, sizes: Sizes, images: Any, texts: Any) -> None:
        self._session, self._sizes = session, sizes
        self._images, self._texts = images, texts
        self._first = 0.0

    def __call__(self, step: int, model: Any) -> None:
        """Note the loss, answer, or end a lap, before step ``step`` (from 0)."""
        if step == 0:
            self._first = self._loss(model)
        if step == ANSWER_STEPS:
            self._session.answer(
                loss_before=self._first,
                loss_after=self._loss(model),
                parameters=sum(p.numel() for p in model.parameters()),
            )
            self._session.start()
        steps = self._sizes["steps"]
        if step > ANSWER_STEPS and (step - ANSWER_STEPS) % steps == 0:
            self._session.stop(steps * self._sizes["batch_size"])
            self._session.start()

    def _loss(self, model: Any) -> float:
        return evaluation_loss(model, self._images, self._texts)


def clipmill(recipe: str, folder: Path, sizes: Sizes, session: Session) -> None:
    """``train`` of clipmill.engine, whole."""
    from clipmill.engine.config import AdamWConfig, ScheduleConfig, TrainConfig
    from clipmill.engine.trainer import train
    from clipmill.pretrain.clip import ClipObjective

    config = clip_config(recipe, sizes)
    batch, images, texts = tensors(config, sizes)
    steps = Steps(session, sizes, images, texts)
    objectives: list[ClipObjective] = []

    def build(dist: Any) -> ClipObjective:
        objectives.append(ClipObjective(config, dist))
        return objectives[0]

    def batches(start_step: int, dist: Any) -> Iterator[Any]:
        del dist
        for step in itertools.count(start_step):
            steps(step, objectives[0].clip)
            yield batch

    schedule = ScheduleConfig(lr=LR, warmup_steps=WARMUP_STEPS)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        train(
            build,
            batches,
            TrainConfig(
                steps=_NUM_STEPS,
                batch_size=sizes["batch_size"],
                schedule=schedule,
                optimizer=AdamWConfig(betas=BETAS, epsilon=EPSILON, weight_decay=WEIGHT_DECAY),
                checkpoint_every=_NUM_STEPS,
                num_threads=sizes["threads"],
            ),
            name="clip",
            checkpoint_uri=scratch,
            report=lambda *_: None,
        )


def _build(config: Any, sizes: Sizes) -> tuple[Any, list[dict[str, Any]]]:
    """Return the network with the same weights, and its groups of parameters for AdamW."""
    import torch

    from clipmill.models.towers import build_clip

    torch.set_num_threads(sizes["threads"])
    torch.manual_seed(0)
    model = build_clip(config).train()
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    groups = [
        {"params": plain, "weight_decay": 0.0},
        {"params": decayed, "weight_decay": WEIGHT_DECAY},
    ]
    return model, groups


def open_clip_train(recipe: str, folder: Path, sizes: Sizes, session: Session) -> None:
    """``train_one_epoch`` of open_clip_train, whole."""
    del folder
    import torch
    from open_clip.loss import ClipLoss
    from open_clip_train.scheduler import cosine_lr
    from open_clip_train.train import train_one_epoch

    config = clip_config(recipe, sizes)
    _, images, texts = tensors(config, sizes)
    model, groups = _build(config, sizes)
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPSILON)
    steps = Steps(session, sizes, images, texts)

    class Batches:
        num_batches, num_samples = _NUM_STEPS, _NUM_STEPS * sizes["batch_size"]

        def __iter__(self) -> Iterator[tuple[Any, Any]]:
            for step in itertools.count():
                steps(step, model)
                yield images, texts

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
        log_every_n_steps=100,
        batch_size=sizes["batch_size"],
        world_size=1,
        wandb=False,
    )
    data = {"train": SimpleNamespace(dataloader=Batches(), set_epoch=lambda _: None)}
    schedule = cosine_lr(optimizer, LR, WARMUP_STEPS, _NUM_STEPS)
    train_one_epoch(model, data, ClipLoss(), 0, optimizer, None, schedule, None, arguments)


def bare_steps(recipe: str, folder: Path, sizes: Sizes, session: Session) -> None:
    """Forward, backward and a fused AdamW, channels last, and nothing else."""
    del folder
    import torch

    config = clip_config(recipe, sizes)
    _, images, texts = tensors(config, sizes)
    model, groups = _build(config, sizes)
    model = model.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(groups, lr=LR, betas=BETAS, eps=EPSILON, fused=True)
    steps = Steps(session, sizes, images, texts)
    for step in itertools.count():
        steps(step, model)
        for group in optimizer.param_groups:
            group["lr"] = LR * min(1, (step + 1) / WARMUP_STEPS)
        image = model.encode_image(images, normalize=True)
        logits = model.logit_scale.exp() * image @ model.encode_text(texts, normalize=True).T
        _contrastive(logits).backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        with torch.no_grad():
            model.logit_scale.clamp_(0, 4.6052)  # ln 100


def _case(title: str, recipe: str, batch_size: int) -> Case:
    return Case(
        name=f"{title}, fp32, batch {batch_size}",
        unit="samples",
        contenders=(
            Contender(
                name="clipmill",
                run=partial(clipmill, recipe),
                packages=("torch",),
                settings="train(): images normalized in the step",
            ),
            Contender(
                name="open_clip_train",
                run=partial(open_clip_train, recipe),
                packages=("open_clip_torch",),
                settings="train_one_epoch; texts cut to the longest, as ours; AdamW",
                at_least=1.1,
            ),
            Contender(
                name=LIMIT,
                run=partial(bare_steps, recipe),
                packages=("torch",),
                settings="forward, backward, fused AdamW; channels last; images normalized before",
                at_least=0.95,
            ),
        ),
        sizes={"batch_size": batch_size, "steps": 2, "threads": 2, "tiny": 0},
        tiny={"batch_size": 4, "steps": 2, "threads": 1, "tiny": 1},
        # Where paths are dropped, the steps draw different ones.
        tolerances={"loss_before": 1e-3, "loss_after": 0.1},
    )


CASES = (
    _case("ViT-B/16", "clip-vit-b16-12.8b", 8),
    _case("MCi0", "clip-mci0-12.8b", 8),
)

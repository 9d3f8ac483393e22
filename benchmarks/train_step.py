"""A CLIP training step: ours against the same model in open_clip's own step, in one run.

Ours is what the loop does (objective, clipping's norm, AdamW groups, averaging off); open_clip's is
the body of its ``train_one_epoch``: autocast context, forward, ClipLoss, backward, AdamW over its
two groups, clamp. Steps alternate, so that both meet the same machine. Prints medians and a ratio.
"""

import argparse
import math
import os
import statistics
import time
from typing import Any

import torch
from open_clip.loss import ClipLoss
from rich.console import Console
from rich.table import Table

from clipmill.data.loader import PairBatch
from clipmill.engine.distributed import Ranks
from clipmill.engine.loop import _Run
from clipmill.models.towers import build_clip
from clipmill.pretrain.clip_objective import ClipObjective
from clipmill.recipes.clip import clip_vit_miniature


def open_clip_step(
    model: Any, loss: ClipLoss, optimizer: torch.optim.Optimizer, batch: PairBatch
) -> None:
    """One step as open_clip's training loop takes it, on normalised images."""
    optimizer.zero_grad()
    found = model(batch.images_B3HW, batch.real_BT)
    total = loss(found["image_features"], found["text_features"], found["logit_scale"])
    total.backward()
    optimizer.step()
    with torch.no_grad():
        model.logit_scale.clamp_(0, math.log(100))


def main() -> None:
    """Time both."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    recipe = clip_vit_miniature()
    config = recipe.train.override(["average_decay=null"])
    size = recipe.model.vision.image_size
    tokens = recipe.model.text.tokenizer()(["a red cube and a blue sphere"] * config.batch_size)
    pixels = torch.randint(0, 255, (config.batch_size, 3, size, size), dtype=torch.uint8)
    ours = _Run(ClipObjective(recipe.model, Ranks()), config, "clip", Ranks())
    raw = PairBatch(pixels, tokens, None, ())
    model = build_clip(recipe.model)
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}],
        lr=1e-3,
        betas=(0.9, 0.95),
        eps=1e-6,
    )
    normalized = PairBatch(torch.randn(pixels.shape), tokens, None, ())
    loss = ClipLoss()
    seconds: dict[str, list[float]] = {"clipmill": [], "open_clip": []}
    for step in range(options.steps + 2):
        for name, times in seconds.items():
            started = time.perf_counter()
            if name == "clipmill":
                ours.update(step, raw)
            else:
                open_clip_step(model, loss, optimizer, normalized)
            if step >= 2:
                times.append(time.perf_counter() - started)
    table = Table(title=f"CLIP step, batch {config.batch_size}, {os.cpu_count()} CPUs")
    table.add_column("loop")
    table.add_column("median ms", justify="right")
    table.add_column("images/s", justify="right")
    for name, values in seconds.items():
        median = statistics.median(values)
        table.add_row(name, f"{median * 1000:.0f}", f"{config.batch_size / median:.0f}")
    console = Console()
    console.print(table)
    ratio = statistics.median(seconds["open_clip"]) / statistics.median(seconds["clipmill"])
    console.print(f"clipmill / open_clip speed: {ratio:.2f}")


if __name__ == "__main__":
    main()

"""CLIP training: our loop against open_clip's own, on one model and the same data.

``train`` of clipmill.engine and ``train_one_epoch`` of open_clip_train, whole, each in processes of
its own that take turns, so that both meet the same machine and each has a peak of memory. open_clip
gets its images normalized already and its texts padded to the context, as its loader makes them;
we normalize in the step, and our texts are as long as the batch's longest. Prints medians, and the
ratios of speed and memory: ``python benchmarks/train_step.py``. Where other work shares the
machine, processor time is what can be compared. On a GPU steps are timed by its own events, and
memory is the GPU's: ``python benchmarks/train_step.py --model base --batch 512 --precision bf16``.
"""

import argparse
import itertools
import json
import logging
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from towers import BASE, SMALL, hardware, pairs

from clipmill.data.loading.dataloader import PairBatch
from clipmill.engine.config import AdamWConfig, ScheduleConfig, TrainConfig
from clipmill.engine.distributed import DistributedContext
from clipmill.engine.trainer import train
from clipmill.models.encoders import Normalize
from clipmill.models.towers import build_clip
from clipmill.pretrain.clip import ClipObjective

_WARM = 2
_PEAK = 1e-3


_MODELS = {"small": (SMALL, "ViT-Ti/16 at 112 px"), "base": (BASE, "ViT-B/16 at 224 px")}
_ON_GPU = torch.cuda.is_available()

Lap = tuple[float, float]
"""Seconds on the wall, or between a GPU's events; and of the processor."""


def now() -> tuple[Any, float]:
    """Both clocks."""
    if not _ON_GPU:
        return time.perf_counter(), time.process_time()
    event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record()
    return event, time.process_time()


def between(laps: list[tuple[Any, float]]) -> list[Lap]:
    """The time of each step."""
    if not _ON_GPU:
        return [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(laps)]
    torch.cuda.synchronize()
    return [(a[0].elapsed_time(b[0]) / 1e3, b[1] - a[1]) for a, b in itertools.pairwise(laps)]


def peak_bytes() -> int:
    """The most memory that this process held: of the GPU, where there is one."""
    if _ON_GPU:
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def ours(options: argparse.Namespace) -> list[Lap]:
    """Seconds of each step of our loop."""
    laps: list[tuple[Any, float]] = []
    model, _ = _MODELS[options.model]
    batch = pairs(model, options.batch)
    if _ON_GPU:
        batch = batch.pin_memory()

    def batches(cursor: int, dist: DistributedContext) -> Iterator[PairBatch]:
        del cursor, dist
        while True:
            laps.append(now())
            yield batch

    config = TrainConfig(
        steps=options.steps + _WARM,
        batch_size=options.batch,
        schedule=ScheduleConfig(lr=_PEAK, warmup_steps=10),
        optimizer=AdamWConfig(weight_decay=0.2),
        precision=options.precision,
        num_threads=options.threads,
    )
    with tempfile.TemporaryDirectory() as folder:
        train(
            lambda dist: ClipObjective(model, dist),
            batches,
            config,
            name="clip",
            checkpoint_uri=folder,
            report=lambda *_: None,
        )
    return between(laps)


def open_clips(options: argparse.Namespace) -> list[Lap]:
    """Seconds of each step of open_clip's loop."""
    from open_clip.loss import ClipLoss
    from open_clip_train.scheduler import cosine_lr
    from open_clip_train.train import train_one_epoch

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    config, _ = _MODELS[options.model]
    device = "cuda" if _ON_GPU else "cpu"
    model: Any = build_clip(config).to(device)
    raw = pairs(config, options.batch, is_padded=True)
    images, texts = Normalize()(raw.images_B3HW.float() / 255), raw.real_BT
    assert texts is not None
    if _ON_GPU:
        images, texts = images.pin_memory(), texts.pin_memory()
    laps: list[tuple[Any, float]] = []
    num_steps = options.steps + _WARM

    class Batches:
        num_batches, num_samples = num_steps, num_steps * options.batch

        def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor | None]]:
            for _ in range(num_steps):
                laps.append(now())
                yield images, texts

    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": plain, "weight_decay": 0.0}, {"params": decayed, "weight_decay": 0.2}],
        lr=_PEAK,
        betas=(0.9, 0.95),
        eps=1e-6,
    )
    arguments = SimpleNamespace(
        device=device,
        precision="amp_bf16" if options.precision == "bf16" else "fp32",
        distill=False,
        accum_freq=1,
        skip_scheduler=False,
        grad_clip_norm=None,
        rank=0,
        local_rank=0,
        log_local=False,
        log_every_n_steps=100,
        batch_size=options.batch,
        world_size=1,
        wandb=False,
    )
    data = {"train": SimpleNamespace(dataloader=Batches(), set_epoch=lambda _: None)}
    schedule = cosine_lr(optimizer, _PEAK, 10, num_steps)
    train_one_epoch(model, data, ClipLoss(), 0, optimizer, None, schedule, None, arguments)
    return between(laps)


_LOOPS = {"clipmill": ours, "open_clip_train": open_clips}


def child(name: str, options: argparse.Namespace) -> None:
    """Print what one process measured."""
    logging.disable()
    laps = _LOOPS[name](options)[_WARM:]
    print(json.dumps({"seconds": laps, "peak_bytes": peak_bytes()}))


def main() -> None:
    """Take turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=8, help="of a turn")
    parser.add_argument("--turns", type=int, default=3)
    parser.add_argument("--model", choices=sorted(_MODELS), default="small")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--child", choices=sorted(_LOOPS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.child:
        child(options.child, options)
        return
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in _LOOPS}
    for _ in range(options.turns):
        for name, turns in found.items():
            command = [sys.executable, __file__, *sys.argv[1:], "--child", name]
            environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads)}
            done = subprocess.run(command, env=environment, stdout=subprocess.PIPE, check=True)
            turns.append(json.loads(done.stdout.splitlines()[-1]))
    towers = _MODELS[options.model][1]
    title = f"CLIP training, {towers}, batch {options.batch}, {options.precision}"
    table = Table(title=title, caption=hardware())
    rate = "samples/s" if _ON_GPU else "samples/CPU s"
    for heading in ("loop", "ms", "CPU ms", rate, "peak MB"):
        table.add_column(heading, justify="left" if heading == "loop" else "right")
    wall, cpu = (
        {
            n: statistics.median(s[clock] for t in ts for s in t["seconds"])
            for n, ts in found.items()
        }
        for clock in (0, 1)
    )
    peaks = {n: statistics.median(t["peak_bytes"] for t in ts) for n, ts in found.items()}
    for name in found:
        speed = f"{options.batch / (wall if _ON_GPU else cpu)[name]:.1f}"
        times = (f"{wall[name] * 1000:.0f}", f"{cpu[name] * 1000:.0f}")
        table.add_row(name, *times, speed, f"{peaks[name] / 1e6:.0f}")
    console = Console()
    console.print(table)
    mine, theirs = _LOOPS
    console.print(f"{mine} / {theirs} speed: {wall[theirs] / wall[mine]:.2f}")
    console.print(f"{mine} / {theirs} speed by processor time: {cpu[theirs] / cpu[mine]:.2f}")
    console.print(f"{mine} / {theirs} peak memory: {peaks[mine] / peaks[theirs]:.2f}")


if __name__ == "__main__":
    main()

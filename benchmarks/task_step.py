"""Fine-tuning: our loop against mmengine's ``Runner``, on one tiny recipe and the same data.

``upernet-tiny`` and ``mask-rcnn-tiny`` as ``clipmill finetune`` trains them, and as mmseg
and mmdet do: their models of the same widths on the same encoder, their loading, their loop. Data
loading counts, in the process on both sides. Each runs in processes of its own that take turns.
Prints medians and ratios: ``python benchmarks/task_step.py``. Where other work shares the machine,
processor time is what can be compared.
"""

import argparse
import itertools
import json
import logging
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from towers import hardware

from clipmill.engine.distributed import DistributedContext
from clipmill.engine.trainer import train
from clipmill.models.pretrained import open_encoder
from clipmill.recipes.registry import get_recipe
from clipmill.scenes import SceneConfig, write_ade20k, write_coco
from clipmill.tasks.finetune import FinetuneConfig
from clipmill.tasks.training_registry import get_training_task

_WARM = 3
_NUM_IMAGES = 64
_RECIPES = {"segmentation": "upernet-tiny", "detection": "mask-rcnn-tiny"}
_ENCODER = "random:timm/test_resnet"
_LOOPS = ("clipmill", "mmengine")


def now() -> tuple[float, float]:
    """Seconds on the wall, and of the processor."""
    return time.perf_counter(), time.process_time()


def data(task: str, folder: Path) -> None:
    """Crowded scenes in the task's layout."""
    scenes = SceneConfig(min_objects=4, max_objects=8)
    if task == "segmentation":
        write_ade20k(scenes, range(_NUM_IMAGES), folder, "training")
    else:
        write_coco(scenes, range(_NUM_IMAGES), folder, "train2017")


def config_of(options: argparse.Namespace) -> FinetuneConfig:
    """Return the tiny recipe, no longer than a turn."""
    config = get_recipe(_RECIPES[options.task], FinetuneConfig)
    schedule = replace(config.train.schedule, warmup_steps=1)
    steps = options.steps + _WARM
    train = replace(config.train, steps=steps, schedule=schedule, checkpoint_every=10**6)
    return replace(config, train=train)


def laps_of(options: argparse.Namespace) -> list[tuple[float, float]]:
    """Both clocks at the end of each step."""
    config, encoder = config_of(options), open_encoder(_ENCODER).config
    task, folder = get_training_task(config.task), Path(options.data)
    classes = task.classes(folder)
    laps: list[tuple[float, float]] = []
    with tempfile.TemporaryDirectory() as scratch:
        if options.child == "mmengine":
            import tasks_vs_mmlab

            build = getattr(tasks_vs_mmlab, options.task)
            runner = build(
                config.model,
                config.train,
                encoder,
                folder,
                classes,
                lambda: laps.append(now()),
                scratch,
            )
            runner.train()
            return laps

        def batches(start_step: int, dist: DistributedContext) -> Iterator[Any]:
            # A batch is made while the one before is still being computed: the end of a step is
            # where the next is asked for.
            made = task.train_dataloader(
                config.model,
                folder,
                batch_size=config.train.batch_size,
                seed=config.train.seed,
                start_step=start_step,
                rank=dist.rank,
                world_size=dist.world_size,
            )
            while True:
                laps.append(now())
                yield next(made)

        train(
            lambda _: task.build_objective(config.model, encoder, classes),
            batches,
            config.train,
            name=task.name,
            checkpoint_uri=scratch,
            report=lambda *_: None,
        )
    return laps


def child(options: argparse.Namespace) -> None:
    """Print what one process measured."""
    logging.disable()
    torch.set_num_threads(1)
    laps = laps_of(options)
    steps = [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(laps)]
    print("\n" + json.dumps(steps[_WARM:]))


def main() -> None:
    """Take turns, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20, help="of a turn")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--task", choices=sorted(_RECIPES), help=argparse.SUPPRESS)
    parser.add_argument("--data", help=argparse.SUPPRESS)
    parser.add_argument("--child", choices=_LOOPS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options)
        return
    table = Table(title="Fine-tuning step, one thread", caption=hardware())
    for heading in ("task", "loop", "ms", "CPU ms"):
        table.add_column(heading, justify="right" if "ms" in heading else "left")
    ratios = []
    for task in _RECIPES:
        found: dict[str, list[list[float]]] = {name: [] for name in _LOOPS}
        with tempfile.TemporaryDirectory() as folder:
            data(task, Path(folder))
            for _ in range(options.turns):
                for name, turns in found.items():
                    command = [sys.executable, __file__, "--steps", str(options.steps)]
                    command += ["--task", task, "--data", folder, "--child", name]
                    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
                    done = subprocess.run(
                        command, env=environment, stdout=subprocess.PIPE, check=True
                    )
                    turns.extend(json.loads(done.stdout.splitlines()[-1]))
        clocks = {
            n: [statistics.median(clock) for clock in zip(*s, strict=True)]
            for n, s in found.items()
        }
        for name, (wall, cpu) in clocks.items():
            table.add_row(task, name, f"{wall * 1000:.1f}", f"{cpu * 1000:.1f}")
        wall, cpu = (b / a for a, b in zip(*(clocks[name] for name in _LOOPS), strict=True))
        ratios.append(f"{task}, clipmill / mmengine speed: {wall:.2f}, by processor time {cpu:.2f}")
    console = Console()
    console.print(table)
    for line in ratios:
        console.print(line)


if __name__ == "__main__":
    main()

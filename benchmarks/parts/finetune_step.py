"""Fine-tuning steps, loading included: clipmill's trainer, mmengine's Runner, bare PyTorch.

The recipes ``upernet-tiny`` and ``mask-rcnn-tiny``, and mmseg's and mmdet's models of the same
widths on the same encoder, on the same images. The limit has its batches in memory.
"""

import itertools
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from harness.case import LIMIT, Case, Contender, Sizes
from harness.session import Session

RECIPES = {"segmentation": "upernet-tiny", "detection": "mask-rcnn-tiny"}
ENCODER = "random:timm/test_resnet"
WARM_STEPS = 3
_NUM_STEPS = 1_000_000
_LIMIT_BATCHES = 4


def write_data(task: str, folder: Path, sizes: Sizes) -> None:
    """Write crowded scenes in the task's layout."""
    from clipmill.scenes import SceneConfig, write_ade20k, write_coco

    scenes, images = SceneConfig(min_objects=4, max_objects=8), range(sizes["images"])
    if task == "segmentation":
        write_ade20k(scenes, images, folder / "data", "training")
    else:
        write_coco(scenes, images, folder / "data", "train2017")


class Setup:
    """A task with its tiny recipe, for a run without an end."""

    def __init__(self, task: str, folder: Path, sizes: Sizes) -> None:
        from clipmill.models.pretrained import open_encoder
        from clipmill.recipes.registry import get_recipe
        from clipmill.tasks.finetune import FinetuneConfig
        from clipmill.tasks.training_registry import get_training_task

        recipe = get_recipe(RECIPES[task], FinetuneConfig)
        self.model = recipe.model
        self.train = replace(
            recipe.train,
            steps=_NUM_STEPS,
            schedule=replace(recipe.train.schedule, warmup_steps=1),
            checkpoint_every=_NUM_STEPS,
            num_threads=sizes["threads"],
        )
        self.encoder = open_encoder(ENCODER).config
        self.task = get_training_task(recipe.task)
        self.folder = folder / "data"
        self.classes = self.task.classes(self.folder)

    def batches(self, start_step: int = 0) -> Iterator[Any]:
        """Return clipmill's loader."""
        batches: Iterator[Any] = self.task.train_dataloader(
            self.model,
            self.folder,
            batch_size=self.train.batch_size,
            seed=self.train.seed,
            start_step=start_step,
            rank=0,
            world_size=1,
        )
        return batches


def end_of_step(session: Session, sizes: Sizes, batch_size: int) -> Callable[[int, Any], None]:
    """Return what is called after ``step`` steps, with the network: it answers, and ends laps."""

    def ended(step: int, network: Any) -> None:
        if step == WARM_STEPS:
            trained = sum(p.numel() for p in network.parameters() if p.requires_grad)
            session.answer(parameters=trained, batch_size=batch_size)
            session.start()
        elif step > WARM_STEPS and (step - WARM_STEPS) % sizes["steps"] == 0:
            session.stop(sizes["steps"] * batch_size)
            session.start()

    return ended


def clipmill(task: str, folder: Path, sizes: Sizes, session: Session) -> None:
    """``train`` of clipmill.engine, whole."""
    from clipmill.engine.trainer import train

    setup = Setup(task, folder, sizes)
    ended = end_of_step(session, sizes, setup.train.batch_size)
    networks: list[Any] = []

    def build(dist: Any) -> Any:
        del dist
        networks.append(setup.task.build_objective(setup.model, setup.encoder, setup.classes))
        return networks[0]

    def batches(start_step: int, dist: Any) -> Iterator[Any]:
        del dist
        # The next batch is asked for at the end of a step.
        for step, batch in enumerate(setup.batches(start_step)):
            ended(step, networks[0])
            yield batch

    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        train(
            build,
            batches,
            setup.train,
            name=setup.task.name,
            checkpoint_uri=scratch,
            report=lambda *_: None,
        )


def mmengine(task: str, folder: Path, sizes: Sizes, session: Session) -> None:
    """mmengine's Runner with mmseg's or mmdet's model, data set and pipeline."""
    import torch

    from parts import mmlab

    torch.set_num_threads(sizes["threads"])
    setup = Setup(task, folder, sizes)
    ended = end_of_step(session, sizes, setup.train.batch_size)
    steps = itertools.count()
    runners: list[Any] = []
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        build: Callable[..., Any] = getattr(mmlab, task)
        runner = build(
            setup.model,
            setup.train,
            setup.encoder,
            setup.folder,
            setup.classes,
            lambda: ended(next(steps), runners[0].model),
            scratch,
        )
        runners.append(runner)
        runner.train()


def bare_steps(task: str, folder: Path, sizes: Sizes, session: Session) -> None:
    """Forward, backward and a fused AdamW on batches in memory, and nothing else."""
    import torch

    setup = Setup(task, folder, sizes)
    torch.set_num_threads(sizes["threads"])
    torch.manual_seed(0)
    network = setup.task.build_objective(setup.model, setup.encoder, setup.classes).train()
    network = network.to(memory_format=torch.channels_last)
    ended = end_of_step(session, sizes, setup.train.batch_size)
    constants = setup.train.optimizer
    optimizer = torch.optim.AdamW(
        [p for p in network.parameters() if p.requires_grad],
        lr=setup.train.schedule.lr,
        betas=constants.betas,
        eps=constants.epsilon,
        weight_decay=constants.weight_decay,
        fused=True,
    )
    batches = list(itertools.islice(setup.batches(), _LIMIT_BATCHES))
    for step in itertools.count():
        ended(step, network)
        losses = network(batches[step % len(batches)])
        torch.autograd.backward(torch.stack([value.float() for value in losses.values()]).sum())
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def _case(task: str, package: str) -> Case:
    return Case(
        name=f"{task}, tiny recipe",
        unit="images",
        prepare=partial(write_data, task),
        contenders=(
            Contender(
                name="clipmill",
                run=partial(clipmill, task),
                packages=("torch",),
                settings="train(), loading in the process",
            ),
            Contender(
                name="mmengine Runner",
                run=partial(mmengine, task),
                packages=("onedl-mmengine", package),
                settings="the package's config, data set and pipeline; num_workers=0",
                at_least=1.1,
            ),
            Contender(
                name=LIMIT,
                run=partial(bare_steps, task),
                packages=("torch",),
                settings="forward, backward, fused AdamW; batches in memory",
                at_least=0.9,
            ),
        ),
        sizes={"images": 64, "steps": 20, "threads": 2},
        tiny={"images": 8, "steps": 1, "threads": 1},
    )


CASES = (
    _case("segmentation", "onedl-mmsegmentation"),
    _case("detection", "onedl-mmdetection"),
)

"""Data that all conditions of a study share: pairs, caption layers, labels."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar

from clipmill.data.dataset import Dataset
from clipmill.data.labeled.folder import fetch_folder
from clipmill.data.recaption import recaption
from clipmill.data.shards.write import write_dataset
from clipmill.errors import ConfigError
from clipmill.pretrain.coca import train_coca
from clipmill.scenes.source import CAPTIONING, LABELS, PAIRS, draw_source
from clipmill.stage_records import ProgressCallback
from clipmill.storage import join
from clipmill.study.config import COCA, StudyConfig, SyntheticDataConfig, UserDataConfig
from clipmill.study.scene_captions import SceneCaptions, add_scene_layers, draw_captions

ValueT = TypeVar("ValueT")

_BARRIER_TIMEOUT_SECONDS = 7 * 24 * 3600.0


@dataclass(frozen=True, slots=True)
class StudyData:
    """URIs of the data; picklable."""

    dataset: str
    """URI of the sharded pairs."""
    layers: Mapping[str, str]
    """Full names of caption layers, by the names that conditions use."""
    labels: Mapping[str, str]
    """Data to fine-tune and evaluate on, by task."""
    store: str
    """URI of the store."""
    captioner: str = ""
    """URI of the study's own captioner; empty without one."""
    teacher_layer: str = ""
    """Layer of the teacher's embeddings; empty without distillation."""


def prepare_data(config: StudyConfig, store: str, *, report: ProgressCallback) -> StudyData:
    """Open the study's data, and generate what is missing.

    Raises:
        ConfigError: user data isn't named, or lacks a layer or a task's labels.
    """
    layers = sorted({condition.layer for condition in config.conditions} - {""})
    if config.synthetic_data is not None:
        return _synthetic(config.synthetic_data, layers, store, report)
    assert config.user_data is not None  # the config holds one of them
    return _user_provided(config, config.user_data, layers, store)


def known_scenes(config: StudyConfig) -> list[SceneCaptions]:
    """Return the captions and content of each generated image, in order; none for user data."""
    return draw_captions(config.synthetic_data.scenes) if config.synthetic_data else []


def num_ranks() -> int:
    """Return the number of ``torchrun`` processes that run the study together."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def run_on_rank_zero(work: Callable[[], ValueT]) -> ValueT:
    """Run ``work`` on rank 0 while the others wait, and return its result on all of them."""
    if num_ranks() == 1:
        return work()
    import torch

    from clipmill.engine.distributed import init_distributed

    with init_distributed(_BARRIER_TIMEOUT_SECONDS) as dist:
        results = [None if dist.rank else work()]
        torch.distributed.broadcast_object_list(results)
        (value,) = results
    assert value is not None
    return value


def _synthetic(
    config: SyntheticDataConfig, layer_names: list[str], store: str, report: ProgressCallback
) -> StudyData:
    def shard(source: str, name: str) -> str:
        folder, parent = fetch_folder(join(source, name), "source")
        return write_dataset(config.shards, str(folder), store, source_parents=(parent,))

    def generate() -> tuple[str, str, dict[str, str]]:
        source = draw_source(config.scenes, store, report=report)
        dataset = shard(source, PAIRS)
        names = [name for name in layer_names if name != COCA]
        layers: dict[str, str] = {}
        if names:
            scenes = draw_captions(config.scenes)
            layers = add_scene_layers(dataset, scenes, names, report=report)
        return source, dataset, layers

    source, dataset, layers = run_on_rank_zero(generate)
    captioner = ""
    if COCA in layer_names:
        captioning_pairs = run_on_rank_zero(lambda: shard(source, CAPTIONING))
        captioner = train_coca(config.captioner, captioning_pairs, store, report=report)
        layers[COCA] = run_on_rank_zero(
            lambda: recaption(config.recaption, dataset, captioner, report=report)
        )
    labels: dict[str, str] = {task: join(source, LABELS[task]) for task in config.scenes.tasks}
    return StudyData(dataset, layers, labels, store, captioner)


def _user_provided(
    config: StudyConfig, data: UserDataConfig, layer_names: list[str], store: str
) -> StudyData:
    tasks = {transfer.task for transfer in config.transfers.values()}
    if any(condition.encoder in config.supervised for condition in config.conditions):
        tasks.add("classification")
    missing = [
        *([] if data.dataset else ["user_data.dataset"]),
        *(f"user_data.layers.{name}" for name in layer_names if not data.layers.get(name)),
        *(f"user_data.labels.{task}" for task in sorted(tasks) if not data.labels.get(task)),
    ]
    if missing:
        raise ConfigError(
            f"no value for {', '.join(missing)}",
            expected="the dataset's URI, a caption layer for each name that conditions use, and "
            "the data of each task",
            action=f"give each, as in --set {missing[0]}=...",
        )
    known = Dataset.open(data.dataset).layers
    for name in layer_names:
        if data.layers[name] not in known:
            raise ConfigError(
                f"{data.dataset} has no layer {data.layers[name]!r}",
                expected=f"one of {', '.join(known) or 'none: it has no layers'}",
                action=f"correct user_data.layers.{name}, or recaption the dataset first",
            )
    return StudyData(data.dataset, data.layers, data.labels, store)

"""What all conditions of a study share: pairs, captions, labels; drawn here, or a team's own."""

from collections.abc import Mapping
from dataclasses import dataclass

from clipmill.data.dataset import Dataset
from clipmill.data.labeled.folder import open_folder
from clipmill.data.recaption import recaption
from clipmill.data.shards.write import write_dataset
from clipmill.errors import ConfigError
from clipmill.pretrain.coca import train_coca
from clipmill.scenes.source import CAPTIONING, LABELS, PAIRS, draw_source
from clipmill.stage_records import ProgressCallback
from clipmill.storage import join
from clipmill.study.config import COCA, DrawnConfig, GivenConfig, StudyConfig
from clipmill.study.ranks import on_first_rank
from clipmill.study.scene_captions import SceneCaptions, add_scene_layers, draw_captions


@dataclass(frozen=True, slots=True)
class World:
    """What all conditions share; picklable."""

    dataset: str
    """URI of the pairs, sharded."""
    layers: Mapping[str, str]
    """Full names of caption layers, by the names that conditions give them."""
    labels: Mapping[str, str]
    """Data to fine-tune and judge on, by task."""
    store: str
    """Where everything lies."""
    captioner: str = ""
    """URI of the one that the study trained, if it did."""
    teaching: str = ""
    """Layer of the teacher's embeddings, if conditions are distilled."""


def make_world(config: StudyConfig, store: str, *, report: ProgressCallback) -> World:
    """The study's world, with everything in it that isn't there yet.

    Raises:
        ConfigError: given data isn't named, or lacks a layer or a task's labels.
    """
    asked = sorted({condition.layer for condition in config.conditions} - {""})
    if config.drawn is not None:
        return _drawn(config.drawn, asked, store, report)
    assert config.given is not None  # the config holds one of them
    return _given(config, config.given, asked, store)


def scenes_of(config: StudyConfig) -> list[SceneCaptions]:
    """What is true of each drawn picture, in order; nothing is known of given ones."""
    return draw_captions(config.drawn.scenes) if config.drawn else []


def _drawn(drawn: DrawnConfig, asked: list[str], store: str, report: ProgressCallback) -> World:
    def sharded(source: str, name: str) -> str:
        folder, parent = open_folder(join(source, name), "source")
        return write_dataset(drawn.shards, str(folder), store, source_parents=(parent,))

    def made() -> tuple[str, str, dict[str, str]]:
        source = draw_source(drawn.scenes, store, report=report)
        dataset = sharded(source, PAIRS)
        names = [name for name in asked if name != COCA]
        layers: dict[str, str] = {}
        if names:
            scenes = draw_captions(drawn.scenes)
            layers = add_scene_layers(dataset, scenes, names, report=report)
        return source, dataset, layers

    source, dataset, layers = on_first_rank(made)
    captioner = ""
    if COCA in asked:
        pictures = on_first_rank(lambda: sharded(source, CAPTIONING))
        captioner = train_coca(drawn.captioner, pictures, store, report=report)
        layers[COCA] = on_first_rank(
            lambda: recaption(drawn.recaption, dataset, captioner, report=report)
        )
    labels: dict[str, str] = {task: join(source, LABELS[task]) for task in drawn.scenes.tasks}
    return World(dataset, layers, labels, store, captioner)


def _given(config: StudyConfig, given: GivenConfig, asked: list[str], store: str) -> World:
    tasks = {transfer.task for transfer in config.transfers.values()}
    if any(condition.encoder in config.supervised for condition in config.conditions):
        tasks.add("classification")
    missing = [
        *([] if given.dataset else ["given.dataset"]),
        *(f"given.layers.{name}" for name in asked if not given.layers.get(name)),
        *(f"given.labels.{task}" for task in sorted(tasks) if not given.labels.get(task)),
    ]
    if missing:
        raise ConfigError(
            f"nothing is given for {', '.join(missing)}",
            expected="the dataset's URI, a caption layer for each name that conditions take, and "
            "the data of each task",
            action=f"give each, as in --set {missing[0]}=...",
        )
    known = Dataset.open(given.dataset).layers
    for name in asked:
        if given.layers[name] not in known:
            raise ConfigError(
                f"{given.dataset} has no layer {given.layers[name]!r}",
                expected=f"one of {', '.join(known) or 'none: it has no layers'}",
                action=f"correct given.layers.{name}, or recaption the dataset first",
            )
    return World(given.dataset, given.layers, given.labels, store)

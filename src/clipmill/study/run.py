"""Run a study: data of each condition, its encoders and their evaluations, for every seed.

Every artifact is at the address that its own command would use, so an interrupted study resumes,
and each number can be traced to the run behind it. FLOPs are counted rather than seconds measured,
so that other load on the machine has no effect.
"""

import base64
import itertools
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import as_completed
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np

from clipmill.data.captioners import CaptionInput, open_captioner
from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.labeled.folder import fetch_folder
from clipmill.data.layers import read_layer
from clipmill.data.loading.mixture import Mixture
from clipmill.data.loading.view import View, ViewConfig
from clipmill.data.recaption import recaption
from clipmill.data.shards.read import iter_samples, read_shard
from clipmill.data.shards.write import write_dataset
from clipmill.engine.config import TrainConfig
from clipmill.errors import ConfigError
from clipmill.images import decode_rgb
from clipmill.pretrain.clip import clip_dataloader, clip_objective, pretrain_clip
from clipmill.pretrain.coca import train_coca
from clipmill.pretrain.config import MaePretrainConfig, PretrainConfig, SupervisedConfig
from clipmill.pretrain.mae import pretrain_mae
from clipmill.pretrain.supervised import pretrain_supervised
from clipmill.pretrain.teacher import embed_with_teachers
from clipmill.processes import process_pool
from clipmill.report.attention import attention_json, measure_attention
from clipmill.report.sections.provenance import environment
from clipmill.scenes.source import CAPTIONING, LABELS, PAIRS, draw_source
from clipmill.stage_records import ProgressCallback, no_progress
from clipmill.storage import artifact_uri, exists, join, read_json, write_json
from clipmill.study.config import (
    COCA,
    ConditionConfig,
    StudyConfig,
    SyntheticDataConfig,
    UserDataConfig,
)
from clipmill.study.result import (
    RESULT,
    CaptionQuality,
    CaptionSample,
    Cost,
    StudyPart,
    StudyResult,
)
from clipmill.study.scene_captions import (
    SceneCaptions,
    add_scene_layers,
    caption_accuracy,
    draw_captions,
)
from clipmill.study.tables import StudyRun
from clipmill.tasks.evaluation import evaluate, read_evaluation
from clipmill.tasks.finetune import finetune

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


PretrainingT = TypeVar("PretrainingT", PretrainConfig, MaePretrainConfig, SupervisedConfig)

_NUM_COUNTED = 64
"""Samples whose FLOPs are counted."""


def train_encoder(
    config: StudyConfig, condition: ConditionConfig, seed: int, data: StudyData
) -> str:
    """Train the condition's encoder with this seed unless it exists; return its URI."""
    uri = _train(config, condition, seed, data)
    return run_on_rank_zero(lambda: uri)  # rank 0 saves it


def clip_config(config: StudyConfig, condition: ConditionConfig, data: StudyData) -> PretrainConfig:
    """Return the pretraining config of the condition's CLIP, apart from its seed and budget."""
    layer = data.layers[condition.layer] if condition.captions != "real" else ""
    view = ViewConfig(captions=condition.captions, layer=layer, subset_fraction=condition.fraction)
    clip = replace(config.clip_runs[condition.encoder], view=view)
    if clip.distillation is None or clip.distillation.layer:
        return clip
    return replace(clip, distillation=replace(clip.distillation, layer=data.teacher_layer))


def with_seed_and_budget(
    config: PretrainingT, condition: ConditionConfig, seed: int
) -> PretrainingT:
    """Return the config with this seed, and its steps scaled by the condition's budget."""
    train: TrainConfig = config.train
    steps = max(1, round(train.steps * condition.compute_budget))
    warmup = min(train.schedule.warmup_steps, steps // 5)
    schedule = replace(train.schedule, warmup_steps=warmup)
    return replace(config, train=replace(train, seed=seed, steps=steps, schedule=schedule))


def clip_costs(config: StudyConfig, data: StudyData) -> dict[str, Cost]:
    """Count the FLOPs of each condition that trains a CLIP, by its name."""
    caption_flops = _captioning_flops(config, data)
    dataset = Dataset.open(data.dataset)
    costs: dict[str, Cost] = {}
    flops_per_sample: dict[tuple[str, str, str], float] = {}
    for condition in config.conditions:
        if condition.encoder not in config.clip_runs:
            continue
        clip = clip_config(config, condition, data)
        clip = with_seed_and_budget(clip, condition, config.seeds[0])
        kind = (condition.encoder, condition.captions, condition.layer)
        if kind not in flops_per_sample:
            flops_per_sample[kind] = _flops_per_sample(clip, dataset)
        num_captions = dataset.num_samples * condition.fraction if condition.layer == COCA else 0.0
        costs[condition.name] = Cost(
            pretraining=flops_per_sample[kind] * clip.train.num_seen_samples,
            captioning=caption_flops * num_captions,
        )
    return costs


def _train(config: StudyConfig, condition: ConditionConfig, seed: int, data: StudyData) -> str:
    name = condition.encoder
    if name in config.from_scratch:
        return config.from_scratch[name]
    if name in config.mae_runs:
        mae = replace(config.mae_runs[name], fraction=condition.fraction)
        mae = with_seed_and_budget(mae, condition, seed)
        return pretrain_mae(mae, data.dataset, data.store, report=no_progress)
    if name in config.supervised:
        supervised = with_seed_and_budget(config.supervised[name], condition, seed)
        labels = data.labels["classification"]
        return pretrain_supervised(supervised, labels, data.store, report=no_progress)
    clip = with_seed_and_budget(clip_config(config, condition, data), condition, seed)
    return pretrain_clip(clip, data.dataset, data.store, report=no_progress)


def _flops_per_sample(config: PretrainConfig, dataset: Dataset) -> float:
    """Count a forward and a backward pass, over a small batch."""
    from clipmill.engine.distributed import DistributedContext
    from clipmill.engine.metrics import forward_flops

    size = min(_NUM_COUNTED, config.train.batch_size)
    small = replace(
        config,
        dataloader=replace(config.dataloader, num_workers=0),
        train=replace(config.train, batch_size=size, grad_accum_steps=1),
    )
    batch = next(
        clip_dataloader(small, Mixture.of_view(View(dataset, small.view)), 0, DistributedContext())
    )
    return 3 * forward_flops(clip_objective(small, None, DistributedContext()), batch) / size


def _captioning_flops(config: StudyConfig, data: StudyData) -> float:
    """Count captioning an image; 0 where the study has no captioner of its own."""
    if config.synthetic_data is None or not data.captioner:
        return 0.0
    from torch.utils.flop_counter import FlopCounterMode

    samples = itertools.islice(
        iter_samples(Dataset.open(data.dataset), cache_folder()), _NUM_COUNTED
    )
    inputs = [
        CaptionInput(
            uid=shard.uid(row), caption=shard.caption(row), image=decode_rgb(shard.image(row))
        )
        for shard, row in samples
    ]
    _, captioner = open_captioner(data.captioner, config.synthetic_data.recaption)
    with FlopCounterMode(display=False) as counter:
        list(captioner.caption(inputs))
    captioner.close()
    return float(counter.get_total_flops()) / len(inputs)


_NUM_SAMPLES = 8
_MAX_CAPTIONS = 10_000
_NUM_SCORED = 512


def captions_by_kind(data: StudyData) -> dict[str, list[str]]:
    """Return the first caption of each sample, in order, of ``real`` ones and of each layer.

    Only the first 10,000 samples are read.
    """
    dataset = Dataset.open(data.dataset)
    real = (shard.caption(row) for shard, row in iter_samples(dataset, cache_folder()))
    kinds: dict[str, Iterator[str]] = {"real": real}
    kinds |= {name: _captions(dataset, layer) for name, layer in data.layers.items()}
    return {name: list(itertools.islice(texts, _MAX_CAPTIONS)) for name, texts in kinds.items()}


def caption_quality(
    captions: Mapping[str, list[str]],
    scenes: list[SceneCaptions],
    dataset: str,
    scoring_clip: str,
) -> dict[str, CaptionQuality]:
    """Measure each kind of caption: length, diversity, accuracy, CLIP score.

    Accuracy needs ``scenes``; the CLIP score ``scoring_clip``, the URI of a CLIP checkpoint.
    """
    scores = _clip_scores(captions, dataset, scoring_clip) if scoring_clip else {}
    return {
        name: CaptionQuality(
            truth=caption_accuracy(texts, scenes) if scenes else None,
            clip_score=scores.get(name),
            num_words=sum(len(text.split()) for text in texts) / len(texts),
            num_different=len(set(texts)),
        )
        for name, texts in captions.items()
    }


def caption_samples(
    dataset: str, captions: Mapping[str, Sequence[str]]
) -> tuple[CaptionSample, ...]:
    """Return a few images of the first shard, evenly spaced, with every kind of caption."""
    opened = Dataset.open(dataset)
    with read_shard(opened, 0, cache_folder()) as reader:
        rows = np.linspace(0, len(reader) - 1, min(_NUM_SAMPLES, len(reader))).astype(int).tolist()
        return tuple(
            CaptionSample(
                image_base64=base64.b64encode(reader.image(row)).decode(),
                captions={name: texts[row] for name, texts in captions.items()},
            )
            for row in rows
        )


def _clip_scores(
    captions: Mapping[str, list[str]], dataset: str, scoring_clip: str
) -> dict[str, float]:
    """Return the mean cosine of image and caption, times 100, over the first images."""
    from clipmill.data.scoring.scorers import ClipScoreConfig, ClipTowers

    towers = ClipTowers(ClipScoreConfig(model=scoring_clip))
    first = itertools.islice(iter_samples(Dataset.open(dataset), cache_folder()), _NUM_SCORED)
    images_BD = towers.encode_images([decode_rgb(shard.image(row)) for shard, row in first])
    return {
        name: 100 * float((images_BD * towers.encode_texts(texts[: len(images_BD)])).sum(1).mean())
        for name, texts in captions.items()
    }


def _captions(dataset: Dataset, layer: str) -> Iterator[str]:
    for index in range(len(dataset.shards)):
        column = read_layer(dataset, layer, index, cache_folder())["captions"]
        yield from (captions[0] for captions in column.to_pylist())


_ATTENTION_IMAGES = 256
_WALL_TIME = "wall_time.json"
_WALL_TIME_0_1 = "spent.json"

_ConditionAndSeed = tuple[ConditionConfig, int]


def run_study(
    config: StudyConfig,
    store: str,
    *,
    workers: int = 1,
    command: str = "",
    report: ProgressCallback,
) -> str:
    """Run a study; return the URI of its result, under ``store``.

    ``workers`` processes train in parallel. Existing artifacts are reused. ``command`` is recorded
    in the result.
    """
    uri = artifact_uri(store, "studies", f"captions-{config.digest[:12]}")
    if exists(join(uri, RESULT)):
        return uri
    _check_workers(workers)
    clock = _WallClock(uri)
    data = _with_teacher(config, prepare_data(config, store, report=report), report)
    # Seed by seed, so that an interrupted study has compared all conditions with some seeds.
    pairs = [
        (condition, seed)
        for seed in config.seeds
        for condition in config.conditions
        if config.transfers_for(condition, seed)
    ]
    runs: dict[_ConditionAndSeed, StudyRun] = {}
    for pair, run in _run_all(config, pairs, data, workers):
        runs[pair] = run
        run_on_rank_zero(clock.save)
        report(len(runs), len(pairs), f"runs; last {run.condition}, seed {run.seed}")
    return run_on_rank_zero(lambda: _save(config, uri, data, runs, clock, command))


class _WallClock:
    """Wall time of a study over all its starts, each up to the last run that it finished."""

    def __init__(self, uri: str) -> None:
        self._uri = join(uri, _WALL_TIME)
        saved = next(filter(exists, (self._uri, join(uri, _WALL_TIME_0_1))), "")
        self._before: float = read_json(saved)["seconds"] if saved else 0.0
        self._started = time.monotonic()

    def save(self) -> float:
        """Save and return the seconds so far, to which the next start adds."""
        seconds = self._before + time.monotonic() - self._started
        write_json(self._uri, {"seconds": seconds})
        return seconds


def _save(
    config: StudyConfig,
    uri: str,
    data: StudyData,
    runs: dict[_ConditionAndSeed, StudyRun],
    clock: _WallClock,
    command: str,
) -> str:
    first = {c.name: run.encoder for (c, seed), run in runs.items() if seed == config.seeds[0]}
    captions = captions_by_kind(data)
    scoring_clip = first[config.scoring_clip] if config.scoring_clip else ""
    result = StudyResult(
        uri=uri,
        config=config,
        runs=tuple(runs[c, s] for s in config.seeds for c in config.conditions if (c, s) in runs),
        num_pairs=Dataset.open(data.dataset).num_samples,
        quality=caption_quality(captions, known_scenes(config), data.dataset, scoring_clip),
        samples=caption_samples(data.dataset, captions),
        attention={name: _attention(first[name], data) for name in config.attention},
        costs=clip_costs(config, data),
        parts=(
            StudyPart(
                command=command,
                digest=config.digest,
                environment=environment(),
                seconds=clock.save(),
            ),
        ),
    )
    write_json(join(uri, RESULT), result.to_json())
    return uri


def _check_workers(workers: int) -> None:
    if workers > 1 and num_ranks() > 1:
        raise ConfigError(
            f"workers was {workers}, under torchrun with {num_ranks()} ranks",
            expected="1: all ranks train one encoder together",
            action="leave --workers out",
        )


def _with_teacher(config: StudyConfig, data: StudyData, report: ProgressCallback) -> StudyData:
    """Add the teacher's embeddings, if a condition is distilled without naming a layer."""
    students = [c for c in config.conditions if config.uses_teacher(c)]
    if not students:
        return data
    distillation = config.distillation
    if config.teacher:
        report(0, 1, f"the teacher, {config.teacher}")
        encoder = train_encoder(config, config.condition(config.teacher), config.seeds[0], data)
        distillation = replace(distillation, models=(encoder,))
    captions = data.layers.get(students[0].layer, "")
    layer = run_on_rank_zero(
        lambda: embed_with_teachers(distillation, data.dataset, captions, report=report)
    )
    return replace(data, teacher_layer=layer)


def _run_all(
    config: StudyConfig, pairs: list[_ConditionAndSeed], data: StudyData, workers: int
) -> Iterator[tuple[_ConditionAndSeed, StudyRun]]:
    """Yield every run when it ends; all in this process if ``workers`` is 1."""
    value = config.to_json()
    if workers == 1:
        for condition, seed in pairs:
            yield (condition, seed), _run(value, condition.to_json(), seed, data)
        return
    with process_pool(workers) as pool:
        running = {
            pool.submit(_run, value, condition.to_json(), seed, data): (condition, seed)
            for condition, seed in pairs
        }
        for future in as_completed(running):
            yield running[future], future.result()


def _run(value: object, condition_value: object, seed: int, data: StudyData) -> StudyRun:
    """Train and evaluate one condition with one seed; configs are JSON, which pickles."""
    config = StudyConfig.from_json(value)
    condition = ConditionConfig.from_json(condition_value)
    encoder = train_encoder(config, condition, seed, data)
    evaluations = {}
    for name, transfer in config.transfers_for(condition, seed).items():
        seeded = replace(transfer, train=replace(transfer.train, seed=seed))
        labels = data.labels[transfer.task]
        model = finetune(seeded, encoder, labels, data.store, report=no_progress)
        evaluations[name] = run_on_rank_zero(
            partial(evaluate, model, labels, data.store, report=no_progress)
        )
    return StudyRun(
        condition=condition.name,
        seed=seed,
        encoder=encoder,
        evaluations=evaluations,
        metrics={name: dict(read_evaluation(uri).metrics) for name, uri in evaluations.items()},
    )


def _attention(encoder: str, data: StudyData) -> dict[str, Any]:
    return attention_json(
        measure_attention(encoder, data.dataset, num_images=_ATTENTION_IMAGES, report=no_progress)
    )

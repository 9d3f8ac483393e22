"""A study, carried out: each condition and seed by the same library calls as the commands.

Every artifact lies where its command would put it, by digest; so a study that was killed goes on
where it was, and any of its numbers can be followed to the run that made it.
"""

import time
from collections.abc import Iterator
from concurrent.futures import as_completed
from dataclasses import replace
from typing import Any

from clipmill.analysis.attention import attention_json, measure_attention
from clipmill.data.folder import open_folder
from clipmill.data.recaption import recaption
from clipmill.data.scenes.source import CAPTIONING, LABELS, PAIRS, draw_source
from clipmill.data.shards import shard
from clipmill.pretrain.coca import train_captioner
from clipmill.processes import process_pool
from clipmill.stages import Report, silent
from clipmill.storage import exists, join, write_json
from clipmill.study.caption_quality import caption_quality, caption_samples, captions_by_kind
from clipmill.study.config import COCA, ConditionConfig, StudyConfig
from clipmill.study.encoders import World, make_encoder
from clipmill.study.findings import StudyRun
from clipmill.study.result import RESULT, StudyResult
from clipmill.study.scene_captions import (
    SceneCaptions,
    add_scene_layers,
    draw_captions,
)
from clipmill.tasks.evaluation import evaluate, read_evaluation
from clipmill.tasks.finetune import finetune

_ATTENTION_IMAGES = 256


def run_study(config: StudyConfig, store: str, *, workers: int = 1, report: Report) -> str:
    """Carry a study out; the URI of its result, under ``store``.

    ``workers`` processes train side by side. What is there already isn't made again.
    """
    uri = join(store, "studies", f"captions-{config.digest[:12]}")
    if exists(join(uri, RESULT)):
        return uri
    started = time.monotonic()
    world, scenes = _prepare(config, store, report)
    # Seed by seed, so that a study that is stopped has compared all conditions with some.
    asked = [(condition, seed) for seed in config.seeds for condition in config.conditions]
    runs: dict[_Asked, StudyRun] = {}
    for pair, run in _made(config, asked, world, workers):
        runs[pair] = run
        report(len(runs), len(asked), f"runs; last {run.condition}, seed {run.seed}")
    captions = captions_by_kind(world, scenes)
    result = StudyResult(
        uri=uri,
        config=config,
        runs=tuple(runs[pair] for pair in asked),
        quality=caption_quality(captions, scenes),
        samples=caption_samples(world.dataset, captions),
        attention=_attention(config, runs, world),
        seconds=time.monotonic() - started,
    )
    write_json(join(uri, RESULT), result.to_json())
    return uri


def _prepare(config: StudyConfig, store: str, report: Report) -> tuple[World, list[SceneCaptions]]:
    source = draw_source(config.scenes, store, report=report)
    dataset = _sharded(config, join(source, PAIRS), store)
    asked = sorted({condition.layer for condition in config.conditions} - {""})
    scenes = draw_captions(config.scenes)
    names = [name for name in asked if name != COCA]
    layers = add_scene_layers(dataset, scenes, names, report=report)
    if COCA in asked:
        captioned = _sharded(config, join(source, CAPTIONING), store)
        captioner = train_captioner(config.captioner, captioned, store, report=report)
        layers[COCA] = recaption(config.recaption, dataset, captioner, report=report)
    return World(source, dataset, layers, store), scenes


def _sharded(config: StudyConfig, tar: str, store: str) -> str:
    folder, parent = open_folder(tar, "source")
    return shard(config.shards, str(folder), store, source_parents=(parent,))


_Asked = tuple[ConditionConfig, int]
"""A condition, and a seed."""


def _made(
    config: StudyConfig, asked: list[_Asked], world: World, workers: int
) -> Iterator[tuple[_Asked, StudyRun]]:
    """Every run, as they end; in this process if ``workers`` is 1."""
    value = config.to_json()
    if workers == 1:
        for condition, seed in asked:
            yield (condition, seed), _run(value, condition.to_json(), seed, world)
        return
    with process_pool(workers) as pool:
        running = {
            pool.submit(_run, value, condition.to_json(), seed, world): (condition, seed)
            for condition, seed in asked
        }
        for future in as_completed(running):
            yield running[future], future.result()


def _run(value: object, condition_value: object, seed: int, world: World) -> StudyRun:
    """One condition with one seed, in a process of its own, which gets configs as JSON."""
    config = StudyConfig.from_json(value)
    condition = ConditionConfig.from_json(condition_value)
    encoder = make_encoder(config, condition, seed, world)
    evaluations = {}
    for name, asked in config.transfers.items():
        seeded = replace(asked, train=replace(asked.train, seed=seed))
        data = join(world.source, LABELS[asked.task])
        model = finetune(seeded, encoder, data, world.store, report=silent)
        evaluations[name] = evaluate(model, data, world.store, report=silent)
    return StudyRun(
        condition=condition.name,
        seed=seed,
        encoder=encoder,
        evaluations=evaluations,
        metrics={name: dict(read_evaluation(uri).metrics) for name, uri in evaluations.items()},
    )


def _attention(
    config: StudyConfig, runs: dict[_Asked, StudyRun], world: World
) -> dict[str, dict[str, Any]]:
    encoders = {
        condition.name: run.encoder
        for (condition, seed), run in runs.items()
        if seed == config.seeds[0]
    }
    return {
        name: attention_json(
            measure_attention(
                encoders[name], world.dataset, num_images=_ATTENTION_IMAGES, report=silent
            )
        )
        for name in config.attention
    }

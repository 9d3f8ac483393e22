"""A study, carried out: each condition and seed by the same library calls as the commands.

Every artifact lies where its command would put it, by digest; so a study that was killed goes on
where it was, and any of its numbers can be followed to the run that made it.
"""

import time
from collections.abc import Iterator
from concurrent.futures import as_completed
from dataclasses import replace
from functools import partial
from typing import Any

from clipmill.data.dataset import Dataset
from clipmill.errors import ConfigError
from clipmill.pretrain.teacher import embed_with_teachers
from clipmill.processes import process_pool
from clipmill.report.attention import attention_json, measure_attention
from clipmill.report.sections.provenance import environment
from clipmill.stage_records import ProgressCallback, no_progress
from clipmill.storage import exists, join, read_json, write_json
from clipmill.study.caption_quality import caption_quality, caption_samples, captions_by_kind
from clipmill.study.config import ConditionConfig, StudyConfig
from clipmill.study.data import World, make_world, scenes_of
from clipmill.study.encoders import clip_costs, make_encoder
from clipmill.study.ranks import num_ranks, on_first_rank
from clipmill.study.result import RESULT, StudyPart, StudyResult
from clipmill.study.results_table import StudyRun
from clipmill.tasks.evaluation import evaluate, read_evaluation
from clipmill.tasks.finetune import finetune

_ATTENTION_IMAGES = 256
_SPENT = "spent.json"

_Asked = tuple[ConditionConfig, int]
"""A condition, and a seed."""


def run_study(
    config: StudyConfig,
    store: str,
    *,
    workers: int = 1,
    command: str = "",
    report: ProgressCallback,
) -> str:
    """Carry a study out; the URI of its result, under ``store``.

    ``workers`` processes train side by side. What is there already isn't made again. ``command``
    is what the result says it was made by.
    """
    uri = join(store, "studies", f"captions-{config.digest[:12]}")
    if exists(join(uri, RESULT)):
        return uri
    _check_workers(workers)
    clock = _Clock(uri)
    world = _taught(config, make_world(config, store, report=report), report)
    # Seed by seed, so that a study that is stopped has compared all conditions with some.
    asked = [
        (condition, seed)
        for seed in config.seeds
        for condition in config.conditions
        if config.judged_by(condition, seed)
    ]
    runs: dict[_Asked, StudyRun] = {}
    for pair, run in _made(config, asked, world, workers):
        runs[pair] = run
        on_first_rank(clock.save)
        report(len(runs), len(asked), f"runs; last {run.condition}, seed {run.seed}")
    return on_first_rank(lambda: _save(config, uri, world, runs, clock, command))


class _Clock:
    """Time that a study has taken in all its starts, each up to the last run that it finished."""

    def __init__(self, uri: str) -> None:
        self._place = join(uri, _SPENT)
        self._before: float = read_json(self._place)["seconds"] if exists(self._place) else 0.0
        self._started = time.monotonic()

    def save(self) -> float:
        """Seconds so far, which the next start goes on from."""
        seconds = self._before + time.monotonic() - self._started
        write_json(self._place, {"seconds": seconds})
        return seconds


def _save(
    config: StudyConfig,
    uri: str,
    world: World,
    runs: dict[_Asked, StudyRun],
    clock: _Clock,
    command: str,
) -> str:
    first = {c.name: run.encoder for (c, seed), run in runs.items() if seed == config.seeds[0]}
    captions = captions_by_kind(world)
    judge = first[config.judge] if config.judge else ""
    result = StudyResult(
        uri=uri,
        config=config,
        runs=tuple(runs[c, s] for s in config.seeds for c in config.conditions if (c, s) in runs),
        num_pairs=Dataset.open(world.dataset).num_samples,
        quality=caption_quality(captions, scenes_of(config), world.dataset, judge),
        samples=caption_samples(world.dataset, captions),
        attention={name: _attention(first[name], world) for name in config.attention},
        costs=clip_costs(config, world),
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


def _taught(config: StudyConfig, world: World, report: ProgressCallback) -> World:
    """The same with the teacher's embeddings, if some condition learns from a layer not named."""
    students = [c for c in config.conditions if config.is_taught(c)]
    if not students:
        return world
    teaching = config.teaching
    if config.teacher:
        report(0, 1, f"the teacher, {config.teacher}")
        encoder = make_encoder(config, config.condition(config.teacher), config.seeds[0], world)
        teaching = replace(teaching, models=(encoder,))
    captions = world.layers.get(students[0].layer, "")
    layer = on_first_rank(
        lambda: embed_with_teachers(teaching, world.dataset, captions, report=report)
    )
    return replace(world, teaching=layer)


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
    for name, asked in config.judged_by(condition, seed).items():
        seeded = replace(asked, train=replace(asked.train, seed=seed))
        data = world.labels[asked.task]
        model = finetune(seeded, encoder, data, world.store, report=no_progress)
        evaluations[name] = on_first_rank(
            partial(evaluate, model, data, world.store, report=no_progress)
        )
    return StudyRun(
        condition=condition.name,
        seed=seed,
        encoder=encoder,
        evaluations=evaluations,
        metrics={name: dict(read_evaluation(uri).metrics) for name, uri in evaluations.items()},
    )


def _attention(encoder: str, world: World) -> dict[str, Any]:
    return attention_json(
        measure_attention(encoder, world.dataset, num_images=_ATTENTION_IMAGES, report=no_progress)
    )

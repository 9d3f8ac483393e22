"""Run a study: train and evaluate every condition and seed.

Every artifact is at the address that its own command would use, so an interrupted study resumes,
and each number can be traced to the run behind it.
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
from clipmill.study.data import StudyData, known_scenes, num_ranks, prepare_data, run_on_rank_zero
from clipmill.study.encoders import clip_costs, train_encoder
from clipmill.study.result import RESULT, StudyPart, StudyResult
from clipmill.study.results_table import StudyRun
from clipmill.tasks.evaluation import evaluate, read_evaluation
from clipmill.tasks.finetune import finetune

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
    uri = join(store, "studies", f"captions-{config.digest[:12]}")
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

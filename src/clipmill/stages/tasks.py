"""Stages of downstream tasks: fine-tuning, sweeps, evaluation, comparison, promotion."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipmill.config import Config
from clipmill.errors import ConfigError
from clipmill.recipes.registry import get_recipe, recipe_type
from clipmill.stage_records import Stage
from clipmill.stages.pretrain import CAPTION_LABELS, caption_label
from clipmill.storage import artifact_uri, exists, join, read_json, write_json
from clipmill.tasks.finetune import FinetuneConfig
from clipmill.tasks.sweep import SweepConfig

if TYPE_CHECKING:
    from clipmill.tasks.checks import DataReport
    from clipmill.tasks.evaluation import EvaluationResult


@dataclass(frozen=True, kw_only=True, slots=True)
class TaskSpec(Config):
    """Task to fine-tune an encoder for: an entry of a pipeline's parameter ``tasks``."""

    recipe: str
    """Name of a fine-tuning or sweep recipe."""
    data: str
    """Folder of labeled data, or URI of one as .tar."""
    min_metric: float
    """Value of the task's metric required for promotion, in its unit."""
    overrides: tuple[str, ...] = ()
    """``path=value`` for the recipe's config."""

    @property
    def sweep(self) -> SweepConfig:
        """The recipe as a sweep; a fine-tuning is a sweep of a single point.

        Raises:
            ConfigError: there is no such recipe, or an override is wrong.
        """
        if recipe_type(self.recipe) is not FinetuneConfig:
            return get_recipe(self.recipe, SweepConfig, self.overrides)
        config = get_recipe(self.recipe, FinetuneConfig, self.overrides)
        rates: tuple[float, ...] = (config.train.schedule.lr,)
        return SweepConfig(finetune=config, grid={"train.schedule.lr": rates}, rungs=(1.0,))


def check_data(
    task: str,
    data: str,
    *,
    encoder: str = "",
    recipe: str = "",
    overrides: Sequence[str] = (),
    model: str = "",
) -> "DataReport":
    """Check a task's data before training on it."""
    from clipmill.data.labeled.folder import fetch_folder
    from clipmill.tasks import checks

    config = get_recipe(recipe, FinetuneConfig, overrides) if recipe else None
    if config is not None and config.task != task:
        raise ConfigError(
            f"the recipe is for {config.task}",
            expected=f"a recipe for {task}",
            action="give another recipe",
        )
    with Stage("check", label=task) as stage:
        stage.report(0, 1, "reading")
        folder, _ = fetch_folder(data, "data")
        return checks.check_data(
            task,
            folder,
            encoder=encoder,
            config=config and config.model,
            model=model,
            report=stage.report,
        )


def finetune(
    recipe: str,
    overrides: Sequence[str],
    encoder: str,
    data: str,
    store: str,
    run: str = "",
    label: str = "",
) -> str:
    """Fine-tune an encoder for the recipe's task; return the model's URI."""
    from clipmill.tasks import finetune

    config = get_recipe(recipe, FinetuneConfig, overrides)
    label = CAPTION_LABELS.get(label, label)
    with Stage(f"finetune {config.task}", store=store, run=run, label=label) as stage:
        return stage.set_output(
            finetune.finetune(config, encoder, data, store, report=stage.report)
        )


def sweep(
    recipe: str,
    overrides: Sequence[str],
    encoder: str,
    data: str,
    store: str,
    run: str = "",
    *,
    workers: int = 1,
    min_metric: float | None = None,
) -> str:
    """Run a sweep of fine-tunings, and promote the best if it reaches ``min_metric``.

    Returns the sweep's URI.
    """
    from clipmill.tasks.sweep import read_sweep

    config = get_recipe(recipe, SweepConfig, overrides)
    uri = _sweep_with_report(config, encoder, data, store, run, workers=workers)
    if min_metric is not None:
        promote(config.finetune.task, min_metric, [read_sweep(uri).best.evaluation], store, run)
    return uri


def list_sweep_points(
    spec: TaskSpec, encoder: str, store: str, wave: int
) -> tuple[list[dict[str, Any]], bool]:
    """Return the points of a sweep's wave, and whether another wave follows.

    Waves are numbered from 0. A point has its values by path, and the index of its rung.

    Raises:
        NotFoundError: the trials of an earlier wave aren't finished.
        TrainingError: every point of the wave before diverged.
    """
    from clipmill.tasks.sweep import read_wave

    config = spec.sweep
    rung, points = read_wave(config, wave, encoder, spec.data, store)
    return [{"rung": rung, "values": point} for point in points], wave + 1 < config.num_waves


def sweep_point(
    spec: TaskSpec, point: Mapping[str, Any], encoder: str, store: str, run: str = ""
) -> str:
    """Run a point of :func:`list_sweep_points`; return its evaluation's URI, "" if it diverged."""
    from clipmill.tasks.sweep import run_trial, sweep_uri

    # A number in KFP's JSON is a float.
    config = spec.sweep.config_for_rung(point["values"], int(point["rung"]))
    uri = sweep_uri(spec.sweep, encoder, spec.data, store)
    label = f"{config.task}-{config.digest[:8]}"
    with Stage("sweep point", store=store, run=run, label=label) as stage:
        return stage.set_output(run_trial(config, encoder, spec.data, store, stage.report, uri))


def best_of_sweep(
    spec: TaskSpec, encoder: str, store: str, run: str = ""
) -> "tuple[str, EvaluationResult]":
    """Complete a task's sweep, reusing finished points; return its URI and the best evaluation."""
    from clipmill.tasks.evaluation import read_evaluation
    from clipmill.tasks.sweep import read_sweep

    uri = _sweep_with_report(spec.sweep, encoder, spec.data, store, run)
    return uri, read_evaluation(read_sweep(uri).best.evaluation)


def evaluate(
    model: str, data: str, store: str, run: str = "", label: str = "", *, split: str = ""
) -> str:
    """Evaluate a task model on its data's test split, or ``split``; return the evaluation's URI."""
    from clipmill.models.checkpoint import read_metadata
    from clipmill.tasks import evaluation

    task = read_metadata(model).architecture.get("task", "")
    label = CAPTION_LABELS.get(label, label)
    with Stage(f"evaluate {task}", store=store, run=run, label=label) as stage:
        return stage.set_output(
            evaluation.evaluate(model, data, store, split=split, report=stage.report)
        )


def evaluate_features(
    finetune_recipes: Sequence[str],
    overrides: Sequence[str],
    encoder: str,
    data: Sequence[str],
    store: str,
    run: str = "",
    label: str = "",
) -> list[str]:
    """Fine-tune and evaluate a head for each task; return the evaluations' URIs.

    ``data`` has a labeled folder for each fine-tuning recipe.
    """
    evaluations = []
    for recipe, folder in zip(finetune_recipes, data, strict=True):
        model = finetune(recipe, overrides, encoder, folder, store, run, label)
        evaluations.append(evaluate(model, folder, store, run, label))
    return evaluations


def random_weights(
    clip_recipe: str,
    clip_overrides: Sequence[str],
    finetune_recipes: Sequence[str],
    finetune_overrides: Sequence[str],
    data: Sequence[str],
    store: str,
    run: str = "",
    *,
    seeds: Sequence[int] = (0, 1, 2),
) -> list[str]:
    """Evaluate encoders with random weights, one a seed, at each task.

    ``data`` has a labeled folder for each fine-tuning recipe. Returns the evaluations' URIs.
    """
    from clipmill.config import digest_json
    from clipmill.data.labeled.folder import fetch_folder
    from clipmill.pretrain.clip import random_encoder
    from clipmill.pretrain.config import PretrainConfig
    from clipmill.processes import process_pool
    from clipmill.tasks.sweep import run_trial_in_subprocess

    trials = []
    for seed in seeds:
        config = get_recipe(clip_recipe, PretrainConfig, [*clip_overrides, f"train.seed={seed}"])
        overrides = [*finetune_overrides, f"train.seed={seed}"]
        for recipe, folder in zip(finetune_recipes, data, strict=True):
            trials.append((config, get_recipe(recipe, FinetuneConfig, overrides), folder))
    digests = {folder: fetch_folder(folder, "data")[1].digest for folder in data}
    digest = digest_json(
        [[c.model.digest, c.train.seed, f.digest, digests[d]] for c, f, d in trials]
    )
    record = artifact_uri(store, "baselines", f"{digest[:12]}.json")
    with Stage("random weights", store=store, run=run) as stage:
        if exists(record):
            evaluations = [str(uri) for uri in read_json(record)]
            stage.set_output(evaluations[0])
            return evaluations
        stage.report(0, len(trials), "starting")
        import torch

        jobs = [(f.to_json(), random_encoder(c, store), d, store) for c, f, d in trials]
        evaluations = []
        # Processes would compete for a single GPU.
        with process_pool(1 if torch.cuda.is_available() else 0) as pool:
            futures = [pool.submit(run_trial_in_subprocess, *job) for job in jobs]
            for done, future in enumerate(futures, start=1):
                evaluations.append(future.result())
                stage.report(done, len(jobs), "evaluated")
        write_json(record, evaluations)
        stage.set_output(evaluations[0])
    return evaluations


def compare(
    encoders: Sequence[str],
    evaluations: Sequence[str],
    random_evaluations: Sequence[str],
    data: Sequence[str],
    store: str,
    run: str = "",
) -> str:
    """Compare encoders at their tasks, with each other and with random weights.

    Returns the comparison's URI.
    """
    from clipmill.models.checkpoint import read_metadata
    from clipmill.tasks import comparison

    uris = {caption_label(read_metadata(uri)): uri for uri in encoders}
    with Stage("compare", store=store, run=run) as stage:
        return stage.set_output(
            comparison.compare_encoders(
                comparison.ComparisonConfig(),
                uris,
                evaluations,
                random_evaluations,
                data,
                store,
                report=stage.report,
            )
        )


def promote(
    task: str, threshold: float, evaluations: Sequence[str], store: str, run: str = ""
) -> str:
    """Promote the best evaluated model of a task if its metric reaches ``threshold``.

    Returns the URI of the promotion in effect, which is an earlier one if the model was refused.
    """
    from clipmill.tasks import promotion

    with Stage("promote", store=store, run=run, label=task) as stage:
        stage.report(0, 1, "comparing")
        config = promotion.PromotionConfig(task=task, threshold=threshold)
        result = promotion.promote(config, evaluations, store)
        if result.refusal:
            kept = result.evaluation.model.uri
            stage.report(1, 1, f"not promoted: {result.refusal}; {kept} is kept")
        return stage.set_output(result.uri)


def promote_compared(task: str, comparison: str, store: str, run: str = "") -> str:
    """Promote the best model of a comparison if it reaches the comparison's own threshold.

    Returns the URI of the promotion in effect; "" where no model was ever promoted.
    """
    from clipmill.errors import GateError
    from clipmill.tasks import promotion
    from clipmill.tasks.comparison import Comparison

    with Stage("promote", store=store, run=run, label=task) as stage:
        stage.report(0, 1, "comparing")
        result = Comparison.read(comparison).task(task)
        config = promotion.PromotionConfig(task=task, threshold=result.gate)
        try:
            evaluations = list(result.evaluations.values())
            return stage.set_output(promotion.promote(config, evaluations, store).uri)
        except GateError:
            return stage.set_output("")


def smoke_test(promotions: Sequence[str], store: str, run: str = "") -> str:
    """Start the promoted models in a KServe server and query each; return the result's URI.

    Empty promotions are left out; without any, the result is "".
    """
    import io

    import numpy as np
    from PIL import Image

    from clipmill.serve import smoke_test
    from clipmill.tasks.promotion import read_promotion

    results = [read_promotion(uri).evaluation for uri in promotions if uri]
    if not results:
        return ""
    models = tuple(smoke_test.SmokeTestModel(task=r.task, model=r.model) for r in results)
    image = np.asarray(Image.open(io.BytesIO(results[0].read_image(0, "image"))))
    with Stage("serve", store=store, run=run) as stage:
        return stage.set_output(
            smoke_test.run_smoke_test(models, image, store, report=stage.report)
        )


def _sweep_with_report(
    config: SweepConfig, encoder: str, data: str, store: str, run: str = "", *, workers: int = 1
) -> str:
    """Run a sweep and write its page, ``sweep.html``."""
    from clipmill.report.tasks import sweep_page
    from clipmill.storage import write_bytes
    from clipmill.tasks import sweep

    with Stage("sweep", store=store, run=run, label=config.finetune.task) as stage:
        uri = sweep.sweep(config, encoder, data, store, workers=workers, report=stage.report)
        page = join(uri, "sweep.html")
        if not exists(page):
            write_bytes(page, sweep_page(sweep.read_sweep(uri)).encode())
        return stage.set_output(uri)

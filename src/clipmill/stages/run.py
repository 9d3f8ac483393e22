"""Each stage with its recipe: what a command and a pipeline's component both call.

From a captioned dataset to an endpoint; ``run_data`` has the stages before, ``run_judge`` what
judges encoders beside.

Every function takes the recipe's name with overrides, the URIs of what it reads, the store to write
to, and the run's name if its times are to be kept there. It returns the URI of what it made.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING
from clipmill.errors import ConfigError
from clipmill.recipes.registry import recipe
from clipmill.stage_records import Stage
from clipmill.storage import exists, join, read_json, write_json
import shlex
from clipmill.storage import join
from dataclasses import dataclass
from clipmill.config import Config
from clipmill.recipes.registry import RECIPES, recipe
from clipmill.tasks.evaluation import EvaluationResult, read_evaluation
from clipmill.tasks.finetune import FinetuneConfig
from clipmill.tasks.sweep import Point, SweepConfig

if TYPE_CHECKING:
    from clipmill.tasks.checks import DataCheck
    from clipmill.tasks.sweep import SweepConfig

LABELS = {"real": "G", "synthetic": "S", "both": "G+S", "chosen": "G or S"}
"""The paper's names of the caption choices (CLIP-QC, Table 2), and of the choice by a layer."""


def pretrain(
    name: str,
    overrides: Sequence[str],
    dataset: str,
    store: str,
    run: str = "",
    *,
    captions: str = "real",
    layer: str = "",
    select: Sequence[str] = (),
) -> str:
    """Pretrain CLIP on real captions, synthetic ones, both, or those that a rule chose."""
    from clipmill.data.loading.view import ViewConfig
    from clipmill.pretrain.config import PretrainConfig
    from clipmill.pretrain.clip import pretrain as make

    chosen = recipe(name, PretrainConfig)
    kinds = {
        "captions": captions,
        "layer": layer if captions in {"synthetic", "both"} else "",
        "select": list(select),
    }
    view = ViewConfig.from_json(chosen.view.to_json() | kinds)
    config = replace(chosen, view=view).override(overrides)
    with Stage("pretrain", store=store, run=run, label=LABELS[captions]) as stage:
        return stage.made(make(config, dataset, store, report=stage.report))


def import_weights(address: str, store: str, run: str = "") -> str:
    """Make an encoder of public weights."""
    from clipmill.models.pretrained import import_weights as make

    with Stage("import", store=store, run=run) as stage:
        return stage.made(make(address, store, report=stage.report))


def pretrain_mae(
    name: str, overrides: Sequence[str], dataset: str, store: str, run: str = ""
) -> str:
    """Pretrain a masked autoencoder on a dataset's pictures."""
    from clipmill.pretrain.config import MaePretrainConfig
    from clipmill.pretrain.mae import pretrain_mae as make

    config = recipe(name, MaePretrainConfig, overrides)
    with Stage("pretrain", store=store, run=run, label="MAE") as stage:
        return stage.made(make(config, dataset, store, report=stage.report))


def pretrain_supervised(
    name: str, overrides: Sequence[str], data: str, store: str, run: str = ""
) -> str:
    """Pretrain an image tower on a folder of labelled images."""
    from clipmill.pretrain.config import SupervisedConfig
    from clipmill.pretrain.supervised import pretrain_supervised as make

    config = recipe(name, SupervisedConfig, overrides)
    with Stage("pretrain", store=store, run=run, label="supervised") as stage:
        return stage.made(make(config, data, store, report=stage.report))


def finetune(
    name: str,
    overrides: Sequence[str],
    encoder: str,
    data: str,
    store: str,
    run: str = "",
    label: str = "",
) -> str:
    """Fine-tune an encoder for the recipe's task."""
    from clipmill.tasks.finetune import FinetuneConfig
    from clipmill.tasks.finetune import finetune as make

    config = recipe(name, FinetuneConfig, overrides)
    with Stage(
        f"finetune {config.task}", store=store, run=run, label=LABELS.get(label, label)
    ) as stage:
        return stage.made(make(config, encoder, data, store, report=stage.report))


def sweep(
    name: str,
    overrides: Sequence[str],
    encoder: str,
    data: str,
    store: str,
    run: str = "",
    *,
    workers: int = 1,
    gate: float | None = None,
) -> str:
    """Try a grid of fine-tunings, and draw it; with ``gate`` the best may be promoted."""
    from clipmill.tasks.sweep import read_sweep
    from clipmill.tasks.sweep import SweepConfig

    config = recipe(name, SweepConfig, overrides)
    uri = drawn_sweep(config, encoder, data, store, run, workers=workers)
    if gate is not None:
        promote(config.finetune.task, gate, [read_sweep(uri).best.evaluation], store, run)
    return uri


def drawn_sweep(
    config: "SweepConfig", encoder: str, data: str, store: str, run: str = "", *, workers: int = 1
) -> str:
    """Try a grid of fine-tunings, and draw it."""
    from clipmill.report.sweep import sweep_page
    from clipmill.storage import write_bytes
    from clipmill.tasks.sweep import read_sweep
    from clipmill.tasks.sweep import sweep as search

    with Stage("sweep", store=store, run=run, label=config.finetune.task) as stage:
        uri = search(config, encoder, data, store, workers=workers, report=stage.report)
        page = join(uri, "sweep.html")
        if not exists(page):
            write_bytes(page, sweep_page(read_sweep(uri)).encode())
        return stage.made(uri)


def evaluate(model: str, data: str, store: str, run: str = "", label: str = "") -> str:
    """Judge a task model on its data's test split."""
    from clipmill.models.checkpoint import read_metadata
    from clipmill.tasks.evaluation import evaluate as judge

    task = read_metadata(model).architecture.get("task", "")
    with Stage(f"evaluate {task}", store=store, run=run, label=LABELS.get(label, label)) as stage:
        return stage.made(judge(model, data, store, report=stage.report))


def promote(
    task: str, threshold: float, evaluations: Sequence[str], store: str, run: str = ""
) -> str:
    """Let the best judged model of a task serve, if it passes; the promotion that holds now."""
    from clipmill.tasks.promotion import PromotionConfig
    from clipmill.tasks.promotion import promote as decide

    with Stage("promote", store=store, run=run, label=task) as stage:
        stage.report(0, 1, "comparing")
        gate = PromotionConfig(task=task, threshold=threshold)
        return stage.made(decide(gate, evaluations, store).uri)


def evaluate_features(
    finetune_recipes: Sequence[str],
    overrides: Sequence[str],
    encoder: str,
    data: Sequence[str],
    store: str,
    run: str = "",
    label: str = "",
) -> list[str]:
    """Fine-tune heads on an encoder and evaluate them, a task each; the evaluations' URIs.

    ``data`` has a labeled folder for each fine-tuning recipe.
    """
    made = []
    for name, folder in zip(finetune_recipes, data, strict=True):
        model = finetune(name, overrides, encoder, folder, store, run, label)
        made.append(evaluate(model, folder, store, run, label))
    return made


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
    """Evaluate encoders that learned nothing, a seed each, at each task.

    ``data`` has a labeled folder for each fine-tuning recipe. Returns the evaluations' URIs.
    """
    from clipmill.data.labeled.folder import open_folder
    from clipmill.config import digest_json
    from clipmill.pretrain.clip import random_encoder
    from clipmill.pretrain.config import PretrainConfig
    from clipmill.processes import process_pool
    from clipmill.tasks.finetune import FinetuneConfig
    from clipmill.tasks.sweep import run_trial_in_subprocess

    plan = []
    for seed in seeds:
        config = recipe(clip_recipe, PretrainConfig, [*clip_overrides, f"train.seed={seed}"])
        overrides = [*finetune_overrides, f"train.seed={seed}"]
        for name, folder in zip(finetune_recipes, data, strict=True):
            plan.append((config, recipe(name, FinetuneConfig, overrides), folder))
    digests = {folder: open_folder(folder, "data")[1].digest for folder in data}
    digest = digest_json([[c.model.digest, c.train.seed, f.digest, digests[d]] for c, f, d in plan])
    record = join(store, "baselines", f"{digest[:12]}.json")
    with Stage("random weights", store=store, run=run) as stage:
        if exists(record):
            made = [str(uri) for uri in read_json(record)]
            stage.made(made[0])
            return made
        stage.report(0, len(plan), "starting")
        import torch

        jobs = [(f.to_json(), random_encoder(c, store), d, store) for c, f, d in plan]
        made = []
        # On a GPU they would share it.
        with process_pool(1 if torch.cuda.is_available() else 0) as pool:
            for done, future in enumerate(
                [pool.submit(run_trial_in_subprocess, *job) for job in jobs], start=1
            ):
                made.append(future.result())
                stage.report(done, len(jobs), "evaluated")
        write_json(record, made)
        stage.made(made[0])
    return made


def compare(
    encoders: Sequence[str],
    evaluations: Sequence[str],
    random_evaluations: Sequence[str],
    data: Sequence[str],
    store: str,
    run: str = "",
) -> str:
    """Compare encoders at their tasks, with each other and with random weights."""
    from clipmill.models.checkpoint import read_metadata
    from clipmill.tasks.comparison import ComparisonConfig, compare_encoders

    cards = {LABELS[read_metadata(uri).recipe["view"]["captions"]]: uri for uri in encoders}
    with Stage("compare", store=store, run=run) as stage:
        return stage.made(
            compare_encoders(
                ComparisonConfig(),
                cards,
                evaluations,
                random_evaluations,
                data,
                store,
                report=stage.report,
            )
        )


def promote_compared(task: str, comparison: str, store: str, run: str = "") -> str:
    """Promote the best model of a comparison if it passes the comparison's own gate.

    Returns the promotion that holds now; empty where no model passes and none serves.
    """
    from clipmill.errors import GateError
    from clipmill.tasks.comparison import Comparison
    from clipmill.tasks.promotion import PromotionConfig
    from clipmill.tasks.promotion import promote as decide

    with Stage("promote", store=store, run=run, label=task) as stage:
        stage.report(0, 1, "comparing")
        found = Comparison.read(comparison).task(task)
        gate = PromotionConfig(task=task, threshold=found.gate)
        try:
            return stage.made(decide(gate, list(found.evaluations.values()), store).uri)
        except GateError:
            return stage.made("")


def probe(promotions: Sequence[str], store: str, run: str = "") -> str:
    """Start the promoted models in a KServe server and query each."""
    import io

    import numpy as np
    from PIL import Image

    from clipmill.serve.smoke_test import SmokeTestModel
    from clipmill.serve.smoke_test import probe as ask
    from clipmill.tasks.promotion import read_promotion

    results = [read_promotion(uri).evaluation for uri in promotions if uri]
    if not results:
        return ""
    models = tuple(SmokeTestModel(task=r.task, model=r.model) for r in results)
    image = Image.open(io.BytesIO(results[0].read_image(0, "image")))
    with Stage("serve", store=store, run=run) as stage:
        return stage.made(ask(models, np.asarray(image), store, report=stage.report))


def report(
    dataset: str,
    layer: str,
    captioner: str,
    encoders: Sequence[str],
    evaluations: Sequence[str],
    store: str,
    run: str = "",
    *,
    comparison: str = "",
    promotions: Sequence[str] = (),
    probe_uri: str = "",
) -> str:
    """Put everything on one page; the folder of ``report.html`` and ``report.json``."""
    from clipmill.report.encoders import ReportInputs
    from clipmill.report.encoders import report as make
    from clipmill.data.captioners import captioner_kind
    from clipmill.models.checkpoint import read_metadata
    from clipmill.tasks.evaluation import read_evaluation

    # Only a CoCa of ours has a log to show; the page has the layer's name in any case.
    kind, checkpoint = captioner_kind(captioner) if captioner else ("", "")
    cards = [read_metadata(uri) for uri in encoders]
    labels = {metadata.digest: LABELS[metadata.recipe["view"]["captions"]] for metadata in cards}
    judged: dict[str, list[str]] = {label: [] for label in labels.values()}
    for uri in evaluations:
        model = read_metadata(read_evaluation(uri).model.uri)
        encoder = next(p for p in model.parents if p.role == "encoder")
        if encoder.digest not in labels:
            raise ConfigError(
                f"{uri} evaluates a model of the encoder {encoder.uri}",
                expected=f"a model of one of the encoders {', '.join(encoders)}",
                action=f"add --encoder {encoder.uri}, or leave that evaluation out",
            )
        judged[labels[encoder.digest]].append(uri)
    inputs = ReportInputs(
        dataset=dataset,
        layer=layer,
        captioner=checkpoint if kind == "coca" else "",
        encoders={labels[metadata.digest]: metadata.uri for metadata in cards},
        evaluations={label: tuple(uris) for label, uris in judged.items()},
        comparison=comparison,
        promotions=tuple(uri for uri in promotions if uri),
        probe=probe_uri,
        run=run,
    )
    with Stage("report", store=store, run=run) as stage:
        stage.report(0, 1, "drawing")
        return stage.made(make(inputs, store))


def report_tasks(
    encoder: str,
    evaluations: Sequence[str],
    promotions: Sequence[str],
    store: str,
    run: str = "",
) -> str:
    """Put an encoder's tasks on one page; the folder of ``report.html`` and ``report.json``."""
    from clipmill.report.tasks import tasks_report as make

    with Stage("report", store=store, run=run, label="tasks") as stage:
        stage.report(0, 1, "drawing")
        return stage.made(make(encoder, evaluations, promotions, store))


def check_data(
    task: str, data: str, *, encoder: str = "", name: str = "", model: str = ""
) -> "DataCheck":
    """Look through a task's data before training on it."""
    from clipmill.data.labeled.folder import open_folder
    from clipmill.tasks.checks import check_data as look
    from clipmill.tasks.finetune import FinetuneConfig

    config = recipe(name, FinetuneConfig) if name else None
    with Stage("check", label=task) as stage:
        folder, _ = open_folder(data, "data")
        return look(task, folder, encoder=encoder, config=config, model=model, report=stage.report)


if TYPE_CHECKING:
    from clipmill.models.attention import AttentionStatistics


def zero_shot(
    name: str,
    overrides: Sequence[str],
    model: str,
    data: str,
    store: str,
    run: str = "",
    *,
    classes: str = "",
) -> str:
    """Judge a CLIP on labelled pictures by the names of their classes."""
    from clipmill.tasks.zero_shot import zero_shot as judge
    from clipmill.tasks.zero_shot import ZeroShotConfig

    given = [f"clip.model={model}", *([f"classes={classes}"] if classes else [])]
    config = recipe(name, ZeroShotConfig, [*given, *overrides])
    with Stage("zero-shot", store=store, run=run) as stage:
        return stage.made(judge(config, data, store, report=stage.report))


def retrieval(
    name: str,
    overrides: Sequence[str],
    model: str,
    data: str,
    store: str,
    run: str = "",
    label: str = "",
) -> str:
    """Judge a CLIP by how it finds captions and pictures."""
    from clipmill.tasks.zero_shot import RetrievalConfig
    from clipmill.tasks.retrieval import retrieve

    config = recipe(name, RetrievalConfig, [f"clip.model={model}", *overrides])
    with Stage("retrieval", store=store, run=run, label=LABELS.get(label, label)) as stage:
        return stage.made(retrieve(config, data, store, report=stage.report))


def report_photos(
    dataset: str,
    layer: str,
    captioner: str,
    evaluations: Sequence[str],
    given: str,
    store: str,
    run: str = "",
) -> str:
    """Put retrieval on photographs on one page; the folder of its HTML and JSON."""
    from clipmill.report.photos import photos_report as make

    described = {"layer": layer, "captioner": captioner, "given": given, "run": run}
    with Stage("report", store=store, run=run) as stage:
        stage.report(0, 1, "drawing")
        return stage.made(make(dataset, evaluations, store, **described))


def attention(
    encoders: Sequence[str], data: str, *, num_images: int
) -> "dict[str, AttentionStatistics]":
    """How far the heads of ViTs look, by the encoders' names."""
    from clipmill.report.attention import measure_attention

    found = {}
    with Stage("attention") as stage:
        for encoder in encoders:
            found[encoder] = measure_attention(
                encoder, data, num_images=num_images, report=stage.report
            )
    return found


def study(
    name: str,
    overrides: Sequence[str],
    store: str,
    run: str = "",
    *,
    tables: Sequence[str] = (),
    seeds: Sequence[int] = (),
    workers: int = 1,
) -> str:
    """Compare captions by what encoders learn from them, in all tables and seeds if none is named.

    Draws the page too.
    """
    from clipmill.storage import write_bytes
    from clipmill.study.config import StudyConfig
    from clipmill.study.page import study_page
    from clipmill.study.result import read_study
    from clipmill.study.run import run_study

    config = recipe(name, StudyConfig, overrides)
    config = config.only(tables, seeds) if tables or seeds else config
    options = [
        *("--recipe", name, "--store", store, "--workers", str(workers)),
        *(word for table in tables for word in ("--table", table)),
        *(word for seed in seeds for word in ("--seed", str(seed))),
        *(word for override in overrides for word in ("--set", override)),
    ]
    command = ["clipmill", "study", "captions", *options]
    with Stage("study", store=store, run=run) as stage:
        uri = run_study(
            config, store, workers=workers, command=shlex.join(command), report=stage.report
        )
        write_bytes(join(uri, "study.html"), study_page(read_study(uri)).encode())
        return stage.made(uri)


_RATE = "train.schedule.peak"


@dataclass(frozen=True, kw_only=True, slots=True)
class WantedTask(Config):
    """What to tune for, on which data, and what must be reached."""

    recipe: str
    """Name of a recipe, of a fine-tuning or of a sweep."""
    data: str
    """Folder of labelled data, or URI of one as .tar."""
    gate: float
    """Value of the task's metric from which on a model may serve, in its unit."""
    overrides: tuple[str, ...] = ()
    """``path=value`` for the recipe's config."""

    @property
    def sweep(self) -> SweepConfig:
        """The recipe as a sweep: a fine-tuning is one of a single point.

        Raises:
            ConfigError: there is no such recipe, or an override is wrong.
        """
        if self.recipe not in RECIPES or not isinstance(RECIPES[self.recipe](), FinetuneConfig):
            return recipe(self.recipe, SweepConfig, self.overrides)
        config = recipe(self.recipe, FinetuneConfig, self.overrides)
        return SweepConfig(
            finetune=config, grid={_RATE: (config.train.schedule.peak,)}, rungs=(1.0,)
        )


def sweep_point(wanted: WantedTask, point: Point, encoder: str, store: str, run: str = "") -> str:
    """Try a point at the sweep's first rung; its evaluation's URI, empty where it diverged."""
    from clipmill.tasks.sweep import run_trial

    config = wanted.sweep.at(point, 0)
    label = f"{config.task}-{config.digest[:8]}"
    with Stage("sweep point", store=store, run=run, label=label) as stage:
        return stage.made(run_trial(config, encoder, wanted.data, store, stage.report))


def best_of_sweep(
    wanted: WantedTask, encoder: str, store: str, run: str = ""
) -> tuple[str, EvaluationResult]:
    """The sweep's URI and the evaluation of its best; points that were tried before are found."""
    from clipmill.stages.run import drawn_sweep
    from clipmill.tasks.sweep import read_sweep

    uri = drawn_sweep(wanted.sweep, encoder, wanted.data, store, run)
    return uri, read_evaluation(read_sweep(uri).best.evaluation)

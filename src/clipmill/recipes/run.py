"""Each stage with its recipe: what a command and a pipeline's component both call.

Every function takes the recipe's name with overrides, the URIs of what it reads, the store to write
to, and the run's name if its times are to be kept there. It returns the URI of what it made.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from clipmill.recipes.registry import recipe
from clipmill.stages import Stage
from clipmill.storage import join

if TYPE_CHECKING:
    from clipmill.data.stats import DatasetStats
    from clipmill.data.verify import Verification
    from clipmill.tasks.checks import DataCheck

LABELS = {"real": "G", "synthetic": "S", "both": "G+S", "chosen": "G or S"}
"""The paper's names of the caption choices (CLIP-QC, Table 2), and of the choice by a layer."""


def scenes(name: str, overrides: Sequence[str], store: str, run: str = "") -> str:
    """Draw procedural scenes; the folder with its tars."""
    from clipmill.data.scenes.source import ScenesSourceConfig, draw_source

    config = recipe(name, ScenesSourceConfig, overrides)
    with Stage("scenes", store=store, run=run) as stage:
        return stage.made(draw_source(config, store, report=stage.report))


def shard(
    name: str, overrides: Sequence[str], source: str, store: str, run: str = "", label: str = ""
) -> str:
    """Cut a source into a dataset."""
    from clipmill.data.shards import ShardConfig
    from clipmill.data.shards import shard as make

    config = recipe(name, ShardConfig, overrides)
    with Stage("shard", store=store, run=run, label=label) as stage:
        return stage.made(
            make(config, source, store, progress=lambda d, n: stage.report(d, n, "samples"))
        )


def plan(name: str, overrides: Sequence[str], source: str, store: str) -> str:
    """Plan a dataset for workers to make; the URI that it will have."""
    from clipmill.data.shards import ShardConfig, plan_shards

    with Stage("plan") as stage:
        return stage.made(plan_shards(recipe(name, ShardConfig, overrides), source, store).uri)


def shard_part(dataset: str, *, worker: str = "", start: int = 0, stop: int | None = None) -> str:
    """Make a part of a planned dataset: that of ``worker`` ("I/N"), or a range of shards."""
    from clipmill.data.shards import parse_worker, read_plan, shard_range, worker_range

    planned = read_plan(dataset)
    if worker:
        start, stop = worker_range(planned.num_shards, *parse_worker(worker))
    stop = planned.num_shards if stop is None else min(stop, planned.num_shards)
    with Stage("shard", label=f"{start}-{stop}") as stage:
        shard_range(planned, start, stop, progress=lambda d, n: stage.report(d, n, "samples"))
        return stage.made(planned.uri)


def finish(dataset: str) -> str:
    """Make a planned dataset of its finished shards."""
    from clipmill.data.shards import finish_shards, read_plan

    with Stage("finish") as stage:
        return stage.made(finish_shards(read_plan(dataset)).uri)


def train_captioner(
    name: str, overrides: Sequence[str], dataset: str, store: str, run: str = ""
) -> str:
    """Train a captioner on a dataset with good captions."""
    from clipmill.pretrain.coca import CaptionerConfig
    from clipmill.pretrain.coca import train_captioner as make

    config = recipe(name, CaptionerConfig, overrides)
    with Stage("captioner", store=store, run=run) as stage:
        return stage.made(make(config, dataset, store, report=stage.report))


def recaption(
    name: str,
    overrides: Sequence[str],
    dataset: str,
    captioner: str,
    store: str,
    run: str = "",
    *,
    start: int = 0,
    stop: int | None = None,
) -> str:
    """Caption a dataset's pictures, or those of some of its shards; the name of the layer."""
    from clipmill.data.recaption import RecaptionConfig
    from clipmill.data.recaption import recaption as make

    config = recipe(name, RecaptionConfig, overrides)
    with Stage("recaption", store=store, run=run) as stage:
        layer = make(config, dataset, captioner, report=stage.report, start=start, stop=stop)
        stage.made(join(dataset, "layers", layer))
        return layer


def score(
    name: str,
    overrides: Sequence[str],
    dataset: str,
    store: str,
    run: str = "",
    *,
    model: str = "",
    start: int = 0,
    stop: int | None = None,
) -> list[str]:
    """Measure shards ``start`` to ``stop`` of a dataset; the names of the layers.

    ``model`` replaces the recipe's CLIP.
    """
    from clipmill.data.scoring.score import ScoreConfig
    from clipmill.data.scoring.score import score as make

    given = [f"clip.model={model}"] if model else []
    config = recipe(name, ScoreConfig, [*given, *overrides])
    with Stage("score", store=store, run=run, label=name.removeprefix("score-")) as stage:
        layers = make(config, dataset, report=stage.report, start=start, stop=stop)
        stage.made(join(dataset, "layers", layers[-1]))
        return list(layers)


def select(
    name: str,
    overrides: Sequence[str],
    dataset: str,
    store: str,
    run: str = "",
    *,
    layers: Sequence[str] = (),
) -> str:
    """Judge a dataset's samples by their scores; the name of the layer."""
    from clipmill.data.select import select as make
    from clipmill.data.select_rule import SelectConfig

    config = recipe(name, SelectConfig, overrides)
    with Stage("select", store=store, run=run, label=config.name) as stage:
        layer = make(config, dataset, layers=layers, report=stage.report)
        stage.made(join(dataset, "layers", layer))
        return layer


def teacher(
    name: str,
    overrides: Sequence[str],
    dataset: str,
    captions: str,
    store: str,
    run: str = "",
) -> str:
    """Embed a dataset's pictures and captions with a teacher ensemble; the name of the layer."""
    from clipmill.pretrain.teacher import TeacherConfig, make_teacher_layer

    config = recipe(name, TeacherConfig, overrides)
    with Stage("teacher", store=store, run=run) as stage:
        layer = make_teacher_layer(config, dataset, captions, report=stage.report)
        stage.made(join(dataset, "layers", layer))
        return layer


def import_layer(
    dataset: str,
    layer: str,
    files: Sequence[str],
    *,
    uid_column: str = "uid",
    columns: Sequence[str] = (),
    missing: str = "error",
) -> str:
    """Join other tools' tables to a dataset as a layer; ``columns`` are ``OURS=THEIRS``."""
    from clipmill.data.import_layer import ImportConfig
    from clipmill.data.import_layer import import_layer as make

    named = {ours: theirs for ours, _, theirs in (c.partition("=") for c in columns)}
    renamed = {ours: theirs or ours for ours, theirs in named.items()}
    config = ImportConfig.from_json(
        {"uid_column": uid_column, "columns": renamed, "missing": missing}
    )
    with Stage("import") as stage:
        return stage.made(make(config, dataset, layer, files, report=stage.report))


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
    from clipmill.data.view import ViewConfig
    from clipmill.pretrain.clip import PretrainConfig
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


def pretrain_mae(
    name: str, overrides: Sequence[str], dataset: str, store: str, run: str = ""
) -> str:
    """Pretrain a masked autoencoder on a dataset's pictures."""
    from clipmill.pretrain.mae import MaePretrainConfig
    from clipmill.pretrain.mae import pretrain_mae as make

    config = recipe(name, MaePretrainConfig, overrides)
    with Stage("pretrain", store=store, run=run, label="MAE") as stage:
        return stage.made(make(config, dataset, store, report=stage.report))


def pretrain_supervised(
    name: str, overrides: Sequence[str], data: str, store: str, run: str = ""
) -> str:
    """Pretrain an image tower on a folder of labelled images."""
    from clipmill.pretrain.supervised import SupervisedConfig
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
    from clipmill.analysis.sweep_page import sweep_page
    from clipmill.storage import exists, write_bytes
    from clipmill.tasks.sweep import read_sweep
    from clipmill.tasks.sweep import sweep as search
    from clipmill.tasks.sweep_config import SweepConfig

    config = recipe(name, SweepConfig, overrides)
    with Stage("sweep", store=store, run=run, label=config.finetune.task) as stage:
        uri = search(config, encoder, data, store, workers=workers, report=stage.report)
        page = join(uri, "sweep.html")
        if not exists(page):
            write_bytes(page, sweep_page(read_sweep(uri)).encode())
        stage.made(uri)
    if gate is not None:
        promote(config.finetune.task, gate, [read_sweep(uri).best.evaluation], store, run)
    return uri


def evaluate(model: str, data: str, store: str, run: str = "", label: str = "") -> str:
    """Judge a task model on its data's test split."""
    from clipmill.models.checkpoint import read_card
    from clipmill.tasks.evaluation import evaluate as judge

    task = read_card(model).architecture.get("task", "")
    with Stage(f"evaluate {task}", store=store, run=run, label=LABELS.get(label, label)) as stage:
        return stage.made(judge(model, data, store, report=stage.report))


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
    from clipmill.tasks.zero_shot_config import ZeroShotConfig

    given = [f"clip.model={model}", *([f"classes={classes}"] if classes else [])]
    config = recipe(name, ZeroShotConfig, [*given, *overrides])
    with Stage("zero-shot", store=store, run=run) as stage:
        return stage.made(judge(config, data, store, report=stage.report))


def retrieval(
    name: str, overrides: Sequence[str], model: str, data: str, store: str, run: str = ""
) -> str:
    """Judge a CLIP by how it finds captions and pictures."""
    from clipmill.tasks.zero_shot_config import RetrievalConfig
    from clipmill.tasks.zero_shot_retrieval import retrieve

    config = recipe(name, RetrievalConfig, [f"clip.model={model}", *overrides])
    with Stage("retrieval", store=store, run=run) as stage:
        return stage.made(retrieve(config, data, store, report=stage.report))


def promote(
    task: str, threshold: float, evaluations: Sequence[str], store: str, run: str = ""
) -> str:
    """Let the best judged model of a task serve, if it passes; the promotion that holds now."""
    from clipmill.tasks.promotion import GateConfig
    from clipmill.tasks.promotion import promote as decide

    with Stage("promote", store=store, run=run, label=task) as stage:
        stage.report(0, 1, "comparing")
        gate = GateConfig(task=task, threshold=threshold)
        return stage.made(decide(gate, evaluations, store).uri)


def probe(promotions: Sequence[str], store: str, run: str = "") -> str:
    """Start the promoted models in a KServe server and query each."""
    import io

    import numpy as np
    from PIL import Image

    from clipmill.serve.probe import ProbedModel
    from clipmill.serve.probe import probe as ask
    from clipmill.tasks.promotion import read_promotion

    results = [read_promotion(uri).evaluation for uri in promotions]
    models = tuple(ProbedModel(task=r.task, model=r.model) for r in results)
    image = Image.open(io.BytesIO(results[0].picture(0, "image")))
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
    promotions: Sequence[str] = (),
    probe_uri: str = "",
) -> str:
    """Put everything on one page; the folder of ``report.html`` and ``report.json``."""
    from clipmill.analysis.report import ReportInputs
    from clipmill.analysis.report import report as make
    from clipmill.models.checkpoint import read_card
    from clipmill.tasks.evaluation import read_evaluation

    cards = [read_card(uri) for uri in encoders]
    labels = {card.digest: LABELS[card.recipe["view"]["captions"]] for card in cards}
    judged: dict[str, list[str]] = {label: [] for label in labels.values()}
    for uri in evaluations:
        model = read_card(read_evaluation(uri).model.uri)
        encoder = next(p for p in model.parents if p.role == "encoder")
        judged[labels[encoder.digest]].append(uri)
    inputs = ReportInputs(
        dataset=dataset,
        layer=layer,
        captioner=captioner,
        encoders={labels[card.digest]: card.uri for card in cards},
        evaluations={label: tuple(uris) for label, uris in judged.items()},
        promotions=tuple(promotions),
        probe=probe_uri,
        run=run,
    )
    with Stage("report", store=store, run=run) as stage:
        stage.report(0, 1, "drawing")
        return stage.made(make(inputs, store))


def data_stats(dataset: str, *, max_shards: int = 0) -> "DatasetStats":
    """Look at a dataset's shards and layers."""
    from clipmill.data.dataset import Dataset, cache_folder
    from clipmill.data.stats import dataset_stats

    with Stage("stats") as stage:
        opened = Dataset.open(dataset)
        return dataset_stats(opened, cache_folder(), max_shards=max_shards, report=stage.report)


def data_verify(dataset: str, *, contents: bool = True) -> "Verification":
    """Check every digest of a dataset."""
    from clipmill.data.verify import verify

    with Stage("verify") as stage:
        return verify(dataset, contents=contents, report=stage.report)


def data_view(
    dataset: str,
    *,
    uids: Sequence[str] = (),
    best: str = "",
    worst: str = "",
    count: int = 24,
    seed: int = 0,
) -> str:
    """Samples of a dataset on one HTML page."""
    from clipmill.analysis.dataset_page import PageConfig, dataset_page
    from clipmill.data.dataset import Dataset, cache_folder

    config = PageConfig(uids=tuple(uids), best=best, worst=worst, count=count, seed=seed)
    with Stage("view") as stage:
        return dataset_page(Dataset.open(dataset), config, cache_folder(), report=stage.report)


def data_export(
    name: str,
    overrides: Sequence[str],
    dataset: str,
    store: str,
    *,
    captions: str = "real",
    layer: str = "",
) -> str:
    """Bake a view into WebDataset tars; their folder."""
    from clipmill.data.dataset import cache_folder
    from clipmill.data.export import ExportConfig, export
    from clipmill.data.view import ViewConfig

    view = ViewConfig.from_json(
        {"captions": captions, "layer": "" if captions == "real" else layer}
    )
    config = replace(recipe(name, ExportConfig), view=view).override(overrides)
    with Stage("export") as stage:
        return stage.made(export(config, dataset, store, cache_folder(), report=stage.report))


def data_check(
    task: str, data: str, *, encoder: str = "", name: str = "", model: str = ""
) -> "DataCheck":
    """Look through a task's data before training on it."""
    from clipmill.data.folder import open_folder
    from clipmill.tasks.checks import check_data
    from clipmill.tasks.finetune import FinetuneConfig

    config = recipe(name, FinetuneConfig) if name else None
    with Stage("check", label=task) as stage:
        folder, _ = open_folder(data, "data")
        return check_data(
            task, folder, encoder=encoder, config=config, model=model, report=stage.report
        )

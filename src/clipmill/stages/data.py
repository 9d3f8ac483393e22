"""The data plane's stages, each with its recipe: what a command and a component both call.

As in :mod:`clipmill.stages.run`, which has the stages after it.
"""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING
from clipmill.recipes.registry import recipe
from clipmill.stage_records import Stage
from clipmill.storage import join
from clipmill.data.dataset import Dataset
from clipmill.storage import exists, join, write_json

if TYPE_CHECKING:
    from clipmill.data.stats import DatasetStats
    from clipmill.data.verify import Verification


def scenes(name: str, overrides: Sequence[str], store: str, run: str = "") -> str:
    """Draw procedural scenes; the folder with its tars."""
    from clipmill.scenes.source import ScenesSourceConfig, draw_source

    config = recipe(name, ScenesSourceConfig, overrides)
    with Stage("scenes", store=store, run=run) as stage:
        return stage.made(draw_source(config, store, report=stage.report))


def shard(
    name: str, overrides: Sequence[str], source: str, store: str, run: str = "", label: str = ""
) -> str:
    """Cut a source into a dataset."""
    from clipmill.data.shards.write import ShardConfig
    from clipmill.data.shards.write import shard as make

    config = recipe(name, ShardConfig, overrides)
    with Stage("shard", store=store, run=run, label=label) as stage:
        progress = partial(stage.report, words="samples")
        return stage.made(make(config, source, store, progress=progress, num_processes=0))


def hold_out(
    name: str, overrides: Sequence[str], dataset: str, store: str, run: str = ""
) -> tuple[list[str], list[str]]:
    """Cut a dataset in two; overrides for pretraining on one part, and for retrieval on the other.

    ``name`` and ``overrides`` are those of the pretraining recipe, and come first.
    """
    from clipmill.data.dataset import Dataset
    from clipmill.data.held_out import fitting_batch
    from clipmill.data.held_out import hold_out as cut
    from clipmill.pretrain.config import PretrainConfig

    config = recipe(name, PretrainConfig, overrides)
    with Stage("hold-out", store=store, run=run) as stage:
        stage.report(0, 1, "choosing pairs")
        found = cut(Dataset.open(dataset))
        stage.made(dataset)
    batch = fitting_batch(found.num_train, config.train.batch_size)
    chosen = [f"view.fraction={found.fraction!r}", f"train.batch_size={batch}"]
    # What the recipe would look at on the way is measured afterwards, on these pairs.
    chosen.append("evaluation.every_steps=0")
    return [*overrides, *chosen], [f"outside_fraction={found.fraction!r}"]


def plan(name: str, overrides: Sequence[str], source: str, store: str) -> str:
    """Plan a dataset for workers to make; the URI that it will have."""
    from clipmill.data.shards.write import ShardConfig, plan_shards

    with Stage("plan", target=store) as stage:
        return stage.made(plan_shards(recipe(name, ShardConfig, overrides), source, store).uri)


def shard_part(dataset: str, *, worker: str = "", start: int = 0, stop: int | None = None) -> str:
    """Make a part of a planned dataset: that of ``worker`` ("I/N"), or a range of shards."""
    from clipmill.data.shards.write import parse_worker, read_plan, shard_range, worker_range

    planned = read_plan(dataset)
    if worker:
        start, stop = worker_range(planned.num_shards, *parse_worker(worker))
    stop = planned.num_shards if stop is None else min(stop, planned.num_shards)
    with Stage("shard", label=f"{start}-{stop}", target=dataset) as stage:
        progress = partial(stage.report, words="samples")
        shard_range(planned, start, stop, progress=progress, num_processes=0)
        return stage.made(planned.uri)


def finish(dataset: str) -> str:
    """Make a planned dataset of its finished shards."""
    from clipmill.data.shards.write import finish_shards, read_plan

    with Stage("finish", target=dataset) as stage:
        return stage.made(finish_shards(read_plan(dataset)).uri)


def train_captioner(
    name: str, overrides: Sequence[str], dataset: str, store: str, run: str = ""
) -> str:
    """Train a captioner on a dataset with good captions."""
    from clipmill.pretrain.config import CaptionerConfig
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
    with Stage("recaption", store=store, run=run, target=dataset) as stage:
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
    with Stage(
        "score", store=store, run=run, label=name.removeprefix("score-"), target=dataset
    ) as stage:
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
    from clipmill.data.select import SelectConfig

    config = recipe(name, SelectConfig, overrides)
    with Stage("select", store=store, run=run, label=config.name, target=dataset) as stage:
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
    from clipmill.pretrain.teacher import make_teacher_layer
    from clipmill.pretrain.config import TeacherConfig

    config = recipe(name, TeacherConfig, overrides)
    with Stage("teacher", store=store, run=run, target=dataset) as stage:
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
    with Stage("import", target=dataset) as stage:
        return stage.made(make(config, dataset, layer, files, report=stage.report))


def stats(dataset: str, *, max_shards: int = 0) -> "DatasetStats":
    """Look at a dataset's shards and layers."""
    from clipmill.data.dataset import Dataset, cache_folder
    from clipmill.data.stats import dataset_stats

    with Stage("stats") as stage:
        opened = Dataset.open(dataset)
        return dataset_stats(opened, cache_folder(), max_shards=max_shards, report=stage.report)


def verify(dataset: str, *, contents: bool = True) -> "Verification":
    """Check every digest of a dataset."""
    from clipmill.data.verify import verify as check

    with Stage("verify") as stage:
        return check(dataset, contents=contents, report=stage.report)


def view(
    dataset: str,
    *,
    uids: Sequence[str] = (),
    best: str = "",
    worst: str = "",
    count: int = 24,
    seed: int = 0,
) -> str:
    """Samples of a dataset on one HTML page."""
    from clipmill.report.preview import PageConfig, dataset_page
    from clipmill.data.dataset import Dataset, cache_folder

    config = PageConfig(uids=tuple(uids), best=best, worst=worst, count=count, seed=seed)
    with Stage("view") as stage:
        return dataset_page(Dataset.open(dataset), config, cache_folder(), report=stage.report)


def export(
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
    from clipmill.data.export import ExportConfig
    from clipmill.data.export import export as bake
    from clipmill.data.loading.view import ViewConfig

    view = ViewConfig.from_json(
        {"captions": captions, "layer": "" if captions == "real" else layer}
    )
    config = replace(recipe(name, ExportConfig), view=view).override(overrides)
    with Stage("export", target=store) as stage:
        return stage.made(bake(config, dataset, store, cache_folder(), report=stage.report))



def is_new(dataset: str, store: str) -> bool:
    """Whether no refresh of ``store`` has been finished with this dataset.

    Raises:
        ArtifactError: there is no such dataset.
    """
    return not exists(_record(Dataset.open(dataset).digest, store))


def remember(dataset: str, store: str, run: str) -> None:
    """Keep that ``run`` was finished with this dataset; ArtifactError where there is none."""
    opened = Dataset.open(dataset)
    value = {"dataset": opened.uri, "digest": opened.digest, "run": run}
    write_json(_record(opened.digest, store), value)


def _record(digest: str, store: str) -> str:
    return join(store, "refreshed", f"{digest[:12]}.json")

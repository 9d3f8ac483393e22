"""Stages of the data plane, from a source of pairs to a captioned, scored dataset."""

import time
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from clipmill.errors import ConfigError
from clipmill.recipes.registry import get_recipe
from clipmill.stage_records import Stage
from clipmill.storage import absolute_uri, join

if TYPE_CHECKING:
    from clipmill.data.import_reinforcements import ImportedReinforcements
    from clipmill.data.join import JoinCounts
    from clipmill.data.shards.write import Progress
    from clipmill.data.stats import DatasetStats
    from clipmill.data.verify import Verification


def scenes(recipe: str, overrides: Sequence[str], store: str, run: str = "") -> str:
    """Generate procedural scenes; return the URI of the folder with their tars."""
    from clipmill.scenes import source

    config = get_recipe(recipe, source.ScenesSourceConfig, overrides)
    with Stage("scenes", store=store, run=run) as stage:
        return stage.set_output(source.draw_source(config, store, report=stage.report))


def pack(source: str, uri: str) -> str:
    """Pack a folder of labeled data or pairs, or an archive of one, as a tar; return its URI."""
    from clipmill.data import pack

    with Stage("pack", target=uri.rpartition("/")[0]) as stage:
        return stage.set_output(pack.pack(source, absolute_uri(uri), report=stage.report))


def shard(
    recipe: str, overrides: Sequence[str], source: str, store: str, run: str = "", label: str = ""
) -> str:
    """Convert a source into a sharded dataset; return its URI."""
    from clipmill.data.shards.plan import ShardConfig
    from clipmill.data.shards.write import write_dataset

    config = get_recipe(recipe, ShardConfig, overrides)
    with Stage("shard", store=store, run=run, label=label) as stage:
        progress = _with_rate(stage)
        return stage.set_output(
            write_dataset(config, source, store, progress=progress, num_processes=0)
        )


def _with_rate(stage: Stage) -> "Progress":
    """Return a callback that reports samples done, and how many a second."""
    first: list[tuple[int, float]] = []

    def progress(done: int, total: int) -> None:
        now = time.monotonic()
        # The first report may count shards of an earlier run.
        if not first:
            first.append((done, now))
        before, since = first[0]
        rate = (done - before) / (now - since) if now > since else 0.0
        stage.report(done, total, f"samples, {rate:.0f}/s" if rate else "samples")

    return progress


def hold_out(
    recipe: str, overrides: Sequence[str], dataset: str, store: str, run: str = ""
) -> tuple[list[str], list[str]]:
    """Split a dataset into a training part and a held-out part.

    Args:
        recipe: Pretraining recipe whose batch size must fit the training part.
        overrides: Overrides of that recipe.
        dataset: URI of the dataset.
        store: Store with the run's records.
        run: Name of the run.

    Returns:
        Overrides for pretraining on the training part, which begin with those given, and overrides
        for retrieval on the held-out part.
    """
    from clipmill.data.dataset import Dataset
    from clipmill.data.loading.view import fit_batch_size, hold_out
    from clipmill.pretrain.config import PretrainConfig

    config = get_recipe(recipe, PretrainConfig, overrides)
    with Stage("hold-out", store=store, run=run) as stage:
        stage.report(0, 1, "choosing pairs")
        split = hold_out(Dataset.open(dataset))
        stage.set_output(dataset)
    batch_size = fit_batch_size(split.num_train, config.train.batch_size)
    added = [f"view.subset_fraction={split.fraction!r}", f"train.batch_size={batch_size}"]
    # Evaluation on these pairs follows training, so none is needed during it.
    added.append("validation.every=0")
    return [*overrides, *added], [f"outside_fraction={split.fraction!r}"]


def plan(recipe: str, overrides: Sequence[str], source: str, store: str) -> str:
    """Plan a dataset for several workers; return the URI that it will have."""
    from clipmill.data.shards.plan import ShardConfig, plan_shards

    with Stage("plan", target=store) as stage:
        config = get_recipe(recipe, ShardConfig, overrides)
        return stage.set_output(plan_shards(config, source, store).uri)


def shard_part(dataset: str, *, worker: str = "", start: int = 0, stop: int | None = None) -> str:
    """Write a worker's part (``I/N``) of a planned dataset, or shards ``start`` to ``stop``."""
    from clipmill.data.shards.plan import parse_worker_slice, read_plan, worker_range
    from clipmill.data.shards.write import write_shards

    shard_plan = read_plan(dataset)
    if worker:
        start, stop = worker_range(shard_plan.num_shards, *parse_worker_slice(worker))
    stop = shard_plan.num_shards if stop is None else min(stop, shard_plan.num_shards)
    with Stage("shard", label=f"{start}-{stop}", target=dataset) as stage:
        progress = _with_rate(stage)
        write_shards(shard_plan, start, stop, progress=progress, num_processes=0)
        return stage.set_output(shard_plan.uri)


def finalize(dataset: str) -> str:
    """Finalize a planned dataset whose shards are written; return its URI."""
    from clipmill.data.shards.finalize import finalize_dataset
    from clipmill.data.shards.plan import read_plan

    with Stage("finish", target=dataset) as stage:
        return stage.set_output(finalize_dataset(read_plan(dataset)).uri)


def train_captioner(
    recipe: str, overrides: Sequence[str], dataset: str, store: str, run: str = ""
) -> str:
    """Train a captioner on a dataset with good captions; return its URI."""
    from clipmill.pretrain import coca
    from clipmill.pretrain.config import CocaTrainConfig

    config = get_recipe(recipe, CocaTrainConfig, overrides)
    with Stage("captioner", store=store, run=run) as stage:
        return stage.set_output(coca.train_coca(config, dataset, store, report=stage.report))


def recaption(
    recipe: str,
    overrides: Sequence[str],
    dataset: str,
    captioner: str,
    store: str,
    run: str = "",
    *,
    start: int = 0,
    stop: int | None = None,
    retry: bool = False,
) -> str:
    """Caption the images of shards ``start`` to ``stop`` of a dataset; return the layer's name."""
    from clipmill.data import recaption
    from clipmill.data.captioners import CaptionersConfig

    config = get_recipe(recipe, CaptionersConfig, overrides)
    with Stage("recaption", store=store, run=run, target=dataset) as stage:
        layer = recaption.recaption(
            config, dataset, captioner, report=stage.report, start=start, stop=stop, retry=retry
        )
        stage.set_output(join(dataset, "layers", layer))
        return layer


def score(
    recipe: str,
    overrides: Sequence[str],
    dataset: str,
    store: str,
    run: str = "",
    *,
    model: str = "",
    start: int = 0,
    stop: int | None = None,
    retry: bool = False,
) -> list[str]:
    """Score shards ``start`` to ``stop`` of a dataset; return the names of the layers.

    ``model`` replaces the recipe's CLIP; ``retry`` judges samples again whose judgment failed.

    Raises:
        ConfigError: the recipe has none.
    """
    from clipmill.data.scoring import score

    defaults = get_recipe(recipe, score.ScoreConfig)
    own = [
        f"{name}.model={model}"
        for name in ("clip", "embedding")
        if model and getattr(defaults, name) is not None
    ]
    if model and not own:
        raise ConfigError(
            f"--model was {model}, and the recipe {recipe} scores nothing by a CLIP",
            expected="a recipe that does",
            action="add --recipe score-clip or score-embedding, or leave out --model",
        )
    config = get_recipe(recipe, score.ScoreConfig, [*own, *overrides])
    label = recipe.removeprefix("score-")
    with Stage("score", store=store, run=run, label=label, target=dataset) as stage:
        layers = score.score(
            config, dataset, report=stage.report, start=start, stop=stop, retry=retry
        )
        stage.set_output(join(dataset, "layers", layers[-1]))
        return list(layers)


def select(
    recipe: str,
    overrides: Sequence[str],
    dataset: str,
    store: str,
    run: str = "",
    *,
    layers: Sequence[str] = (),
) -> str:
    """Filter a dataset's samples by their scores; return the name of the selection layer."""
    from clipmill.data import select

    config = get_recipe(recipe, select.SelectConfig, overrides)
    with Stage("select", store=store, run=run, label=config.name, target=dataset) as stage:
        layer = select.select(config, dataset, layers=layers, report=stage.report)
        stage.set_output(join(dataset, "layers", layer))
        return layer


def teacher(
    recipe: str,
    overrides: Sequence[str],
    dataset: str,
    captions: str,
    store: str,
    run: str = "",
) -> str:
    """Embed a dataset's images and captions with a teacher ensemble; return the layer's name."""
    from clipmill.pretrain import teacher
    from clipmill.pretrain.config import TeacherConfig

    config = get_recipe(recipe, TeacherConfig, overrides)
    with Stage("teacher", store=store, run=run, target=dataset) as stage:
        layer = teacher.embed_with_teachers(config, dataset, captions, report=stage.report)
        stage.set_output(join(dataset, "layers", layer))
        return layer


def import_layer(
    dataset: str,
    layer: str,
    files: Sequence[str],
    *,
    by: str = "uid",
    uid_column: str = "",
    columns: Sequence[str] = (),
    missing: str = "error",
) -> "JoinCounts":
    """Join other tools' tables to a dataset as a layer; return what was matched.

    ``by`` is ``uid``, ``key`` or ``url``, in the column ``uid_column`` of the tables, by default
    the one of that name; ``columns`` are ``OURS=THEIRS``.
    """
    from clipmill.data import import_layer

    named = {ours: theirs for ours, _, theirs in (c.partition("=") for c in columns)}
    renamed = {ours: theirs or ours for ours, theirs in named.items()}
    config = import_layer.ImportConfig.from_json(
        {"by": by, "uid_column": uid_column, "columns": renamed, "on_missing": missing}
    )
    with Stage("import", target=dataset) as stage:
        counts = import_layer.import_layer(config, dataset, layer, files, report=stage.report)
        stage.set_output(join(dataset, "layers", layer))
        return counts


def import_reinforcements(
    dataset: str, source: str, *, by: str = "key", name: str = ""
) -> "ImportedReinforcements":
    """Join DataCompDR's tars without images to a dataset, as layers; return their names."""
    from clipmill.data import import_reinforcements

    config = import_reinforcements.ReinforcementConfig.from_json(
        {"by": by} | ({"name": name} if name else {})
    )
    with Stage("import", target=dataset) as stage:
        imported = import_reinforcements.import_reinforcements(
            config, dataset, source, report=stage.report
        )
        stage.set_output(join(dataset, "layers", imported.layers[-1]))
        return imported


def stats(dataset: str, *, max_shards: int = 0) -> "DatasetStats":
    """Compute statistics of a dataset's shards and layers."""
    from clipmill.data.dataset import Dataset, cache_folder
    from clipmill.data.stats import dataset_stats

    with Stage("stats") as stage:
        return dataset_stats(
            Dataset.open(dataset), cache_folder(), max_shards=max_shards, report=stage.report
        )


def verify(dataset: str, *, contents: bool = True) -> "Verification":
    """Check every digest of a dataset."""
    from clipmill.data import verify

    with Stage("verify") as stage:
        return verify.verify(dataset, contents=contents, report=stage.report)


def export(
    recipe: str,
    overrides: Sequence[str],
    dataset: str,
    store: str,
    *,
    captions: str = "real",
    layer: str = "",
) -> str:
    """Export a view of a dataset as plain WebDataset tars; return their folder's URI."""
    from clipmill.data import export
    from clipmill.data.dataset import cache_folder
    from clipmill.data.loading.view import ViewConfig

    view = ViewConfig.from_json(
        {"captions": captions, "layer": "" if captions == "real" else layer}
    )
    config = replace(get_recipe(recipe, export.ExportConfig), view=view).override(overrides)
    with Stage("export", target=store) as stage:
        return stage.set_output(
            export.export(config, dataset, store, cache_folder(), report=stage.report)
        )

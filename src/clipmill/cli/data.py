"""``clipmill data``: from image-text pairs to a captioned dataset."""

import dataclasses
import json
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer
from rich import box
from rich.console import Group
from rich.table import Table
from rich.text import Text

from clipmill.cli import argo, check, look
from clipmill.cli.extras import needs, require
from clipmill.cli.options import Json, OptionalStore, Set, Store, require_output
from clipmill.data.stats import QUANTILES, DatasetStats, Distribution
from clipmill.errors import SourceError

_SOURCE_HELP = (
    "A folder of images with .txt files, a .csv, .tsv or .parquet table, a COCO captions .json, "
    "WebDataset .tar files, an img2dataset or Hugging Face folder; or KIND:PATH?OPTION=VALUE."
)

data = typer.Typer(help="From image-text pairs to a captioned dataset.", no_args_is_help=True)
data.command("stats")(look.stats)
data.command("view")(look.view)
data.command("verify")(look.verify)
data.command("export")(look.export)
data.command("check")(check.check)


@data.command("scenes")
def data_scenes(store: Store, recipe: str = "scenes-miniature", sets: Set = None) -> None:
    """Draw procedural scenes with captions and labels."""
    from clipmill.recipes import run_data as run

    typer.echo(run.scenes(recipe, sets or [], store))


@data.command("plan")
def data_plan(
    source: Annotated[str, typer.Argument(help=_SOURCE_HELP)],
    store: Store,
    recipe: str = "shards",
    sets: Set = None,
) -> None:
    """Fix which part of a source each shard holds; prints the URI that the dataset will have."""
    from clipmill.recipes import run_data as run

    typer.echo(run.plan(recipe, sets or [], source, store))


@data.command("shard")
def data_shard(
    source: Annotated[str, typer.Argument(help=_SOURCE_HELP)] = "",
    store: OptionalStore = "",
    recipe: str = "shards",
    sets: Set = None,
    plan: Annotated[
        str, typer.Option(help="Work on this planned dataset instead: what `plan` printed.")
    ] = "",
    worker: Annotated[
        str, typer.Option(metavar="I/N", help="Which part of a plan: worker I (from 0) of N.")
    ] = "",
    start: Annotated[int, typer.Option(help="Or: the first shard of a plan to make.")] = 0,
    stop: Annotated[int | None, typer.Option(help="Where to stop (exclusive).")] = None,
    on: On = Place.HERE,
    workflow: Workflow = None,
    dry_run: DryRun = False,
) -> None:
    """Cut a source of pictures with captions into a dataset, or make a part of a planned one.

    Plain `shard SOURCE --store URI` does it all. With many workers: `plan` once, then
    `shard --plan URI --worker I/N` in each, then `finish`; `--on argo` has pods do that.
    """
    if argo.is_asked(on, workflow, dry_run):
        argo.refuse_parts(plan=plan, worker=worker, start=start, stop=stop)
        if not (source and store):
            raise typer.BadParameter("give SOURCE and --store")
        options = {"--store": store, "--recipe": recipe}
        argo.fan_out("shard", source, options, sets, workflow=workflow, dry_run=dry_run)
        return
    from clipmill.recipes import run_data as run

    if plan:
        typer.echo(run.shard_part(plan, worker=worker, start=start, stop=stop))
    elif source and store:
        typer.echo(run.shard(recipe, sets or [], source, store))
    else:
        raise typer.BadParameter("give SOURCE and --store, or --plan")


@data.command("finish")
def data_finish(
    dataset: Annotated[str, typer.Argument(help="URI of a planned dataset, all shards made.")],
) -> None:
    """List a planned dataset's shards, find doubles, and add the source's layers."""
    from clipmill.recipes import run_data as run

    typer.echo(run.finish(dataset))


@data.command("train-captioner")
@needs("model")
def data_train_captioner(
    dataset: Annotated[str, typer.Argument(help="URI of a dataset with good captions.")],
    store: Store,
    recipe: str = "coca-miniature",
    sets: Set = None,
) -> None:
    """Train a CoCa captioner."""
    from clipmill.recipes import run_data as run

    typer.echo(run.train_captioner(recipe, sets or [], dataset, store))


@data.command("teacher")
@needs("model")
def data_teacher(
    dataset: Annotated[str, typer.Argument(help="URI of the dataset.")],
    captions: Annotated[str, typer.Option(help="Layer of synthetic captions to embed too.")] = "",
    recipe: str = "teacher-datacompdr",
    sets: Set = None,
) -> None:
    """Embed pictures and captions with a teacher ensemble, as a layer; prints its name."""
    from clipmill.recipes import run_data as run

    typer.echo(run.teacher(recipe, sets or [], dataset, captions, store=""))


@data.command("recaption")
def data_recaption(
    dataset: Annotated[str, typer.Argument(help="URI of the dataset.")],
    captioner: Annotated[
        str,
        typer.Option(
            help="URI of a trained captioner, or open_clip:NAME/TAG, hf:ORG/NAME, "
            "file:PATH[#open_clip/NAME], vlm:http://HOST/v1, rewrite:http://HOST/v1, "
            "template:LABELS."
        ),
    ],
    recipe: str = "recaption-miniature",
    start: Annotated[int, typer.Option(help="First shard.")] = 0,
    stop: Annotated[int | None, typer.Option(help="Shard to stop before.")] = None,
    sets: Set = None,
    on: On = Place.HERE,
    workflow: Workflow = None,
    dry_run: DryRun = False,
) -> None:
    """Write synthetic captions as a layer beside a dataset's shards; prints the layer's name."""
    if argo.is_asked(on, workflow, dry_run):
        argo.refuse_parts(start=start, stop=stop)
        options = {"--captioner": captioner, "--recipe": recipe}
        argo.fan_out("recaption", dataset, options, sets, workflow=workflow, dry_run=dry_run)
        return
    from clipmill.recipes import run_data as run

    layer = run.recaption(recipe, sets or [], dataset, captioner, "", start=start, stop=stop)
    typer.echo(layer)


@data.command("score")
def data_score(
    dataset: Annotated[str, typer.Argument(help="URI of the dataset.")],
    model: Annotated[
        str, typer.Option(help="Address of the CLIP that judges (docs/weights.md).")
    ] = "",
    start: Annotated[int, typer.Option(help="First shard.")] = 0,
    stop: Annotated[int | None, typer.Option(help="Shard to stop before.")] = None,
    recipe: str = "score-basic",
    sets: Set = None,
    on: On = Place.HERE,
    workflow: Workflow = None,
    dry_run: DryRun = False,
) -> None:
    """Measure pictures and captions as layers; prints their names."""
    if argo.is_asked(on, workflow, dry_run):
        argo.refuse_parts(start=start, stop=stop)
        options = {"--model": model, "--recipe": recipe}
        argo.fan_out("score", dataset, options, sets, workflow=workflow, dry_run=dry_run)
        return
    from clipmill.recipes import run_data as run

    layers = run.score(recipe, sets or [], dataset, "", model=model, start=start, stop=stop)
    typer.echo("\n".join(layers))


@data.command("select")
def data_select(
    dataset: Annotated[str, typer.Argument(help="URI of the dataset.")],
    layer: Annotated[
        list[str] | None,
        typer.Option(help="A layer to use where a filter's name fits several; repeatable."),
    ] = None,
    recipe: str = "select-datacomp-basic",
    sets: Set = None,
) -> None:
    """Judge a dataset's samples by their scores, for views to follow; prints the layer's name."""
    from clipmill.recipes import run_data as run

    typer.echo(run.select(recipe, sets or [], dataset, store="", layers=layer or []))


@data.command("import-layer")
def data_import_layer(
    dataset: Annotated[str, typer.Argument(help="URI of the dataset.")],
    layer: Annotated[str, typer.Argument(help="Name of the layer, such as score/aesthetic.")],
    files: Annotated[list[str], typer.Argument(help="URIs of .parquet, .csv or .tsv tables.")],
    uid_column: Annotated[str, typer.Option(help="The table's column of uids.")] = "uid",
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="OURS=THEIRS", help="A column to take; repeatable; default all."),
    ] = None,
    missing: Annotated[str, typer.Option(help="Samples without a row: error or fill.")] = "error",
) -> None:
    """Join other tools' tables to a dataset by uid, as a layer."""
    from clipmill.recipes import run_data as run

    made = run.import_layer(
        dataset, layer, files, uid_column=uid_column, columns=column or [], missing=missing
    )
    typer.echo(made)


DatasetUri = Annotated[str, typer.Argument(help="URI of the dataset.")]
DAMAGED_CODE = 1


def stats(
    dataset: DatasetUri,
    shards: Annotated[int, typer.Option(help="Read so many, evenly apart; 0 is all.")] = 0,
    as_json: Json = False,
) -> None:
    """Count pairs, measure captions and pictures, draw scores; by kind and layer."""
    from clipmill.recipes import run_data as run

    found = run.stats(dataset, max_shards=shards)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
        return
    from rich.console import Console

    from clipmill.cli.data import stats_tables

    console = Console()
    console.print(stats_tables(found, console.width))


def view(
    dataset: DatasetUri,
    output: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("dataset.html"),
    uid: Annotated[list[str] | None, typer.Option(help="Show this sample; repeatable.")] = None,
    best: Annotated[str, typer.Option(metavar="LAYER:COLUMN", help="Show the highest.")] = "",
    worst: Annotated[str, typer.Option(metavar="LAYER:COLUMN", help="Show the lowest.")] = "",
    count: Annotated[int, typer.Option(help="Samples to show (of best and worst, each).")] = 24,
    seed: Annotated[int, typer.Option(help="Seed of the random choice.")] = 0,
) -> None:
    """Put samples on one HTML page: pictures, every caption, scores, verdicts.

    Random ones, unless --uid, --best or --worst says which.
    """
    require_output(output)
    from clipmill.recipes import run_data as run

    page = run.view(dataset, uids=uid or [], best=best, worst=worst, count=count, seed=seed)
    output.write_text(page, encoding="utf-8")
    typer.echo(str(output))


def verify(
    dataset: DatasetUri,
    sizes_only: Annotated[
        bool, typer.Option("--sizes-only", help="Compare lists and sizes; read no shard.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check every digest, count and uid of a dataset; exit code 1 if it's damaged."""
    from clipmill.recipes import run_data as run

    found = run.verify(dataset, contents=not sizes_only)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        for fault in found.faults:
            typer.echo(f"damaged: {fault}")
        for note in found.notes:
            typer.echo(f"note: {note}")
        verdict = f"{len(found.faults)} faults" if found.faults else "whole"
        read = f"{found.num_files:,} files, {found.num_bytes / 1e6:,.1f} MB read"
        typer.echo(f"{found.uri}: {verdict} ({read})")
    if not found.is_whole:
        raise typer.Exit(DAMAGED_CODE)


def export(
    dataset: DatasetUri,
    store: Store,
    captions: Annotated[str, typer.Option(help="real, synthetic or both.")] = "real",
    layer: Annotated[str, typer.Option(help="Layer of synthetic captions.")] = "",
    recipe: str = "export",
    sets: Set = None,
) -> None:
    """Bake captions into plain WebDataset tars for open_clip; prints their folder's URI."""
    from clipmill.recipes import run_data as run

    typer.echo(run.export(recipe, sets or [], dataset, store, captions=captions, layer=layer))


def check(
    task: Annotated[str, typer.Argument(help="classification, detection, segmentation or depth.")],
    data_uri: Annotated[str, typer.Argument(metavar="FOLDER", help="Folder, or URI of a .tar.")],
    encoder: Annotated[str, typer.Option(help="Also: does this encoder fit --recipe?")] = "",
    recipe: Annotated[str, typer.Option(help="Recipe of a fine-tuning.")] = "",
    model: Annotated[str, typer.Option(help="Also: has this task model the data's classes?")] = "",
    as_json: Json = False,
) -> None:
    """Look at every file of a task's data; exit code 2 if training couldn't use it."""
    from clipmill.recipes import run

    found = run.check_data(task, data_uri, encoder=encoder, name=recipe, model=model)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found) | {"is_fit": found.is_fit}, indent=2))
    else:
        for split, number in found.num_samples.items():
            typer.echo(f"{split}: {number:,} samples")
        for finding in found.findings:
            kind = "fault" if finding.is_fatal else "note"
            typer.echo(f"{kind}: {finding.reason}, {finding.count:,} times")
            for example in finding.examples:
                typer.echo(f"    {example}")
    if not found.is_fit:
        faults = [f"{f.reason} ({f.count:,})" for f in found.findings if f.is_fatal]
        raise SourceError(
            f"{data_uri} can't be used for {task}: {', '.join(faults)}",
            expected="data without faults; notes are only counted",
            action="mend what is listed above, and check again",
        )


_BARS = " ▁▂▃▄▅▆▇█"
# Columns of text, below which the median stands for all quantiles.
_WIDE = 120


def stats_tables(stats: DatasetStats, width: int) -> Group:
    """All tables, for a terminal of ``width`` columns; those without rows are left out."""
    quantiles = QUANTILES if width >= _WIDE else (0.5,)
    captions = {name.removeprefix("captions/"): found for name, found in stats.captions.items()}
    tables = (
        ("Words of a caption", "kind", {k: c.words for k, c in captions.items()}),
        ("Characters of a caption", "kind", {k: c.characters for k, c in captions.items()}),
        ("Pictures", "pixels or bytes", stats.pictures),
        (
            "Scores",
            "layer: column",
            {
                f"{layer}: {c}": d
                for layer, columns in stats.scores.items()
                for c, d in columns.items()
            },
        ),
    )
    return Group(
        _facts(stats),
        *(_distributions(*table, quantiles) for table in tables if table[-1]),
        *_verdicts(stats),
        *_layers(stats),
    )


def _facts(stats: DatasetStats) -> Table:
    table = Table.grid(padding=(0, 2))
    per_sample = [(k, c.per_sample) for k, c in stats.captions.items() if c.per_sample != 1]
    left_out = ", ".join(f"{n:,} {reason}" for reason, n in sorted(stats.quarantine.items()))
    rows = {
        "dataset": stats.uri,
        "digest": stats.digest,
        "samples": f"{stats.num_samples:,} in {stats.num_shards:,} shards, "
        f"{stats.num_bytes / 1e6:,.1f} MB",
        "left out": left_out or "none",
        "files": ", ".join(f"{n:,} {suffix}" for suffix, n in stats.suffixes.items()) or "none",
        "read": f"{stats.shards_read:,} of {stats.num_shards:,} shards",
        **{f"{kind}": f"{mean:.2f} captions a sample" for kind, mean in per_sample},
    }
    for name, value in rows.items():
        table.add_row(Text(name, style="dim"), Text(value))
    return table


def _table(title: str, *columns: str) -> Table:
    return Table(
        *columns,
        title=title,
        title_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )


def _distributions(
    title: str, first: str, rows: Mapping[str, Distribution], quantiles: tuple[float, ...]
) -> Table:
    """A row a distribution; where the terminal is narrow, names are broken and numbers aren't."""
    table = _table(title)
    table.add_column(first, overflow="fold")
    for name in ("number", "mean", "least", *(f"{q:.0%}" for q in quantiles), "most"):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("least to most", no_wrap=True)
    for name, d in rows.items():
        number = f"{d.count:,}" + (f" ({d.missing:,} missing)" if d.missing else "")
        at = dict(zip(QUANTILES, d.quantiles, strict=False))
        values = (d.mean, d.low, *(at[q] for q in quantiles), d.high) if d.count else ()
        histogram = [spark(d.bins)] if d.count else []
        table.add_row(name, number, *map(short, values), *histogram)
    return table


def short(value: float) -> str:
    """A number in few characters: whole from a hundred on, else three digits or so."""
    return f"{value:,.0f}" if abs(value) >= 100 or value == int(value) else f"{value:.3g}"


def spark(bins: tuple[int, ...]) -> str:
    """The histogram as blocks; a bin with anything in it shows at least the lowest."""
    most = max(bins)
    return "".join(_BARS[-(-count * (len(_BARS) - 1) // most)] for count in bins)


def _verdicts(stats: DatasetStats) -> list[Table]:
    if not stats.verdicts:
        return []
    table = _table("Verdicts", "layer", "kept", "refused", "by")
    for layer, verdict in stats.verdicts.items():
        by = ", ".join(f"{count:,} {reason}" for reason, count in verdict.reasons.items())
        table.add_row(layer, f"{verdict.kept:,}", f"{verdict.refused:,}", by)
    return [table]


def _layers(stats: DatasetStats) -> list[Table]:
    if not stats.layers:
        return []
    table = _table("Layers", "layer", "digest", "MB", "columns")
    for name, layer in stats.layers.items():
        size = f"{layer.num_bytes / 1e6:,.2f}"
        table.add_row(name, layer.digest[:12], size, ", ".join(layer.columns))
    return [table]


class Place(StrEnum):
    """Where a stage runs."""

    HERE = "here"
    ARGO = "argo"


On = Annotated[
    Place, typer.Option("--on", help="argo: fan out on Argo, print the workflow's name.")
]
Workflow = Annotated[
    list[str] | None,
    typer.Option(
        "--workflow",
        metavar="FIELD=VALUE",
        help="Change a field of the workflow, such as namespace, pool, parallelism; repeatable.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="With --on argo: print the workflow.")]


def fan_out(
    stage: str,
    subject: str,
    options: Mapping[str, str],
    sets: list[str] | None,
    *,
    workflow: list[str] | None,
    dry_run: bool,
) -> None:
    """Submit ``stage`` over all of ``subject``, with the command's own options, or print it."""
    require("cluster")
    from clipmill.cluster.api import ClusterApi
    from clipmill.cluster.data_runs import submit_data
    from clipmill.cluster.dataplane import DataWorkflowConfig, data_workflow, num_shards

    pairs = [*options.items(), *(("--set", change) for change in sets or [])]
    arguments = [text for name, value in pairs if value for text in (name, value)]
    fields = {"stage": stage, "subject": subject, "arguments": arguments}
    config = DataWorkflowConfig.from_json(fields).override(workflow or [])
    count = num_shards(config)
    if dry_run:
        typer.echo(json.dumps(data_workflow(config, count), indent=2))
        return
    typer.echo(submit_data(config, count, api=ClusterApi()))


def is_asked(on: Place, workflow: list[str] | None, dry_run: bool) -> bool:
    """Whether to fan out; refuses options of a workflow where there will be none."""
    if on is Place.HERE and (workflow or dry_run):
        raise typer.BadParameter("--workflow and --dry-run are for --on argo")
    return on is Place.ARGO


def refuse_parts(**given: object) -> None:
    """Refuse options that say which part to do: a workflow gives each of its pods one."""
    for name, value in given.items():
        if value:
            raise typer.BadParameter(
                f"--{name} is for --on here: a workflow's pods share all parts"
            )

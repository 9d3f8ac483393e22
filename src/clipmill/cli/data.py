"""``clipmill data``: from image-text pairs to a captioned dataset."""

import json
from pathlib import Path
from typing import Annotated

import typer

from clipmill.cli.extras import needs
from clipmill.cli.options import (
    DatasetUri,
    DryRun,
    Json,
    On,
    Recipe,
    Set,
    Store,
    Target,
    Workflow,
    reject_range_options,
    require_output,
    should_submit,
    submit_stage,
)
from clipmill.errors import SourceError

EXIT_DAMAGED = 1
_SOURCE_HELP = (
    "A folder of images with .txt files, a .csv, .tsv or .parquet table, a COCO captions .json, "
    "WebDataset .tar files, an img2dataset or Hugging Face folder; or KIND:PATH?OPTION=VALUE."
)

FirstShard = Annotated[int, typer.Option(help="First shard.")]
StopShard = Annotated[int | None, typer.Option(help="Shard to stop before.")]

data = typer.Typer(help="From image-text pairs to a captioned dataset.", no_args_is_help=True)


@data.command("scenes")
def data_scenes(store: Store, recipe: Recipe = "scenes-tiny", sets: Set = None) -> None:
    """Generate procedural scenes with captions and labels."""
    from clipmill import stages

    typer.echo(stages.scenes(recipe, sets or [], store))


@data.command("plan")
def data_plan(
    source: Annotated[str, typer.Argument(help=_SOURCE_HELP)],
    store: Store,
    recipe: Recipe = "shards",
    sets: Set = None,
) -> None:
    """Assign a source's items to shards; prints the URI that the dataset will have."""
    from clipmill import stages

    typer.echo(stages.plan(recipe, sets or [], source, store))


@data.command("shard")
def data_shard(
    source: Annotated[str, typer.Argument(help=_SOURCE_HELP)] = "",
    store: Store = "",
    recipe: Recipe = "shards",
    sets: Set = None,
    plan: Annotated[
        str, typer.Option(help="URI of a planned dataset to work on, instead of SOURCE.")
    ] = "",
    worker: Annotated[
        str, typer.Option(metavar="I/N", help="Part of a plan: worker I (from 0) of N.")
    ] = "",
    start: Annotated[int, typer.Option(help="First shard of a plan, instead of --worker.")] = 0,
    stop: StopShard = None,
    on: On = Target.LOCAL,
    workflow: Workflow = None,
    dry_run: DryRun = False,
) -> None:
    """Convert a source of image-text pairs into a dataset, or write a part of a planned one.

    Plain `shard SOURCE --store URI` does it all. With many workers: `plan` once, then
    `shard --plan URI --worker I/N` in each, then `finish`; `--on argo` has pods do that.
    """
    if should_submit(on, workflow, dry_run):
        reject_range_options(plan=plan, worker=worker, start=start, stop=stop)
        if not (source and store):
            raise typer.BadParameter("give SOURCE and --store")
        options = {"--store": store, "--recipe": recipe}
        submit_stage("shard", source, options, sets, workflow=workflow, dry_run=dry_run)
        return
    from clipmill import stages

    if plan:
        typer.echo(stages.shard_part(plan, worker=worker, start=start, stop=stop))
    elif source and store:
        typer.echo(stages.shard(recipe, sets or [], source, store))
    else:
        raise typer.BadParameter("give SOURCE and --store, or --plan")


@data.command("finish")
def data_finish(
    dataset: Annotated[str, typer.Argument(help="URI of a planned dataset, all shards written.")],
) -> None:
    """List a planned dataset's shards, find duplicates, and add the source's layers."""
    from clipmill import stages

    typer.echo(stages.finalize(dataset))


@data.command("train-captioner")
@needs("model")
def data_train_captioner(
    dataset: Annotated[str, typer.Argument(help="URI of a dataset with good captions.")],
    store: Store,
    recipe: Recipe = "coca-tiny",
    sets: Set = None,
) -> None:
    """Train a CoCa captioner."""
    from clipmill import stages

    typer.echo(stages.train_captioner(recipe, sets or [], dataset, store))


@data.command("teacher")
@needs("model")
def data_teacher(
    dataset: DatasetUri,
    captions: Annotated[str, typer.Option(help="Layer of synthetic captions to embed too.")] = "",
    recipe: Recipe = "teacher-datacompdr",
    sets: Set = None,
) -> None:
    """Embed images and captions with a teacher ensemble, as a layer; prints its name."""
    from clipmill import stages

    typer.echo(stages.teacher(recipe, sets or [], dataset, captions, store=""))


@data.command("recaption")
def data_recaption(
    dataset: DatasetUri,
    captioner: Annotated[
        str,
        typer.Option(
            help="URI of a trained captioner, or open_clip:NAME/TAG, hf:ORG/NAME, "
            "file:PATH[#open_clip/NAME], vlm:http://HOST/v1, rewrite:http://HOST/v1, "
            "template:LABELS."
        ),
    ],
    recipe: Recipe = "recaption-tiny",
    start: FirstShard = 0,
    stop: StopShard = None,
    sets: Set = None,
    on: On = Target.LOCAL,
    workflow: Workflow = None,
    dry_run: DryRun = False,
) -> None:
    """Write synthetic captions as a layer of a dataset; prints the layer's name."""
    if should_submit(on, workflow, dry_run):
        reject_range_options(start=start, stop=stop)
        options = {"--captioner": captioner, "--recipe": recipe}
        submit_stage("recaption", dataset, options, sets, workflow=workflow, dry_run=dry_run)
        return
    from clipmill import stages

    layer = stages.recaption(recipe, sets or [], dataset, captioner, "", start=start, stop=stop)
    typer.echo(layer)


@data.command("score")
def data_score(
    dataset: DatasetUri,
    model: Annotated[str, typer.Option(help="Address of the scoring CLIP (docs/weights.md).")] = "",
    start: FirstShard = 0,
    stop: StopShard = None,
    recipe: Recipe = "score-basic",
    sets: Set = None,
    on: On = Target.LOCAL,
    workflow: Workflow = None,
    dry_run: DryRun = False,
) -> None:
    """Score images and captions as layers; prints their names."""
    if should_submit(on, workflow, dry_run):
        reject_range_options(start=start, stop=stop)
        options = {"--model": model, "--recipe": recipe}
        submit_stage("score", dataset, options, sets, workflow=workflow, dry_run=dry_run)
        return
    from clipmill import stages

    layers = stages.score(recipe, sets or [], dataset, "", model=model, start=start, stop=stop)
    typer.echo("\n".join(layers))


@data.command("select")
def data_select(
    dataset: DatasetUri,
    layer: Annotated[
        list[str] | None,
        typer.Option(help="Layer to use where a filter's name fits several; repeatable."),
    ] = None,
    recipe: Recipe = "select-datacomp-basic",
    sets: Set = None,
) -> None:
    """Filter a dataset's samples by their scores, as a layer for views; prints its name."""
    from clipmill import stages

    typer.echo(stages.select(recipe, sets or [], dataset, store="", layers=layer or []))


@data.command("import-layer")
def data_import_layer(
    dataset: DatasetUri,
    layer: Annotated[str, typer.Argument(help="Name of the layer, such as score/aesthetic.")],
    files: Annotated[list[str], typer.Argument(help="URIs of .parquet, .csv or .tsv tables.")],
    uid_column: Annotated[str, typer.Option(help="Column of uids in the tables.")] = "uid",
    column: Annotated[
        list[str] | None,
        typer.Option(metavar="OURS=THEIRS", help="Column to import; repeatable; default all."),
    ] = None,
    missing: Annotated[str, typer.Option(help="Samples without a row: error or fill.")] = "error",
) -> None:
    """Join other tools' tables to a dataset by uid, as a layer."""
    from clipmill import stages

    uri = stages.import_layer(
        dataset, layer, files, uid_column=uid_column, columns=column or [], missing=missing
    )
    typer.echo(uri)


@data.command("stats")
def data_stats(
    dataset: DatasetUri,
    shards: Annotated[
        int, typer.Option(help="Maximum shards to read, evenly spaced (0 = all).")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Summarize pairs, captions, images and scores, by caption source and layer."""
    from clipmill import stages

    stats = stages.stats(dataset, max_shards=shards)
    if as_json:
        typer.echo(json.dumps(stats.to_json(), indent=2))
        return
    from rich.console import Console

    from clipmill.cli.stats_tables import stats_tables

    console = Console()
    console.print(stats_tables(stats, console.width))


@data.command("view")
def data_view(
    dataset: DatasetUri,
    output: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("dataset.html"),
    uid: Annotated[
        list[str] | None, typer.Option(help="Uid of a sample, or its beginning; repeatable.")
    ] = None,
    best: Annotated[
        str, typer.Option(metavar="LAYER:COLUMN", help="Score whose highest samples are shown.")
    ] = "",
    worst: Annotated[
        str, typer.Option(metavar="LAYER:COLUMN", help="Score whose lowest samples are shown.")
    ] = "",
    count: Annotated[int, typer.Option(help="Number of samples (of best and worst, each).")] = 24,
    seed: Annotated[int, typer.Option(help="Seed of the random choice.")] = 0,
) -> None:
    """Write an HTML page of samples: images, captions, scores, selections.

    Samples are random, unless --uid, --best or --worst is given.
    """
    require_output(output)
    from clipmill import stages

    page = stages.view(dataset, uids=uid or [], best=best, worst=worst, count=count, seed=seed)
    output.write_text(page, encoding="utf-8")
    typer.echo(str(output))


@data.command("verify")
def data_verify(
    dataset: DatasetUri,
    sizes_only: Annotated[
        bool, typer.Option("--sizes-only", help="Compare lists and sizes; read no shard.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check every digest, count and uid of a dataset; exit code 1 if it's damaged."""
    from clipmill import stages

    report = stages.verify(dataset, contents=not sizes_only)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
    else:
        for fault in report.faults:
            typer.echo(f"damaged: {fault}")
        for note in report.notes:
            typer.echo(f"note: {note}")
        verdict = f"{len(report.faults)} faults" if report.faults else "whole"
        read = f"{report.num_files:,} files, {report.num_bytes / 1e6:,.1f} MB read"
        typer.echo(f"{report.uri}: {verdict} ({read})")
    if not report.is_ok:
        raise typer.Exit(EXIT_DAMAGED)


@data.command("export")
def data_export(
    dataset: DatasetUri,
    store: Store,
    captions: Annotated[
        str, typer.Option(help="Caption source: real, synthetic or both.")
    ] = "real",
    layer: Annotated[str, typer.Option(help="Layer of synthetic captions.")] = "",
    recipe: Recipe = "export",
    sets: Set = None,
) -> None:
    """Export plain WebDataset tars with captions for open_clip; prints their folder's URI."""
    from clipmill import stages

    typer.echo(stages.export(recipe, sets or [], dataset, store, captions=captions, layer=layer))


@data.command("check")
def data_check(
    task: Annotated[str, typer.Argument(help="classification, detection, segmentation or depth.")],
    data_uri: Annotated[str, typer.Argument(metavar="FOLDER", help="Folder, or URI of a .tar.")],
    encoder: Annotated[
        str, typer.Option(help="Encoder whose fit to --recipe is checked too.")
    ] = "",
    recipe: Annotated[str, typer.Option(help="Name of a fine-tuning recipe.")] = "",
    model: Annotated[
        str, typer.Option(help="Task model whose classes must match the dataset's.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Check every file of a task's data; exit code 2 if it can't be used for training."""
    from clipmill import stages

    report = stages.check_data(task, data_uri, encoder=encoder, recipe=recipe, model=model)
    if as_json:
        typer.echo(json.dumps(report.to_json(), indent=2))
    else:
        for split, number in report.num_samples.items():
            typer.echo(f"{split}: {number:,} samples")
        for issue in report.issues:
            kind = "fault" if issue.is_error else "note"
            typer.echo(f"{kind}: {issue.reason}, {issue.count:,} times")
            for example in issue.examples:
                typer.echo(f"    {example}")
    if not report.is_usable:
        errors = [f"{i.reason} ({i.count:,})" for i in report.issues if i.is_error]
        raise SourceError(
            f"{data_uri} can't be used for {task}: {', '.join(errors)}",
            expected="data without faults; notes are only counted",
            action="fix the faults listed above, and check again",
        )

"""``clipmill data``: from image-text pairs to a captioned dataset."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from clipmill.cli.extras import needs
from clipmill.cli.options import (
    CaptionLayer,
    DatasetUri,
    DryRun,
    Executor,
    ExecutorOption,
    Json,
    Set,
    Store,
    Task,
    Workflow,
    one_of,
    priced,
    recipe_option,
    recipes_of,
    reject_range_options,
    require_output,
    should_submit,
    submit_stage,
    toy_recipe_option,
    tracked,
)
from clipmill.cli.output import print_hint, print_next, print_uri
from clipmill.errors import ConfigError, SourceError

EXIT_DAMAGED = 1
_SOURCE_HELP = (
    "Source of pairs: a folder of images with .txt files, a .csv, .tsv, .jsonl or .parquet table, "
    "a COCO captions .json, WebDataset .tar files, an img2dataset or Hugging Face folder, a table "
    "of image URLs as urls:PATH; or "
    "KIND:PATH?OPTION=VALUE."
)
# One placeholder of `next:`, as `data recaption --captioner` takes it.
_CAPTIONER = "CAPTIONER"

FirstShard = Annotated[int, typer.Option(min=0, help="Index of the first shard.")]
StopShard = Annotated[
    int | None, typer.Option(help="Index of the shard to stop before; the last if left out.")
]

data = typer.Typer(help="Build, caption, score, filter and inspect datasets.", no_args_is_help=True)


@data.command("generate-scenes")
def data_generate_scenes(
    store: Store,
    recipe: Annotated[str, toy_recipe_option("generate-scenes")] = "scenes-tiny",
    sets: Set = None,
    as_json: Json = False,
) -> None:
    """Generate procedural scenes with captions and labels; prints their folder's URI."""
    from clipmill import stages

    uri = stages.scenes(recipe, sets or [], store)
    print_uri(uri, as_json=as_json)
    print_next("data", "shard", f"{uri}/pairs.tar", "--store", store)


@data.command("pack")
def data_pack(
    source: Annotated[
        str,
        typer.Argument(
            metavar="FOLDER",
            help="Folder of labeled data or pairs, or another tool's .tar, .tar.gz or .zip of one.",
        ),
    ],
    uri: Annotated[
        str, typer.Argument(metavar="URI", help="URI of the tar, such as s3://bucket/ade20k.tar.")
    ],
    as_json: Json = False,
) -> None:
    """Pack a folder as a tar with its digest, for --data or SOURCE on a cluster; prints its URI.

    Without hidden files. The same command uploads nothing if the folder hasn't changed.
    """
    from clipmill import stages

    uri = stages.pack(source, uri)
    print_uri(uri, as_json=as_json)
    print_next("data", "validate", "TASK", uri)


@data.command("plan")
def data_plan(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=_SOURCE_HELP)],
    store: Store,
    recipe: Annotated[str, recipe_option("shard")] = "shards",
    sets: Set = None,
    as_json: Json = False,
) -> None:
    """Assign a source's items to shards; prints the URI that the dataset will have."""
    from clipmill import stages

    uri = stages.plan(recipe, sets or [], source, store)
    print_uri(uri, as_json=as_json)
    print_next("data", "shard", "--plan", uri, "--worker", "I/N")


@data.command("shard")
def data_shard(
    source: Annotated[str, typer.Argument(metavar="SOURCE", help=_SOURCE_HELP)] = "",
    store: Store = "",
    recipe: Annotated[str, recipe_option("shard")] = "shards",
    sets: Set = None,
    plan: Annotated[
        str,
        typer.Option(metavar="URI", help="URI of a planned dataset to work on, instead of SOURCE."),
    ] = "",
    worker: Annotated[
        str, typer.Option(metavar="I/N", help="Part of a plan: worker I (from 0) of N.")
    ] = "",
    start: Annotated[
        int, typer.Option(min=0, help="Index of a plan's first shard, instead of --worker.")
    ] = 0,
    stop: StopShard = None,
    executor: ExecutorOption = Executor.LOCAL,
    workflow: Workflow = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Convert a source of image-text pairs into a dataset, or write a part of a planned one.

    `shard SOURCE --store URI` writes all shards. With several workers: run `plan` once, then
    `shard --plan URI --worker I/N` in each, then `finalize`. `--executor argo` has pods do that.
    """
    if should_submit(executor, workflow, dry_run):
        reject_range_options(plan=plan, worker=worker, start=start, stop=stop)
        if not (source and store):
            raise typer.BadParameter("give SOURCE and --store")
        options = {"--store": store, "--recipe": recipe}
        submit_stage(
            "shard", source, options, sets, workflow=workflow, dry_run=dry_run, as_json=as_json
        )
        return
    from clipmill import stages

    if plan:
        uri = stages.shard_part(plan, worker=worker, start=start, stop=stop)
        print_uri(uri, as_json=as_json)
        print_next("data", "finalize", uri)
    elif source and store:
        uri = stages.shard(recipe, sets or [], source, store)
        print_uri(uri, as_json=as_json)
        print_next("data", "recaption", uri, "--captioner", _CAPTIONER)
    else:
        raise typer.BadParameter("give SOURCE and --store, or --plan")


@data.command("finalize")
def data_finalize(
    dataset: Annotated[
        str,
        typer.Argument(metavar="DATASET", help="URI of a planned dataset, all shards written."),
    ],
    as_json: Json = False,
) -> None:
    """List a planned dataset's shards, find duplicates, and add the source's layers."""
    from clipmill import stages

    uri = stages.finalize(dataset)
    print_uri(uri, as_json=as_json)
    print_next("data", "recaption", uri, "--captioner", _CAPTIONER)


@data.command("train-captioner")
@needs("model")
@tracked
@priced
def data_train_captioner(
    dataset: Annotated[
        str, typer.Argument(metavar="DATASET", help="URI of a dataset with good captions.")
    ],
    store: Store,
    recipe: Annotated[str, toy_recipe_option("train-captioner")] = "coca-tiny",
    sets: Set = None,
    as_json: Json = False,
) -> None:
    """Train a CoCa captioner; prints its URI."""
    from clipmill import stages

    uri = stages.train_captioner(recipe, sets or [], dataset, store)
    print_uri(uri, as_json=as_json)
    print_next("data", "recaption", "DATASET", "--captioner", uri)


@data.command("embed-teacher")
@needs("model")
def data_embed_teacher(
    dataset: DatasetUri,
    caption_layer: Annotated[
        str, typer.Option(metavar="LAYER", help="Layer of synthetic captions to embed too.")
    ] = "",
    recipe: Annotated[str, recipe_option("embed-teacher")] = "teacher-datacompdr",
    sets: Set = None,
    as_json: Json = False,
) -> None:
    """Embed images and captions with a teacher ensemble, as a layer; prints its name."""
    from clipmill import stages

    layer = stages.teacher(recipe, sets or [], dataset, caption_layer, store="")
    _print_layer(dataset, layer, as_json)
    teaching = ("--recipe", "RECIPE", "--set", f"distillation.layer={layer}", "--store", "STORE")
    print_next("pretrain", "clip", dataset, *teaching)


def _reject_retry(*, retry: bool) -> None:
    if retry:
        raise ConfigError(
            "--retry was given with --executor",
            expected="a local run: few samples are left to retry",
            action="leave out --executor",
        )


@data.command("recaption")
def data_recaption(
    dataset: DatasetUri,
    captioner: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="URI of a trained captioner, or open_clip:NAME/TAG, hf:ORG/NAME, "
            "file:PATH[#open_clip/NAME], vlm:http://HOST/v1, rewrite:http://HOST/v1, "
            "template:LABELS.",
        ),
    ],
    recipe: Annotated[
        str, recipe_option("recaption", "greedy captions of the toy captioner, on a CPU")
    ] = "recaption-tiny",
    start: FirstShard = 0,
    stop: StopShard = None,
    retry: Annotated[
        bool,
        typer.Option(
            "--retry",
            help="Caption samples again that failed as unavailable, malformed or failed; a "
            "committed layer is kept, and the result is another.",
        ),
    ] = False,
    sets: Set = None,
    executor: ExecutorOption = Executor.LOCAL,
    workflow: Workflow = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write synthetic captions as a layer of a dataset; prints the layer's name."""
    if should_submit(executor, workflow, dry_run):
        reject_range_options(start=start, stop=stop)
        _reject_retry(retry=retry)
        options = {"--captioner": captioner, "--recipe": recipe}
        submit_stage(
            "recaption", dataset, options, sets, workflow=workflow, dry_run=dry_run, as_json=as_json
        )
        return
    from clipmill import stages

    layer = stages.recaption(
        recipe, sets or [], dataset, captioner, "", start=start, stop=stop, retry=retry
    )
    _print_layer(dataset, layer, as_json)
    training = ("--captions", "both", "--caption-layer", layer, "--store", "STORE")
    print_next("pretrain", "clip", dataset, *training)


@data.command("score")
def data_score(
    dataset: DatasetUri,
    model: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Address of the scoring CLIP (docs/weights.md)."),
    ] = "",
    start: FirstShard = 0,
    stop: StopShard = None,
    recipe: Annotated[str, recipe_option("score")] = "score-basic",
    retry: Annotated[
        bool,
        typer.Option(
            "--retry",
            help="Judge samples again whose relevance has no score; a committed layer is kept, "
            "and the result is another.",
        ),
    ] = False,
    sets: Set = None,
    executor: ExecutorOption = Executor.LOCAL,
    workflow: Workflow = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Score images and captions as layers; prints their names."""
    if should_submit(executor, workflow, dry_run):
        reject_range_options(start=start, stop=stop)
        _reject_retry(retry=retry)
        options = {"--model": model, "--recipe": recipe}
        submit_stage(
            "score", dataset, options, sets, workflow=workflow, dry_run=dry_run, as_json=as_json
        )
        return
    from clipmill import stages

    layers = stages.score(
        recipe, sets or [], dataset, "", model=model, start=start, stop=stop, retry=retry
    )
    value = {"dataset": dataset, "layers": layers}
    typer.echo(json.dumps(value, indent=2) if as_json else "\n".join(layers))
    print_next("data", "select", dataset)


@data.command("select")
def data_select(
    dataset: DatasetUri,
    prefer_layer: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LAYER",
            help="Layer to use where a filter's name fits several layers; repeatable.",
        ),
    ] = None,
    recipe: Annotated[str, recipe_option("select")] = "select-datacomp-basic",
    sets: Set = None,
    as_json: Json = False,
) -> None:
    """Filter a dataset's samples by their scores, as a layer for views; prints its name."""
    from clipmill import stages

    layer = stages.select(recipe, sets or [], dataset, store="", layers=prefer_layer or [])
    _print_layer(dataset, layer, as_json)
    print_next("data", "selection-report", dataset, layer)
    print_next("pretrain", "clip", dataset, "--select", layer, "--store", "STORE")


@data.command("import-layer")
def data_import_layer(
    dataset: DatasetUri,
    layer: Annotated[
        str,
        typer.Argument(metavar="LAYER", help="Name of the layer, such as score/aesthetic."),
    ],
    files: Annotated[
        list[str],
        typer.Argument(
            metavar="FILE", help="URIs of .parquet, .csv, .tsv or .jsonl tables, plain or .gz."
        ),
    ],
    by: Annotated[
        str,
        typer.Option(
            metavar="uid|key|url",
            help="Identifier in the tables: clipmill's or the source's uid, or the source's key "
            "or url.",
            autocompletion=one_of("uid", "key", "url"),
        ),
    ] = "uid",
    uid_column: Annotated[
        str,
        typer.Option(
            metavar="COLUMN", help="Column of identifiers; the one named as --by if left out."
        ),
    ] = "",
    column: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME[=COLUMN]",
            help="Column to import, with the name in the layer first; repeatable. "
            "All columns if left out.",
        ),
    ] = None,
    missing: Annotated[
        str,
        typer.Option(
            metavar="error|fill",
            help="Samples without a row: error stops, fill writes empty values.",
            autocompletion=one_of("error", "fill"),
        ),
    ] = "error",
    as_json: Json = False,
) -> None:
    """Join other tools' tables to a dataset by uid, key or url, as a layer; prints its name."""
    from clipmill import stages

    counts = stages.import_layer(
        dataset, layer, files, by=by, uid_column=uid_column, columns=column or [], missing=missing
    )
    print_uri(layer, as_json=as_json, dataset=dataset, layer=layer, **asdict(counts))
    print_hint(str(counts))
    print_next("data", "stats", dataset)


@data.command("import-reinforcements")
def data_import_reinforcements(
    dataset: DatasetUri,
    source: Annotated[
        str,
        typer.Argument(
            metavar="TARS", help="Tars of DataCompDR: a file, a folder, or a pattern like {00..41}."
        ),
    ],
    by: Annotated[
        str,
        typer.Option(
            metavar="key|uid|url",
            help="Identifier in the tars: key of the members, uid in json, or url in url.txt.",
            autocompletion=one_of("key", "uid", "url"),
        ),
    ] = "key",
    name: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the layers; datacompdr if left out.")
    ] = "",
    as_json: Json = False,
) -> None:
    """Join DataCompDR's synthetic captions and embeddings to a dataset; prints the layers."""
    from clipmill import stages

    imported = stages.import_reinforcements(dataset, source, by=by, name=name)
    value = {"dataset": dataset, "layers": imported.layers, **asdict(imported.counts)}
    value["damaged"] = imported.damaged
    typer.echo(json.dumps(value, indent=2) if as_json else "\n".join(imported.layers))
    print_hint(f"{imported.counts}, {imported.damaged:,} damaged")
    training = ["--recipe", "clip-mci0-12m", "--store", "STORE"]
    for layer in imported.layers:
        kind = layer.partition("/")[0]
        training += {
            "captions": ["--captions", "both", "--caption-layer", layer],
            "select": ["--select", layer],
            "teacher": ["--set", f"distillation.layer={layer}"],
        }[kind]
    print_next("pretrain", "clip", dataset, *training)


@data.command("stats")
def data_stats(
    dataset: DatasetUri,
    shards: Annotated[
        int, typer.Option(min=0, help="Maximum number of shards to read, evenly spaced (0 = all).")
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


@data.command("preview")
def data_preview(
    dataset: DatasetUri,
    output: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("dataset.html"),
    uid: Annotated[
        list[str] | None,
        typer.Option(metavar="UID", help="Uid of a sample, or its beginning; repeatable."),
    ] = None,
    top: Annotated[
        str, typer.Option(metavar="LAYER:COLUMN", help="Score whose highest samples are shown.")
    ] = "",
    bottom: Annotated[
        str, typer.Option(metavar="LAYER:COLUMN", help="Score whose lowest samples are shown.")
    ] = "",
    count: Annotated[
        int, typer.Option(min=1, help="Number of samples (of --top and of --bottom, each).")
    ] = 24,
    seed: Annotated[int, typer.Option(help="Seed of the random choice.")] = 0,
    as_json: Json = False,
) -> None:
    """Write an HTML page of samples: images, captions, scores, selections.

    Samples are random, unless --uid, --top or --bottom is given.
    """
    require_output(output)
    from clipmill import stages

    page = stages.view(dataset, uids=uid or [], top=top, bottom=bottom, count=count, seed=seed)
    output.write_text(page, encoding="utf-8")
    typer.echo(json.dumps({"page": str(output)}) if as_json else str(output))


@data.command("selection-report")
def data_selection_report(
    dataset: DatasetUri,
    layer: Annotated[
        str,
        typer.Argument(
            metavar="LAYER", help="Select layer, in full or by its beginning: select/semdedup."
        ),
    ],
    output: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("curation.html"),
    count: Annotated[
        int, typer.Option(min=1, help="Samples of those kept, and of those that each filter drops.")
    ] = 12,
    seed: Annotated[int, typer.Option(help="Seed of the random choice.")] = 0,
    as_json: Json = False,
) -> None:
    """Write an HTML page about a selection: counts per filter, scores and samples kept and dropped.

    Images that semantic-duplicate drops are shown beside the most similar kept ones.
    """
    require_output(output)
    from clipmill import stages

    page = stages.curation_report(dataset, layer, count=count, seed=seed)
    output.write_text(page, encoding="utf-8")
    typer.echo(json.dumps({"page": str(output)}) if as_json else str(output))
    print_next("pretrain", "clip", dataset, "--select", layer, "--store", "STORE")


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
        verdict = "whole" if report.is_ok else f"faults: {len(report.faults)}"
        read = f"{report.num_files:,} files, {report.num_bytes / 1e6:,.1f} MB read"
        typer.echo(f"{report.uri}: {verdict} ({read})")
    if not report.is_ok:
        raise typer.Exit(EXIT_DAMAGED)


@data.command("export")
def data_export(
    dataset: DatasetUri,
    store: Store,
    captions: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="Caption source: real, synthetic or both.",
            autocompletion=one_of("real", "synthetic", "both"),
        ),
    ] = "real",
    caption_layer: CaptionLayer = "",
    recipe: Annotated[str, recipe_option("export")] = "export",
    sets: Set = None,
    as_json: Json = False,
) -> None:
    """Export plain WebDataset tars with captions for open_clip; prints their folder's URI."""
    from clipmill import stages

    uri = stages.export(recipe, sets or [], dataset, store, captions=captions, layer=caption_layer)
    print_uri(uri, as_json=as_json)
    print_next("show", uri)


@data.command("validate")
def data_validate(
    task: Task,
    data_uri: Annotated[
        str, typer.Argument(metavar="FOLDER", help="Folder of labeled data, or URI of its .tar.")
    ],
    encoder: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Encoder whose fit to --recipe is checked too."),
    ] = "",
    recipe: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="Name of a fine-tuning recipe.",
            autocompletion=recipes_of("finetune"),
        ),
    ] = "",
    sets: Set = None,
    model: Annotated[
        str,
        typer.Option(metavar="URI", help="Task model whose classes must match the dataset's."),
    ] = "",
    as_json: Json = False,
) -> None:
    """Check every file of a task's data; exit code 2 if it can't be used for training."""
    from clipmill import stages

    report = stages.check_data(
        task, data_uri, encoder=encoder, recipe=recipe, overrides=sets or [], model=model
    )
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
            action="fix the faults listed above, and validate again",
        )
    print_next(
        "finetune", "--encoder", encoder or "ENCODER", "--data", data_uri, "--store", "STORE"
    )


def _print_layer(dataset: str, layer: str, as_json: bool) -> None:
    """Print a layer's name, which options of later commands take."""
    typer.echo(json.dumps({"dataset": dataset, "layer": layer}, indent=2) if as_json else layer)

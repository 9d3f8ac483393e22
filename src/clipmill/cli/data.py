"""``clipmill data``: from image-text pairs to a captioned dataset."""

from typing import Annotated

import typer

from clipmill.cli import argo, check, look
from clipmill.cli.argo import DryRun, On, Place, Workflow
from clipmill.cli.extras import needs
from clipmill.cli.options import OptionalStore, Set, Store

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

"""``clipmill data``: from image-text pairs to a captioned dataset."""

from typing import Annotated

import typer

from clipmill.cli.options import Set, Store

data = typer.Typer(help="From image-text pairs to a captioned dataset.", no_args_is_help=True)


@data.command("scenes")
def data_scenes(store: Store, recipe: str = "scenes-miniature", sets: Set = None) -> None:
    """Draw procedural scenes with captions and labels."""
    from clipmill.recipes import run

    typer.echo(run.scenes(recipe, sets or [], store))


@data.command("shard")
def data_shard(
    source: Annotated[str, typer.Argument(help="A folder, or the URI of one packed as .tar.")],
    store: Store,
    recipe: str = "shards",
    sets: Set = None,
) -> None:
    """Cut a folder of pictures with captions into a dataset."""
    from clipmill.recipes import run

    typer.echo(run.shard(recipe, sets or [], source, store))


@data.command("train-captioner")
def data_train_captioner(
    dataset: Annotated[str, typer.Argument(help="URI of a dataset with good captions.")],
    store: Store,
    recipe: str = "coca-miniature",
    sets: Set = None,
) -> None:
    """Train a CoCa captioner."""
    from clipmill.recipes import run

    typer.echo(run.train_captioner(recipe, sets or [], dataset, store))


@data.command("teacher")
def data_teacher(
    dataset: Annotated[str, typer.Argument(help="URI of the dataset.")],
    captions: Annotated[str, typer.Option(help="Layer of synthetic captions to embed too.")] = "",
    recipe: str = "teacher-datacompdr",
    sets: Set = None,
) -> None:
    """Embed pictures and captions with a teacher ensemble, as a layer; prints its name."""
    from clipmill.recipes import run

    typer.echo(run.teacher(recipe, sets or [], dataset, captions, store=""))


@data.command("recaption")
def data_recaption(
    dataset: Annotated[str, typer.Argument(help="URI of the dataset.")],
    captioner: Annotated[str, typer.Option(help="URI of a CoCa checkpoint.")],
    recipe: str = "recaption-miniature",
    sets: Set = None,
) -> None:
    """Write synthetic captions as a layer beside a dataset's shards; prints the layer's name."""
    from clipmill.recipes import run

    typer.echo(run.recaption(recipe, sets or [], dataset, captioner, store=""))

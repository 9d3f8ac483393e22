"""``clipmill zero-shot`` and ``clipmill retrieval``: a CLIP judged without training."""

import json
from typing import Annotated

import typer

from clipmill.cli.options import Json, Set, Store

_MODEL_HELP = "URI of a CLIP checkpoint, or open_clip:NAME (--set clip.weights=... for weights)."


def zero_shot(
    model: Annotated[str, typer.Argument(help=_MODEL_HELP)],
    data_uri: Annotated[
        str, typer.Option("--data", help="Folder [SPLIT/]CLASS/*, or WebDataset tars with cls.")
    ],
    store: Store,
    classes: Annotated[
        str, typer.Option(help="Text file of class names, or imagenet; else the data's own.")
    ] = "",
    recipe: str = "zero-shot",
    sets: Set = None,
    as_json: Json = False,
) -> None:
    """Classify pictures by the names of their classes alone."""
    from clipmill.recipes import run

    _show(run.zero_shot(recipe, sets or [], model, data_uri, store, classes=classes), as_json)


def retrieval(
    model: Annotated[str, typer.Argument(help=_MODEL_HELP)],
    data_uri: Annotated[
        str, typer.Option("--data", help="Dataset, COCO captions .json, or any other source.")
    ],
    store: Store,
    recipe: str = "retrieval",
    sets: Set = None,
    as_json: Json = False,
) -> None:
    """Find captions by pictures and pictures by captions."""
    from clipmill.recipes import run

    _show(run.retrieval(recipe, sets or [], model, data_uri, store), as_json)


def _show(uri: str, as_json: bool) -> None:
    from clipmill.tasks.evaluation import read_evaluation

    found = read_evaluation(uri)
    if as_json:
        typer.echo(json.dumps({"uri": found.uri, "task": found.task, "metrics": found.metrics}))
        return
    typer.echo(found.uri)
    for name, value in found.metrics.items():
        typer.echo(f"  {name:<24}{value:10.2f}")

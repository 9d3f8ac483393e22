"""``clipmill zero-shot``, ``retrieval`` and ``attention``: an encoder judged without training."""

import json
from pathlib import Path
from typing import Annotated

import typer

from clipmill.cli.extras import needs
from clipmill.cli.options import Json, Set, Store, require_output

_MODEL_HELP = "Address of a CLIP: a URI, open_clip:NAME/TAG, hf:ORG/NAME or file:PATH."


@needs("model")
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
    from clipmill.recipes import run_judge as run

    _show(run.zero_shot(recipe, sets or [], model, data_uri, store, classes=classes), as_json)


@needs("model")
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
    from clipmill.recipes import run_judge as run

    _show(run.retrieval(recipe, sets or [], model, data_uri, store), as_json)


@needs("model")
def attention(
    encoders: Annotated[list[str], typer.Argument(help="Addresses of ViTs (docs/weights.md).")],
    data_uri: Annotated[str, typer.Option("--data", help="Dataset, or any source of pictures.")],
    num_images: Annotated[int, typer.Option(help="Pictures to look at, from the first.")] = 256,
    page: Annotated[Path | None, typer.Option(help="Write a page with the heads there.")] = None,
    as_json: Json = False,
) -> None:
    """Measure how far the heads of ViTs look, and how differently (CLIP-QC, Figure 3)."""
    require_output(page)
    from clipmill.recipes import run_judge as run
    from clipmill.report.attention import attention_json, attention_page

    found = run.attention(encoders, data_uri, num_images=num_images)
    if page is not None:
        page.write_text(attention_page(found), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps({name: attention_json(one) for name, one in found.items()}))
        return
    for name, one in found.items():
        typer.echo(name)
        for layer, distances in enumerate(one.distance_LH.tolist(), start=1):
            typer.echo(
                f"  layer {layer:>3}  {sum(distances) / len(distances):8.2f} px  "
                f"spread {one.head_distance_std_L[layer - 1]:7.2f} px  "
                f"divergence {one.divergence_L[layer - 1]:7.4f} nats"
            )
    if page is not None:
        typer.echo(str(page))


def _show(uri: str, as_json: bool) -> None:
    from clipmill.tasks.evaluation import read_evaluation

    found = read_evaluation(uri)
    if as_json:
        typer.echo(json.dumps({"uri": found.uri, "task": found.task, "metrics": found.metrics}))
        return
    typer.echo(found.uri)
    for name, value in found.metrics.items():
        typer.echo(f"  {name:<24}{value:10.2f}")

"""Commands about runs and models: what there is, and how it leaves."""

import json
from pathlib import Path
from typing import Annotated

import typer

from clipmill.cli.extras import needs
from clipmill.cli.options import Json, Store, require_output


def runs(
    store: Annotated[str, typer.Argument(help="Folder or s3:// URI of a store.")],
    page: Annotated[Path | None, typer.Option(help="Write a page with curves there.")] = None,
    as_json: Json = False,
) -> None:
    """List a store's training runs, finished or not, and compare them."""
    require_output(page)
    from clipmill.report.runs import differing, list_runs, runs_page, shown

    found = list_runs(store)
    if not found:
        typer.echo(f"{store} holds no training runs yet", err=True)
    if page is not None:
        page.write_text(runs_page(store, found))
    if as_json:
        typer.echo(json.dumps([run.to_json() for run in found], indent=2))
        return
    width = max((len(run.name) for run in found), default=0)
    for run in found:
        speed = shown(run.last.get("samples_per_second"), 0)
        typer.echo(
            f"{run.name:<{width}}  {run.status:<8}  {run.step:>9,} of {run.steps:>9,}  "
            f"loss {shown(run.last.get('loss'), 3):>8}  {speed:>8} samples/s  {run.words}".rstrip()
        )
    for path, values in differing(found).items():
        typer.echo(f"{path}: {', '.join(str(value) for value in values)}")
    if page is not None:
        typer.echo(str(page))


@needs("model")
def export(
    model: Annotated[str, typer.Argument(help="URI of an encoder or a task model.")],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    to: Annotated[
        str,
        typer.Option(
            help="open_clip, timm, transformers or coreml for an encoder; onnx for a task model."
        ),
    ] = "open_clip",
) -> None:
    """Write a model for another library, with a model card; prints the name that loads it."""
    from clipmill.tasks.export import export as write

    made = write(model, output, to)
    typer.echo(made.name)
    for note in made.notes:
        typer.echo(note, err=True)


@needs("model")
def import_weights(
    address: Annotated[
        str, typer.Argument(help="open_clip:NAME/TAG, timm:NAME[.TAG], hf:ORG/NAME or file:PATH.")
    ],
    store: Store,
) -> None:
    """Make an encoder of public weights, with their preprocessing; prints its URI."""
    from clipmill.recipes import run

    typer.echo(run.import_weights(address, store))

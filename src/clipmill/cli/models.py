"""Commands about runs, models and recipes: what exists, its origin, import and export."""

import json
from pathlib import Path
from typing import Annotated

import typer

from clipmill.cli.extras import needs
from clipmill.cli.options import Json, Store, require_output


def runs(
    store: Annotated[str, typer.Argument(help="Directory or s3:// URI of a store.")],
    page: Annotated[Path | None, typer.Option(help="HTML page with curves to write.")] = None,
    as_json: Json = False,
) -> None:
    """List a store's training runs, finished or not, and compare them."""
    require_output(page)
    from clipmill.report.runs import format_cell, list_runs, runs_page, varying_settings

    training_runs = list_runs(store)
    if not training_runs:
        typer.echo(f"{store} holds no training runs yet", err=True)
    if page is not None:
        page.write_text(runs_page(store, training_runs))
    if as_json:
        typer.echo(json.dumps([run.to_json() for run in training_runs], indent=2))
        return
    width = max((len(run.name) for run in training_runs), default=0)
    for run in training_runs:
        speed = format_cell(run.last.get("samples_per_second"), 0)
        loss = format_cell(run.last.get("loss"), 3)
        typer.echo(
            f"{run.name:<{width}}  {run.status:<8}  {run.step:>9,} of {run.steps:>9,}  "
            f"loss {loss:>8}  {speed:>8} samples/s  {run.reason}".rstrip()
        )
    for path, values in varying_settings(training_runs).items():
        typer.echo(f"{path}: {', '.join(str(value) for value in values)}")
    if page is not None:
        typer.echo(str(page))


def lineage(
    uri: Annotated[str, typer.Argument(help="URI of any artifact.")], as_json: Json = False
) -> None:
    """Print an artifact's ancestors, back to source files and captioner."""
    import dataclasses

    from clipmill import lineage

    node = lineage.lineage(uri)
    typer.echo(json.dumps(dataclasses.asdict(node), indent=2) if as_json else lineage.render(node))


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
    """Export a model to another library, with a model card; prints the name that loads it."""
    from clipmill.tasks import export

    result = export.export(model, output, to)
    typer.echo(result.name)
    for note in result.notes:
        typer.echo(note, err=True)


@needs("model")
def import_weights(
    address: Annotated[
        str, typer.Argument(help="open_clip:NAME/TAG, timm:NAME[.TAG], hf:ORG/NAME or file:PATH.")
    ],
    store: Store,
) -> None:
    """Import public weights as an encoder, with their preprocessing; prints its URI."""
    from clipmill import stages

    typer.echo(stages.import_weights(address, store))


def recipes(
    name: Annotated[
        str | None, typer.Argument(help="Recipe to print as JSON; lists all if left out.")
    ] = None,
) -> None:
    """List the recipes, or show one as JSON."""
    from clipmill.config import Config
    from clipmill.recipes.registry import RECIPES, get_recipe

    if name:
        typer.echo(json.dumps(get_recipe(name, Config).to_json(), indent=2))
        return
    for recipe, make_config in RECIPES.items():
        first_line = (make_config.__doc__ or "").strip().splitlines()[0]
        typer.echo(f"{recipe:<30}{first_line}")

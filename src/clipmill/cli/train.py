"""``clipmill sweep``: a grid of fine-tunings, the hopeless points stopped early."""

from typing import Annotated

import typer

from clipmill.cli.extras import needs
from clipmill.cli.options import Set, Store


@needs("train")
def sweep(
    encoder: Annotated[str, typer.Option(help="Address of an encoder (docs/weights.md).")],
    data_uri: Annotated[str, typer.Option("--data", help="Folder, or URI of one as .tar.")],
    store: Store,
    recipe: str = "sweep-depth-miniature",
    workers: Annotated[int, typer.Option(help="Points that are tried side by side.")] = 1,
    gate: Annotated[
        float | None, typer.Option(help="Promote the best if its figure reaches this.")
    ] = None,
    sets: Set = None,
) -> None:
    """Try a recipe's drop paths and rates; prints the result's URI and its best model.

    A sweep that was stopped goes on where it was when the same command runs again.
    """
    from clipmill.recipes import run
    from clipmill.tasks.evaluation import read_evaluation
    from clipmill.tasks.registry import get_task
    from clipmill.tasks.sweep import read_sweep

    uri = run.sweep(recipe, sets or [], encoder, data_uri, store, workers=workers, gate=gate)
    found = read_sweep(uri)
    metric = get_task(found.task).metric
    typer.echo(uri)
    for trial in found.trials:
        values = "  ".join(f"{path}={value:g}" for path, value in trial.point.items())
        figure = "diverged" if trial.figure is None else f"{trial.figure:.4f} {metric.unit}"
        typer.echo(f"  {found.config.rungs[trial.rung]:>6.0%}  {values}  {figure}")
    typer.echo(read_evaluation(found.best.evaluation).model.uri)

"""Commands that train: ``clipmill pretrain``, ``pretrain-mae``, ``finetune``, ``sweep``, ..."""

from typing import Annotated

import typer

from clipmill.cli.extras import needs
from clipmill.cli.options import DatasetUri, Encoder, LabeledData, Recipe, Set, Store


@needs("model")
def pretrain(
    dataset: DatasetUri,
    store: Store,
    captions: Annotated[
        str, typer.Option(help="Caption source: real, synthetic, both or selected.")
    ] = "real",
    layer: Annotated[str, typer.Option(help="Layer of synthetic captions.")] = "",
    select: Annotated[
        list[str] | None, typer.Option(help="Selection layer to follow; repeatable.")
    ] = None,
    recipe: Recipe = "clip-tiny",
    sets: Set = None,
) -> None:
    """Pretrain a CLIP encoder; prints its URI."""
    from clipmill import stages

    uri = stages.pretrain(
        recipe, sets or [], dataset, store, captions=captions, layer=layer, select=select or []
    )
    typer.echo(uri)


@needs("model")
def pretrain_mae(
    dataset: DatasetUri, store: Store, recipe: Recipe = "mae-tiny", sets: Set = None
) -> None:
    """Pretrain a masked autoencoder on a dataset's images; prints its URI."""
    from clipmill import stages

    typer.echo(stages.pretrain_mae(recipe, sets or [], dataset, store))


@needs("model")
def pretrain_supervised(
    data_uri: LabeledData, store: Store, recipe: Recipe = "supervised-tiny", sets: Set = None
) -> None:
    """Pretrain an image tower on labeled images, train/CLASS/*; prints its URI."""
    from clipmill import stages

    typer.echo(stages.pretrain_supervised(recipe, sets or [], data_uri, store))


@needs("train")
def finetune(
    encoder: Encoder,
    data_uri: LabeledData,
    store: Store,
    recipe: Recipe = "upernet-tiny",
    sets: Set = None,
) -> None:
    """Fine-tune an encoder for the recipe's task; prints the model's URI."""
    from clipmill import stages

    typer.echo(stages.finetune(recipe, sets or [], encoder, data_uri, store))


@needs("train")
def sweep(
    encoder: Encoder,
    data_uri: LabeledData,
    store: Store,
    recipe: Recipe = "sweep-depth-tiny",
    workers: Annotated[int, typer.Option(help="Points to run in parallel.")] = 1,
    gate: Annotated[
        float | None,
        typer.Option(help="Minimum metric to promote the best model; not promoted if left out."),
    ] = None,
    sets: Set = None,
) -> None:
    """Run a recipe's grid of drop paths and rates; prints the sweep's URI and the best model's.

    The same command resumes an interrupted sweep.
    """
    from clipmill import stages
    from clipmill.tasks.evaluation import read_evaluation
    from clipmill.tasks.registry import get_task
    from clipmill.tasks.sweep import read_sweep

    uri = stages.sweep(
        recipe, sets or [], encoder, data_uri, store, workers=workers, min_metric=gate
    )
    result = read_sweep(uri)
    metric = get_task(result.task).metric
    typer.echo(uri)
    for trial in result.trials:
        values = "  ".join(f"{path}={value:g}" for path, value in trial.point.items())
        reached = "diverged" if trial.value is None else f"{trial.value:.4f} {metric.unit}"
        typer.echo(f"  {result.config.rungs[trial.rung]:>6.0%}  {values}  {reached}")
    typer.echo(read_evaluation(result.best.evaluation).model.uri)

"""Commands that train: ``clipmill pretrain``, ``finetune`` and ``sweep``."""

from typing import Annotated

import typer

from clipmill.cli.evaluate import EXIT_NOT_PROMOTED, passes_gate
from clipmill.cli.extras import needs
from clipmill.cli.options import (
    MIN_METRIC_HELP,
    CaptionLayer,
    DatasetUri,
    Encoder,
    Json,
    LabeledData,
    Set,
    Store,
    Workers,
    one_of,
    priced,
    toy_recipe_option,
    tracked,
)
from clipmill.cli.output import format_table, print_next, print_uri

pretrain = typer.Typer(help="Pretrain an encoder by one of three methods.", no_args_is_help=True)


@pretrain.command("clip")
@needs("model")
@tracked
@priced
def pretrain_clip(
    store: Store,
    dataset: Annotated[
        str, typer.Argument(metavar="[DATASET]", help="URI of the dataset, without --mixture.")
    ] = "",
    mixture: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[NAME=]URI=WEIGHT",
            help="Dataset with its share of the samples, relative to the others' weights, "
            "or a JSON file with a list of them; repeatable.",
        ),
    ] = None,
    captions: Annotated[
        str,
        typer.Option(
            metavar="SOURCE",
            help="Caption source: real, synthetic, both or selected.",
            autocompletion=one_of("real", "synthetic", "both", "selected"),
        ),
    ] = "real",
    caption_layer: CaptionLayer = "",
    select: Annotated[
        list[str] | None,
        typer.Option(metavar="LAYER", help="Selection layer that filters samples; repeatable."),
    ] = None,
    recipe: Annotated[str, toy_recipe_option("pretrain-clip")] = "clip-tiny",
    sets: Set = None,
    as_json: Json = False,
) -> None:
    """Pretrain a CLIP on image-caption pairs of a dataset, or of several; prints its URI."""
    from clipmill import stages

    uri = stages.pretrain(
        recipe,
        sets or [],
        dataset,
        store,
        captions=captions,
        layer=caption_layer,
        select=select or [],
        mixture=mixture or [],
    )
    _print_encoder(uri, store, as_json)


@pretrain.command("mae")
@needs("model")
@tracked
@priced
def pretrain_mae(
    dataset: DatasetUri,
    store: Store,
    recipe: Annotated[str, toy_recipe_option("pretrain-mae")] = "mae-tiny",
    sets: Set = None,
    as_json: Json = False,
) -> None:
    """Pretrain a masked autoencoder on a dataset's images; prints the encoder's URI."""
    from clipmill import stages

    _print_encoder(stages.pretrain_mae(recipe, sets or [], dataset, store), store, as_json)


@pretrain.command("supervised")
@needs("model")
@tracked
@priced
def pretrain_supervised(
    data_uri: LabeledData,
    store: Store,
    recipe: Annotated[str, toy_recipe_option("pretrain-supervised")] = "supervised-tiny",
    sets: Set = None,
    as_json: Json = False,
) -> None:
    """Pretrain an image tower on labeled images, train/CLASS/*; prints the encoder's URI."""
    from clipmill import stages

    _print_encoder(stages.pretrain_supervised(recipe, sets or [], data_uri, store), store, as_json)


@needs("train")
@tracked
@priced
def finetune(
    encoder: Encoder,
    data_uri: LabeledData,
    store: Store,
    recipe: Annotated[str, toy_recipe_option("finetune")] = "upernet-tiny",
    sets: Set = None,
    as_json: Json = False,
) -> None:
    """Fine-tune an encoder for the recipe's task; prints the task model's URI."""
    from clipmill import stages

    uri = stages.finetune(recipe, sets or [], encoder, data_uri, store)
    print_uri(uri, as_json=as_json)
    print_next("eval", "task", uri, "--data", data_uri, "--store", store)


@needs("train")
@tracked
@priced
def sweep(
    encoder: Encoder,
    data_uri: LabeledData,
    store: Store,
    recipe: Annotated[str, toy_recipe_option("sweep")] = "sweep-depth-tiny",
    workers: Workers = 1,
    min_metric: Annotated[
        float | None, typer.Option(help=f"{MIN_METRIC_HELP} No promotion without it.")
    ] = None,
    sets: Set = None,
    as_json: Json = False,
) -> None:
    """Fine-tune at each point of a recipe's sweep; prints the sweep's URI and the best model's.

    The same command resumes an interrupted sweep. Exit code 3 if --min-metric is given and an
    earlier model stays promoted.
    """
    from clipmill import stages
    from clipmill.storage import join
    from clipmill.tasks.evaluation import read_evaluation
    from clipmill.tasks.promotion import read_promotion
    from clipmill.tasks.registry import get_task
    from clipmill.tasks.sweep import read_sweep

    uri = stages.sweep(
        recipe, sets or [], encoder, data_uri, store, workers=workers, min_metric=min_metric
    )
    result = read_sweep(uri)
    metric = get_task(result.task).metric
    model = read_evaluation(result.best.evaluation).model.uri
    if as_json:
        trials = [
            {
                "steps_fraction": result.config.rungs[trial.rung],
                "point": trial.point,
                "evaluation": trial.evaluation,
                metric.name: trial.value,
            }
            for trial in result.trials
        ]
        repeats = [
            {"point": trial.point, "evaluation": trial.evaluation, metric.name: trial.value}
            for trial in result.repeats
        ]
        print_uri(
            uri,
            as_json=True,
            task=result.task,
            trials=trials,
            repeats=repeats,
            model=model,
            evaluation=result.best.evaluation,
        )
    else:
        paths = list(dict.fromkeys(path for trial in result.trials for path in trial.point))
        header = ["steps", *paths, f"{metric.name} ({metric.unit})"]
        rows = [
            [
                f"{result.config.rungs[trial.rung]:.0%}",
                *(f"{trial.point[path]:g}" if path in trial.point else "" for path in paths),
                "diverged" if trial.value is None else f"{trial.value:.4f}",
            ]
            for trial in result.trials
        ]
        typer.echo(uri)
        typer.echo(format_table(header, rows, right="r" * len(header)))
        typer.echo(model)
    if min_metric is None:
        best = result.best.evaluation
        print_next("promote", result.task, best, "--min-metric", "VALUE", "--store", store)
    else:
        promoted = read_promotion(join(store, "serving", result.task)).evaluation
        if not passes_gate(promoted, min_metric, [result.best.evaluation]):
            raise typer.Exit(EXIT_NOT_PROMOTED)
        print_next("serve", f"{result.task}={model}")


def _print_encoder(uri: str, store: str, as_json: bool) -> None:
    print_uri(uri, as_json=as_json)
    print_next("finetune", "--encoder", uri, "--data", "FOLDER", "--store", store)

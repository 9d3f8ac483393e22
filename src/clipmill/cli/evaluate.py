"""Commands that evaluate: ``clipmill evaluate``, ``zero-shot``, ``retrieval``, ``promote``, ..."""

import json
from pathlib import Path
from typing import Annotated

import typer

from clipmill.cli.extras import needs
from clipmill.cli.options import Json, LabeledData, Recipe, Set, Store, require_output

ClipModel = Annotated[
    str,
    typer.Argument(help="Address of a CLIP: a URI, open_clip:NAME/TAG, hf:ORG/NAME or file:PATH."),
]


@needs("train")
def evaluate(
    model: Annotated[str, typer.Argument(help="URI of a task model.")],
    data_uri: LabeledData,
    store: Store,
    as_json: Json = False,
) -> None:
    """Evaluate a task model on its data's test split."""
    from clipmill import stages

    _print_metrics(stages.evaluate(model, data_uri, store), as_json, name_width=10, decimals=4)


@needs("model")
def zero_shot(
    model: ClipModel,
    data_uri: Annotated[
        str,
        typer.Option("--data", help="Folder [SPLIT/]CLASS/*, or WebDataset tars with cls."),
    ],
    store: Store,
    classes: Annotated[
        str, typer.Option(help="Text file of class names, or imagenet; else the data's own.")
    ] = "",
    recipe: Recipe = "zero-shot",
    sets: Set = None,
    as_json: Json = False,
) -> None:
    """Classify images by the names of their classes alone."""
    from clipmill import stages

    uri = stages.zero_shot(recipe, sets or [], model, data_uri, store, classes=classes)
    _print_metrics(uri, as_json, name_width=24, decimals=2)


@needs("model")
def retrieval(
    model: ClipModel,
    data_uri: Annotated[
        str, typer.Option("--data", help="Dataset, COCO captions .json, or any other source.")
    ],
    store: Store,
    recipe: Recipe = "retrieval",
    sets: Set = None,
    as_json: Json = False,
) -> None:
    """Retrieve captions by images and images by captions."""
    from clipmill import stages

    uri = stages.retrieval(recipe, sets or [], model, data_uri, store)
    _print_metrics(uri, as_json, name_width=24, decimals=2)


@needs("model")
def attention(
    encoders: Annotated[list[str], typer.Argument(help="Addresses of ViTs (docs/weights.md).")],
    data_uri: Annotated[
        str, typer.Option("--data", help="Dataset, or any other source of images.")
    ],
    num_images: Annotated[int, typer.Option(help="Number of images, from the first.")] = 256,
    page: Annotated[Path | None, typer.Option(help="HTML page with charts to write.")] = None,
    as_json: Json = False,
) -> None:
    """Measure the attention distance of ViTs' heads, and their diversity (CLIP-QC, Figure 3)."""
    require_output(page)
    from clipmill import stages
    from clipmill.report.attention import attention_json, attention_page

    statistics = stages.attention(encoders, data_uri, num_images=num_images)
    if page is not None:
        page.write_text(attention_page(statistics), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps({name: attention_json(one) for name, one in statistics.items()}))
        return
    for name, one in statistics.items():
        typer.echo(name)
        for layer, distances in enumerate(one.distance_LH.tolist(), start=1):
            typer.echo(
                f"  layer {layer:>3}  {sum(distances) / len(distances):8.2f} px  "
                f"spread {one.head_distance_std_L[layer - 1]:7.2f} px  "
                f"divergence {one.divergence_L[layer - 1]:7.4f} nats"
            )
    if page is not None:
        typer.echo(str(page))


def promote(
    task: Annotated[str, typer.Argument(help="Name of the task.")],
    evaluations: Annotated[list[str], typer.Argument(help="URIs of evaluations of the task.")],
    threshold: Annotated[
        float, typer.Option(help="Value of the task's metric required for promotion, in its unit.")
    ],
    store: Store,
) -> None:
    """Promote the best model if it reaches --threshold; prints the promoted model's URI."""
    from clipmill import stages
    from clipmill.tasks.promotion import read_promotion

    uri = stages.promote(task, threshold, evaluations, store)
    typer.echo(read_promotion(uri).evaluation.model.uri)


def page(
    dataset: Annotated[str, typer.Option(help="URI of the dataset.")],
    layer: Annotated[str, typer.Option(help="Layer of synthetic captions.")],
    captioner: Annotated[str, typer.Option(help="Address of the captioner.")],
    encoder: Annotated[list[str], typer.Option(help="URI of an encoder; repeatable.")],
    evaluation: Annotated[list[str], typer.Option(help="URI of an evaluation; repeatable.")],
    store: Store,
    output: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
) -> None:
    """Write an HTML report that compares encoders of real and of synthetic captions."""
    require_output(output)
    from clipmill import stages
    from clipmill.storage import join, read_bytes

    uri = stages.report(dataset, layer, captioner, encoder, evaluation, store)
    output.write_bytes(read_bytes(join(uri, "report.html")))
    typer.echo(str(output))


def _print_metrics(uri: str, as_json: bool, *, name_width: int, decimals: int) -> None:
    from clipmill.tasks.evaluation import read_evaluation

    result = read_evaluation(uri)
    if as_json:
        typer.echo(json.dumps({"uri": result.uri, "task": result.task, "metrics": result.metrics}))
        return
    typer.echo(result.uri)
    for name, value in result.metrics.items():
        typer.echo(f"  {name:<{name_width}}{value:10.{decimals}f}")

"""Commands that evaluate: ``clipmill eval``, ``report`` and ``promote``."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from clipmill.cli.extras import needs
from clipmill.cli.options import (
    MIN_METRIC_HELP,
    CaptionLayer,
    Json,
    LabeledData,
    Set,
    Store,
    Task,
    recipe_option,
    registered,
    require_output,
    tracked,
)
from clipmill.cli.output import format_table, print_hint, print_next, print_uri

if TYPE_CHECKING:
    from clipmill.tasks.evaluation import EvaluationResult

EXIT_NOT_PROMOTED: Final = 3
"""Exit code where an earlier model stays promoted."""

ClipModel = Annotated[
    str,
    typer.Argument(
        metavar="CLIP",
        help="Address of a CLIP: a URI, open_clip:NAME/TAG, hf:ORG/NAME or file:PATH.",
    ),
]

evaluate = typer.Typer(help="Evaluate task models, CLIPs and encoders.", no_args_is_help=True)


@evaluate.command("task")
@needs("train")
@tracked
def evaluate_task(
    model: Annotated[str, typer.Argument(metavar="MODEL", help="URI of a task model.")],
    data_uri: LabeledData,
    store: Store,
    split: Annotated[
        str,
        typer.Option(
            metavar="NAME", help="Split, such as test. val, or depth's test, if left out."
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """Evaluate a task model on its data's test split; prints the evaluation's URI and metrics."""
    from clipmill import stages

    uri = stages.evaluate(model, data_uri, store, split=split)
    task = _print_metrics(uri, as_json, decimals=4)
    print_next("promote", task, uri, "--min-metric", "VALUE", "--store", store)


@evaluate.command("zero-shot")
@needs("model")
@tracked
def zero_shot(
    model: ClipModel,
    data_uri: Annotated[
        str,
        typer.Option(
            "--data", metavar="FOLDER", help="Folder [SPLIT/]CLASS/*, or WebDataset tars with cls."
        ),
    ],
    store: Store,
    classes: Annotated[
        str,
        typer.Option(
            metavar="FILE",
            help="Text file of class names, or imagenet (by wnid). The data's own names if left "
            "out.",
        ),
    ] = "",
    recipe: Annotated[str, recipe_option("zero-shot")] = "zero-shot",
    sets: Set = None,
    as_json: Json = False,
) -> None:
    """Classify images by the names of the classes; prints the evaluation's URI and metrics."""
    from clipmill import stages

    uri = stages.zero_shot(recipe, sets or [], model, data_uri, store, classes=classes)
    _print_metrics(uri, as_json, decimals=2)
    print_next("ls", store, "--kind", "evaluation")


@evaluate.command("retrieval")
@needs("model")
@tracked
def retrieval(
    model: ClipModel,
    data_uri: Annotated[
        str,
        typer.Option(
            "--data", metavar="URI", help="Dataset, COCO captions .json, or any other source."
        ),
    ],
    store: Store,
    recipe: Annotated[str, recipe_option("retrieval")] = "retrieval",
    sets: Set = None,
    as_json: Json = False,
) -> None:
    """Retrieve captions by images, and images by captions; prints the evaluation's metrics."""
    from clipmill import stages

    uri = stages.retrieval(recipe, sets or [], model, data_uri, store)
    _print_metrics(uri, as_json, decimals=2)
    print_next("ls", store, "--kind", "evaluation")


@evaluate.command("attention")
@needs("model")
@tracked
def attention(
    encoders: Annotated[
        list[str], typer.Argument(metavar="ENCODER", help="Addresses of ViTs (docs/weights.md).")
    ],
    data_uri: Annotated[
        str,
        typer.Option("--data", metavar="URI", help="Dataset, or any other source of images."),
    ],
    num_images: Annotated[int, typer.Option(min=1, help="Number of images, from the first.")] = 256,
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
    header = ["layer", "distance (px)", "spread of heads (px)", "divergence (nats)"]
    for name, one in statistics.items():
        rows = [
            [
                str(layer),
                f"{sum(distances) / len(distances):.2f}",
                f"{one.head_distance_std_L[layer - 1]:.2f}",
                f"{one.divergence_L[layer - 1]:.4f}",
            ]
            for layer, distances in enumerate(one.distance_LH.tolist(), start=1)
        ]
        typer.echo(name)
        typer.echo(format_table(header, rows, right="rrrr"))
    if page is not None:
        typer.echo(str(page))


@registered
@tracked
def promote(
    task: Task,
    evaluations: Annotated[
        list[str], typer.Argument(metavar="EVALUATION", help="URIs of evaluations of the task.")
    ],
    min_metric: Annotated[float, typer.Option(help=MIN_METRIC_HELP)],
    store: Store,
    as_json: Json = False,
) -> None:
    """Promote the best model if it reaches --min-metric; prints the promoted model's URI.

    Exit code 3 if the promoted model is an earlier one, which no EVALUATION reaches or beats; 2 if
    there is none.
    """
    from clipmill import stages
    from clipmill.tasks.promotion import read_promotion

    uri = stages.promote(task, min_metric, evaluations, store)
    evaluation = read_promotion(uri).evaluation
    model = evaluation.model.uri
    is_promoted = passes_gate(evaluation, min_metric, evaluations)
    fields = {"task": task, "promotion": uri, "evaluation": evaluation.uri}
    print_uri(model, as_json=as_json, **fields, metrics=evaluation.metrics, is_promoted=is_promoted)
    if not is_promoted:
        raise typer.Exit(EXIT_NOT_PROMOTED)
    print_next("serve", f"{task}={model}")


def passes_gate(
    promoted: "EvaluationResult", min_metric: float, evaluations: Sequence[str]
) -> bool:
    """Return whether the promoted model is that of an evaluation, and reaches ``min_metric``."""
    from clipmill.tasks.evaluation import read_evaluation
    from clipmill.tasks.registry import get_task

    metric = get_task(promoted.task).metric
    is_given = promoted.digest in {read_evaluation(uri).digest for uri in evaluations}
    return is_given and metric.improvement(promoted.metrics[metric.name], min_metric) >= 0


def report(
    dataset: Annotated[str, typer.Option(metavar="URI", help="URI of the dataset.")],
    caption_layer: CaptionLayer,
    captioner: Annotated[str, typer.Option(metavar="ADDRESS", help="Address of the captioner.")],
    encoder: Annotated[
        list[str], typer.Option(metavar="URI", help="URI of an encoder; repeatable.")
    ],
    evaluation: Annotated[
        list[str], typer.Option(metavar="URI", help="URI of an evaluation; repeatable.")
    ],
    store: Store,
    comparison: Annotated[
        str,
        typer.Option(
            metavar="URI",
            help="URI of a comparison of the encoders, whose verdict the report states.",
        ),
    ] = "",
    output: Annotated[Path, typer.Option(help="HTML file to write.")] = Path("report.html"),
    as_json: Json = False,
) -> None:
    """Write an HTML report that compares encoders of real and of synthetic captions."""
    require_output(output)
    from clipmill import stages
    from clipmill.storage import join, read_bytes

    uri = stages.report(
        dataset, caption_layer, captioner, encoder, evaluation, store, comparison=comparison
    )
    output.write_bytes(read_bytes(join(uri, "report.html")))
    if as_json:
        print_uri(uri, as_json=True, page=str(output))
    else:
        typer.echo(str(output))
    print_next("show", uri)


def _print_metrics(uri: str, as_json: bool, *, decimals: int) -> str:
    """Print an evaluation, without the figures of each class; return its task."""
    from clipmill.tasks.evaluation import read_evaluation

    result = read_evaluation(uri)
    if as_json:
        print_uri(result.uri, as_json=True, task=result.task, metrics=result.metrics)
    else:
        shown = {
            name: value
            for name, value in result.metrics.items()
            if "." not in name or name.startswith("skipped.")
        }
        rows = [[f"  {name}", f"{value:.{decimals}f}"] for name, value in shown.items()]
        typer.echo(result.uri)
        typer.echo(format_table(rows[0], rows[1:], right=" r"))
        if len(shown) < len(result.metrics):
            print_hint(f"figures of each class: clipmill show {result.uri} --json")
    return result.task

"""Options that several commands share."""

import functools
import inspect
import os
import tempfile
from collections.abc import Callable, Iterable, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Final, TypeVar

import typer

from clipmill.cli.extras import require
from clipmill.cli.output import print_hint, print_next
from clipmill.cost import PRICE_VARIABLE, DevicePrice
from clipmill.errors import StorageError
from clipmill.registry import REGISTRY_VARIABLE, check_registry
from clipmill.tracking import TRACKING_VARIABLE, check_tracking

TASKS: Final = ("classification", "detection", "segmentation", "depth")
_TOY: Final = "a toy that takes minutes on a CPU"
R = TypeVar("R")
Tracking = Annotated[
    str,
    typer.Option(
        "--tracking",
        metavar="TRACKER",
        help="Experiment tracker: mlflow:URI, tensorboard:FOLDER or wandb:PROJECT "
        f"(default: ${TRACKING_VARIABLE}).",
    ),
]

Registry = Annotated[
    str,
    typer.Option(
        "--registry",
        metavar="REGISTRY",
        help="Registry of promoted models, kubeflow:URL, instead of that of an MLflow tracker "
        f"(default: ${REGISTRY_VARIABLE}).",
    ),
]


DevicePriceOption = Annotated[
    str,
    typer.Option(
        "--device-price",
        metavar="PRICE",
        help=f"Price of a device hour, such as '2.50 USD' (default: ${PRICE_VARIABLE}).",
    ),
]


def tracked(command: Callable[..., R]) -> Callable[..., R]:
    """Add ``--tracking`` to a command whose stages a tracker records."""
    return _with_variable(command, "tracking", Tracking, TRACKING_VARIABLE, check_tracking)


def registered(command: Callable[..., R]) -> Callable[..., R]:
    """Add ``--registry`` to a command that registers models, or finds registered ones."""
    return _with_variable(command, "registry", Registry, REGISTRY_VARIABLE, check_registry)


def priced(command: Callable[..., R]) -> Callable[..., R]:
    """Add ``--device-price`` to a command that trains."""
    check = DevicePrice.from_environment
    return _with_variable(command, "device_price", DevicePriceOption, PRICE_VARIABLE, check)


def _with_variable(
    command: Callable[..., R], name: str, kind: Any, variable: str, check: Callable[[], object]
) -> Callable[..., R]:
    """Add an option that sets an environment variable, which ``check`` refuses if it is wrong."""

    @functools.wraps(command)
    def with_option(*args: Any, **kwargs: Any) -> R:
        value = kwargs.pop(name, "")
        if value:
            os.environ[variable] = value  # for processes that it starts, too
        check()
        return command(*args, **kwargs)

    signature = inspect.signature(command)
    option = inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default="", annotation=kind)
    parameters = [*signature.parameters.values(), option]
    with_option.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    with_option.__annotations__ = {**command.__annotations__, name: kind}
    return with_option


def one_of(*values: str) -> Callable[[], Iterable[str]]:
    """Return a shell completion that offers fixed values."""

    def complete() -> Iterable[str]:
        return values

    return complete


def recipes_of(stage: str) -> Callable[[], list[tuple[str, str]]]:
    """Return a shell completion that offers the recipes of a stage (all for an empty name)."""

    def complete() -> list[tuple[str, str]]:
        from clipmill.recipes.registry import describe_recipes

        return [(recipe.name, recipe.description) for recipe in describe_recipes(stage)]

    return complete


def complete_stages() -> list[str]:
    """Return the names of the stages that take recipes."""
    from clipmill.recipes.registry import STAGES

    return ["pretrain", *STAGES]


def recipe_option(stage: str, default_note: str = "") -> Any:
    """Return the option ``--recipe`` of a stage.

    A command with ``default_note`` prints its default recipe, and the note, unless the user names
    a recipe.
    """

    def announce(context: typer.Context, parameter: typer.CallbackParam, value: str) -> str:
        source = context.get_parameter_source(parameter.name or "")
        is_default = source is not None and source.name == "DEFAULT"
        if default_note and is_default and not context.resilient_parsing:
            listing = f"clipmill recipes list --stage {stage}"
            print_hint(f'recipe: {value} (default: {default_note}; see "{listing}")')
        return value

    return typer.Option(
        "--recipe",
        metavar="NAME",
        help=f"Name of a recipe (`clipmill recipes list --stage {stage}`).",
        callback=announce,
        autocompletion=recipes_of(stage),
    )


def toy_recipe_option(stage: str) -> Any:
    """Return the option ``--recipe`` of a stage whose default recipe is for trials only."""
    return recipe_option(stage, _TOY)


DatasetUri = Annotated[str, typer.Argument(metavar="DATASET", help="URI of the dataset.")]
Encoder = Annotated[
    str, typer.Option(metavar="ADDRESS", help="Address of an encoder (docs/weights.md).")
]
LabeledData = Annotated[
    str,
    typer.Option("--data", metavar="FOLDER", help="Folder of labeled data, or URI of its .tar."),
]
Store = Annotated[
    str, typer.Option("--store", metavar="URI", help="Output directory or s3:// URI.")
]
StoreArgument = Annotated[
    str, typer.Argument(metavar="STORE", help="Directory or s3:// URI of a store.")
]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override of a config field; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Machine-readable output: print JSON.")]
CaptionLayer = Annotated[
    str, typer.Option("--caption-layer", metavar="LAYER", help="Layer of synthetic captions.")
]
Workers = Annotated[int, typer.Option(min=1, help="Number of training runs in parallel.")]
Task = Annotated[
    str,
    typer.Argument(
        metavar="TASK", help=f"Task: {', '.join(TASKS)}.", autocompletion=one_of(*TASKS)
    ),
]
MIN_METRIC_HELP: Final = (
    "Minimum of the task's metric for promotion (maximum for an error), in its unit."
)


class Executor(StrEnum):
    """Place where a data stage runs."""

    LOCAL = "local"
    ARGO = "argo"


ExecutorOption = Annotated[
    Executor,
    typer.Option(
        "--executor",
        help="Place to run: this process, or an Argo workflow over all shards. "
        "With argo the command prints the workflow's name.",
    ),
]
Workflow = Annotated[
    list[str] | None,
    typer.Option(
        "--workflow",
        metavar="FIELD=VALUE",
        help="Override of a workflow field, such as namespace, pool or parallelism, "
        "for --executor argo; repeatable.",
    ),
]
DryRun = Annotated[
    bool,
    typer.Option(
        "--dry-run",
        help="With --executor argo: print the workflow's manifest, with the pools that "
        "CLIPMILL_POOLS names or the chart's defaults.",
    ),
]


def require_output(path: Path | None) -> None:
    """Check before any work that a file can be written at ``path``.

    Raises:
        StorageError: it can't.
    """
    if path is None:
        return
    reason = ""
    if path.is_dir():
        reason = "it is a folder"
    else:
        try:
            if path.exists():
                path.open("ab").close()
            else:
                tempfile.TemporaryFile(dir=path.parent).close()
        except OSError as error:
            reason = error.strerror or type(error).__name__
    if reason:
        raise StorageError(
            f"can't write {path}: {reason}",
            expected="a file in a folder that exists and may be written to",
            action="make the folder first, or give another path",
        )


def should_submit(executor: Executor, workflow: list[str] | None, dry_run: bool) -> bool:
    """Return whether a stage runs on Argo; reject workflow options where it doesn't."""
    if executor is Executor.LOCAL and (workflow or dry_run):
        raise typer.BadParameter("--workflow and --dry-run need --executor argo")
    return executor is Executor.ARGO


def reject_range_options(**options: object) -> None:
    """Reject options that select a part of the work, which a workflow divides itself."""
    for name, value in options.items():
        if value:
            raise typer.BadParameter(
                f"--{name} can't be used with --executor argo: Argo splits the work itself"
            )


def submit_stage(
    stage: str,
    subject: str,
    options: Mapping[str, str],
    sets: list[str] | None,
    *,
    workflow: list[str] | None,
    dry_run: bool,
    as_json: bool,
) -> None:
    """Submit ``stage`` over all of ``subject`` to Argo, or print the workflow."""
    require("cluster")
    import json

    from clipmill.cluster.api import ClusterApi
    from clipmill.cluster.argo import (
        DataWorkflowConfig,
        data_workflow,
        num_shards,
        submit_data_workflow,
    )
    from clipmill.cluster.pools import default_installation

    pairs = [*options.items(), *(("--set", override) for override in sets or [])]
    arguments = [text for name, value in pairs if value for text in (name, value)]
    fields = {"stage": stage, "subject": subject, "arguments": arguments}
    config = DataWorkflowConfig.from_json(fields).override(workflow or [])
    count = num_shards(config)
    if dry_run:
        typer.echo(json.dumps(data_workflow(config, count, default_installation()), indent=2))
        return
    name = submit_data_workflow(config, count, api=ClusterApi())
    typer.echo(json.dumps({"workflow": name, "namespace": config.namespace}) if as_json else name)
    print_next("cluster", "workflow", "status", name, "--namespace", config.namespace)

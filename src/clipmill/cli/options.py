"""Options that several commands share."""

import tempfile
from collections.abc import Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from clipmill.cli.extras import require
from clipmill.errors import StorageError

DatasetUri = Annotated[str, typer.Argument(help="URI of the dataset.")]
Encoder = Annotated[str, typer.Option(help="Address of an encoder (docs/weights.md).")]
LabeledData = Annotated[
    str, typer.Option("--data", help="Folder of labeled data, or URI of one as .tar.")
]
Recipe = Annotated[str, typer.Option(help="Name of a recipe; `clipmill recipes` lists them.")]
Store = Annotated[str, typer.Option("--store", help="Output directory or s3:// URI.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="PATH=VALUE", help="Override of a config field; repeatable."),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


class Target(StrEnum):
    """Place where a data stage runs."""

    LOCAL = "here"
    ARGO = "argo"


On = Annotated[
    Target,
    typer.Option("--on", help="argo: submit an Argo workflow over all shards, print its name."),
]
Workflow = Annotated[
    list[str] | None,
    typer.Option(
        "--workflow",
        metavar="FIELD=VALUE",
        help="Override of a workflow field, such as namespace, pool, parallelism; repeatable.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="With --on argo: print the workflow.")]


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


def should_submit(on: Target, workflow: list[str] | None, dry_run: bool) -> bool:
    """Return whether a stage runs on Argo; reject workflow options where it doesn't."""
    if on is Target.LOCAL and (workflow or dry_run):
        raise typer.BadParameter("--workflow and --dry-run need --on argo")
    return on is Target.ARGO


def reject_range_options(**options: object) -> None:
    """Reject options that select a part of the work, which a workflow divides itself."""
    for name, value in options.items():
        if value:
            raise typer.BadParameter(f"--{name} can't be used with --on argo: it splits the work")


def submit_stage(
    stage: str,
    subject: str,
    options: Mapping[str, str],
    sets: list[str] | None,
    *,
    workflow: list[str] | None,
    dry_run: bool,
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

    pairs = [*options.items(), *(("--set", override) for override in sets or [])]
    arguments = [text for name, value in pairs if value for text in (name, value)]
    fields = {"stage": stage, "subject": subject, "arguments": arguments}
    config = DataWorkflowConfig.from_json(fields).override(workflow or [])
    count = num_shards(config)
    if dry_run:
        typer.echo(json.dumps(data_workflow(config, count), indent=2))
        return
    typer.echo(submit_data_workflow(config, count, api=ClusterApi()))

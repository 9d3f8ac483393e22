"""``--on argo``: a stage of ``clipmill data``, fanned out over a cluster."""

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated

import typer

from clipmill.cli.extras import require


class Place(StrEnum):
    """Where a stage runs."""

    HERE = "here"
    ARGO = "argo"


On = Annotated[
    Place, typer.Option("--on", help="argo: fan out on Argo, print the workflow's name.")
]
Workflow = Annotated[
    list[str] | None,
    typer.Option(
        "--workflow",
        metavar="FIELD=VALUE",
        help="Change a field of the workflow, such as namespace, pool, parallelism; repeatable.",
    ),
]
DryRun = Annotated[bool, typer.Option("--dry-run", help="With --on argo: print the workflow.")]


def fan_out(
    stage: str,
    subject: str,
    options: Mapping[str, str],
    sets: list[str] | None,
    *,
    workflow: list[str] | None,
    dry_run: bool,
) -> None:
    """Submit ``stage`` over all of ``subject``, with the command's own options, or print it."""
    require("cluster")
    from clipmill.cluster.api import ClusterApi
    from clipmill.cluster.data_runs import submit_data
    from clipmill.cluster.dataplane import DataWorkflowConfig, data_workflow, num_shards

    pairs = [*options.items(), *(("--set", change) for change in sets or [])]
    arguments = [text for name, value in pairs if value for text in (name, value)]
    fields = {"stage": stage, "subject": subject, "arguments": arguments}
    config = DataWorkflowConfig.from_json(fields).override(workflow or [])
    count = num_shards(config)
    if dry_run:
        typer.echo(json.dumps(data_workflow(config, count), indent=2))
        return
    typer.echo(submit_data(config, count, api=ClusterApi()))


def is_asked(on: Place, workflow: list[str] | None, dry_run: bool) -> bool:
    """Whether to fan out; refuses options of a workflow where there will be none."""
    if on is Place.HERE and (workflow or dry_run):
        raise typer.BadParameter("--workflow and --dry-run are for --on argo")
    return on is Place.ARGO


def refuse_parts(**given: object) -> None:
    """Refuse options that say which part to do: a workflow gives each of its pods one."""
    for name, value in given.items():
        if value:
            raise typer.BadParameter(
                f"--{name} is for --on here: a workflow's pods share all parts"
            )

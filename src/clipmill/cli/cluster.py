"""``clipmill cluster``: training jobs, data workflows and endpoints on Kubernetes."""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipmill.cli import entry
from clipmill.cli.entry import current_arguments
from clipmill.cli.extras import needs
from clipmill.cli.options import Json, Set, one_of, registered, tracked
from clipmill.cli.output import format_table, print_next
from clipmill.errors import EXIT_USER_ERROR

if TYPE_CHECKING:
    from clipmill.cluster.doctor.checks import Part
    from clipmill.cluster.rollout import Rollout

cluster = typer.Typer(
    help="Training jobs, data workflows and endpoints on Kubernetes.", no_args_is_help=True
)
workflow = typer.Typer(help="Follow, suspend and resume data workflows.", no_args_is_help=True)
cluster.add_typer(workflow, name="workflow")

Namespace = Annotated[
    str, typer.Option("-n", "--namespace", metavar="NAME", help="Kubernetes namespace.")
]
Handle = Annotated[
    str, typer.Argument(metavar="HANDLE", help="Handle that `cluster submit` printed.")
]
WorkflowName = Annotated[str, typer.Argument(metavar="WORKFLOW", help="Name of the workflow.")]
_PASSTHROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}


@cluster.command("submit", context_settings=_PASSTHROUGH)
@needs("cluster")
def cluster_submit(
    context: typer.Context,
    name: Annotated[str, typer.Option(metavar="NAME", help="Name of the job.")],
    scheduler: Annotated[
        str,
        typer.Option(
            metavar="SCHEDULER",
            help="Scheduler: local_cwd (this machine), kubernetes (Volcano) or kubeflow_trainer.",
            autocompletion=one_of("local_cwd", "kubernetes", "kubeflow_trainer"),
        ),
    ] = "kubeflow_trainer",
    pool: Annotated[str, typer.Option(metavar="NAME", help="Node pool.")] = "gpu",
    nodes: Annotated[
        str, typer.Option(metavar="N", help="Number of nodes, or MIN:MAX for elastic training.")
    ] = "1",
    queue: Annotated[str, typer.Option(metavar="NAME", help="Kueue or Volcano queue.")] = "",
    namespace: Namespace = "default",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the manifest without submitting it.")
    ] = False,
    wait: Annotated[
        bool,
        typer.Option(
            "--wait",
            help="Wait for the job's end; cancel it if it can't run for start_timeout_seconds.",
        ),
    ] = False,
    sets: Set = None,
    as_json: Json = False,
) -> None:
    """Run a clipmill command on GPU nodes; prints the job's handle.

    The command follows --: cluster submit --name a --pool gpu -- pretrain clip DATASET ...
    """
    from clipmill.cluster import submit
    from clipmill.cluster.training_job import TrainingJobConfig, parse_nodes

    app = context.find_object(typer.Typer)
    assert app is not None, "the root command sets it"
    command = current_arguments(context.args)
    checked = entry.check_command(app, command)

    least, most = parse_nodes(nodes)
    job = TrainingJobConfig(
        name=name,
        command=tuple(command),
        pool=pool,
        min_nodes=least,
        max_nodes=most,
        queue=queue,
    ).override(sets or [])
    with submit.torchx_runner() as torchx:
        if dry_run:
            text = submit.dry_run(
                job, scheduler, namespace=namespace, config=checked.config, torchx=torchx
            )
            typer.echo(text)
            return
        if checked.dataset and scheduler != "local_cwd":
            submit.check_dataset(checked.dataset)
        handle = submit.submit(
            job, scheduler, namespace=namespace, config=checked.config, torchx=torchx
        )
        typer.echo(json.dumps({"handle": handle}) if as_json else handle)
        if wait:
            submit.wait(handle, start_timeout_seconds=job.start_timeout_seconds, torchx=torchx)
            return
    print_next("cluster", "logs", handle, "--follow")


@cluster.command("list")
@needs("cluster")
def cluster_list(
    namespace: Namespace = "default",
    scheduler: Annotated[
        str,
        typer.Option(
            metavar="SCHEDULER",
            help="Scheduler: local_cwd (this machine), kubernetes (Volcano) or kubeflow_trainer.",
            autocompletion=one_of("local_cwd", "kubernetes", "kubeflow_trainer"),
        ),
    ] = "kubeflow_trainer",
    as_json: Json = False,
) -> None:
    """List the training jobs of a namespace, with their states."""
    from clipmill.cluster import submit

    with submit.torchx_runner() as torchx:
        jobs = submit.list_jobs(scheduler, namespace=namespace, torchx=torchx)
    if as_json:
        typer.echo(json.dumps([{"handle": handle, "state": state} for handle, state in jobs]))
    else:
        typer.echo(format_table(["handle", "state"], [[handle, state] for handle, state in jobs]))


@cluster.command("status")
@needs("cluster")
def cluster_status(handle: Handle, as_json: Json = False) -> None:
    """Print a job's state, and why it doesn't run."""
    from clipmill.cluster import submit

    with submit.torchx_runner() as torchx:
        status = submit.status(handle, torchx=torchx)
    value = {"handle": handle, "state": status.state.name, "message": status.msg}
    typer.echo(json.dumps(value) if as_json else f"{status.state.name} {status.msg}".strip())


@cluster.command("logs")
@needs("cluster")
def cluster_logs(
    handle: Handle,
    node: Annotated[int, typer.Option(min=0, help="Index of the node.")] = 0,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Stream logs until the job finishes.")
    ] = False,
) -> None:
    """Print the log of one of a job's nodes.

    With --follow it waits for the node to start, and continues with the pod that replaces it.
    """
    from clipmill.cluster import submit

    with submit.torchx_runner() as torchx:
        for line in submit.logs(handle, node, follow=follow, torchx=torchx):
            typer.echo(line, nl=False)


@cluster.command("cancel")
@needs("cluster")
def cluster_cancel(handle: Handle) -> None:
    """Stop a job; its processes save their state first."""
    from clipmill.cluster import submit

    with submit.torchx_runner() as torchx:
        submit.cancel(handle, torchx=torchx)


@workflow.command("status")
@needs("cluster")
def workflow_status(
    name: WorkflowName, namespace: Namespace = "default", as_json: Json = False
) -> None:
    """Print a data workflow's phase, its pods done, failed and left, and reasons of failures."""
    from dataclasses import asdict

    from clipmill.cluster import argo
    from clipmill.cluster.api import ClusterApi

    status = argo.workflow_status(namespace, name, api=ClusterApi())
    value = {"workflow": name, "namespace": namespace, **asdict(status), "left": status.left}
    typer.echo(json.dumps(value) if as_json else str(status))


@workflow.command("suspend")
@needs("cluster")
def workflow_suspend(name: WorkflowName, namespace: Namespace = "default") -> None:
    """Suspend a data workflow: no further pods start."""
    from clipmill.cluster.api import ClusterApi
    from clipmill.cluster.argo import suspend_workflow

    suspend_workflow(namespace, name, api=ClusterApi())
    print_next("cluster", "workflow", "resume", name, "--namespace", namespace)


@workflow.command("resume")
@needs("cluster")
def workflow_resume(name: WorkflowName, namespace: Namespace = "default") -> None:
    """Resume a suspended data workflow."""
    from clipmill.cluster.api import ClusterApi
    from clipmill.cluster.argo import suspend_workflow

    suspend_workflow(namespace, name, api=ClusterApi(), suspended=False)
    print_next("cluster", "workflow", "status", name, "--namespace", namespace)


@cluster.command("doctor")
@needs("cluster")
def cluster_doctor(
    namespace: Namespace = "default",
    values: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE",
            help="Values of an installation to come, instead of the installed ones.",
        ),
    ] = None,
    self_test: Annotated[
        bool,
        typer.Option(
            "--self-test",
            help="Run a pod of each image and a task of each kind too, and remove them.",
        ),
    ] = False,
    pool: Annotated[
        str, typer.Option(metavar="NAME", help="Node pool of the self-test's tasks.")
    ] = "cpu",
    as_json: Json = False,
) -> None:
    """Check the cluster's parts and settings; fails if a part that the values turn on can't work.

    Each missing or wrong part is printed with the command that corrects it. Nothing is changed.
    """
    from dataclasses import asdict

    from clipmill.cluster.api import ClusterApi
    from clipmill.cluster.doctor.checks import examine, is_broken
    from clipmill.cluster.doctor.snapshot import collect
    from clipmill.cluster.doctor.values import read_parts

    api = ClusterApi()
    snapshot = collect(api, namespace, read_parts(values) if values else None)
    parts = examine(snapshot)
    results = []
    if self_test:
        from clipmill.cluster.doctor.self_test import self_test as run_self_test

        results = run_self_test(api, snapshot, pool=pool)
    if as_json:
        tables = [{**asdict(part), "status": part.status} for part in parts]
        report = {"namespace": namespace, "parts": tables}
        if self_test:
            report["self_test"] = [asdict(result) for result in results]
        typer.echo(json.dumps(report, indent=2))
    else:
        typer.echo(_doctor_table(parts))
        for result in results:
            state = "passed" if result.passed else f"failed: {result.reason}"
            typer.echo(f"{result.name}: {state} ({result.seconds:g} s)")
    if is_broken(parts) or not all(result.passed for result in results):
        raise typer.Exit(EXIT_USER_ERROR)


def _doctor_table(parts: "Sequence[Part]") -> str:
    """Return a line per part, then what is missing or wrong with the commands that correct it."""
    rows = [[part.name, str(part.status), part.version, part.settings] for part in parts]
    lines = [format_table(["part", "status", "version", "settings"], rows)]
    for part in parts:
        for problem in part.problems:
            lines.append(f"\n{part.name}: {problem.status}: {problem.message}")
            lines.append(f"  needed by: {part.needed_by}")
            lines += [f"  what to do: {problem.action}"] * bool(problem.action)
    return "\n".join(lines)


@cluster.command("deploy")
@needs("cluster")
@registered
@tracked
def cluster_deploy(
    promotion: Annotated[str, typer.Argument(metavar="PROMOTION", help="URI of a promotion.")],
    endpoint: Annotated[str, typer.Option(metavar="NAME", help="Name of the endpoint.")],
    namespace: Namespace = "default",
    runtime: Annotated[
        str,
        typer.Option(
            metavar="cpu|gpu",
            help="Serving runtime: cpu or gpu.",
            autocompletion=one_of("cpu", "gpu"),
        ),
    ] = "cpu",
    prometheus: Annotated[
        str,
        typer.Option(metavar="URL", help="Prometheus URL used to monitor the canary's error rate."),
    ] = "",
    image: Annotated[
        str,
        typer.Option(
            metavar="URI",
            help="Container image of the model, oci+native:// or oci://, instead of the store.",
        ),
    ] = "",
    sets: Set = None,
    as_json: Json = False,
) -> None:
    """Roll a promoted model out to an endpoint as a canary; prints its digest."""
    from clipmill.cluster.kserve import InferenceServiceConfig
    from clipmill.cluster.rollout import RolloutConfig, deploy_promotion

    settings = {"name": endpoint, "namespace": namespace, "runtime": runtime}
    service = InferenceServiceConfig.from_json({**settings, "prometheus": prometheus})
    config = RolloutConfig().override(sets or [])
    rollout = deploy_promotion(promotion, service, config, image=image)
    _print_rollout(rollout, endpoint, namespace, as_json=as_json)


@cluster.command("rollback")
@needs("cluster")
@registered
@tracked
def cluster_rollback(
    endpoint: Annotated[str, typer.Argument(metavar="ENDPOINT", help="Name of the endpoint.")],
    to_version: Annotated[
        str,
        typer.Option(
            metavar="VERSION",
            help="Version in the registry: its number, or 8 or more characters of its digest.",
        ),
    ],
    namespace: Namespace = "default",
    prometheus: Annotated[
        str,
        typer.Option(metavar="URL", help="Prometheus URL used to monitor the canary's error rate."),
    ] = "",
    sets: Set = None,
    as_json: Json = False,
) -> None:
    """Roll an endpoint back to a registered version of its model; prints its digest."""
    from clipmill.cluster.kserve import InferenceServiceConfig
    from clipmill.cluster.rollout import RolloutConfig, rollback

    service = InferenceServiceConfig(name=endpoint, namespace=namespace, prometheus=prometheus)
    done = rollback(to_version, service, RolloutConfig().override(sets or []))
    _print_rollout(done, endpoint, namespace, as_json=as_json)


def _print_rollout(rollout: "Rollout", endpoint: str, namespace: str, *, as_json: bool) -> None:
    value = {**dataclasses.asdict(rollout), "namespace": namespace}
    typer.echo(json.dumps(value) if as_json else rollout.digest)
    if not as_json:
        for sentence in rollout.evidence:
            typer.echo(sentence, err=True)
    print_next("predict", rollout.url, "IMAGE", "--model", endpoint)


@cluster.command("plan-capacity")
def cluster_plan_capacity(
    stages: Annotated[
        list[str],
        typer.Argument(
            metavar="STAGE=RATE", help="Stages, with the measured samples/s of one pod each."
        ),
    ],
    pairs: Annotated[float, typer.Option(help="Number of image-text pairs.")] = 1.28e9,
    samples_per_shard: Annotated[int, typer.Option(min=1, help="Samples per shard.")] = 10_000,
    hours: Annotated[float, typer.Option(help="Deadline per stage, in hours.")] = 24.0,
    price: Annotated[float, typer.Option(help="Price per pod-hour.")] = 0.0,
    as_json: Json = False,
) -> None:
    """Estimate pods, hours and store requests of stages over a dataset."""
    from dataclasses import asdict

    from clipmill.cluster.capacity import StageProfile, plan_capacity

    demands = {}
    for assignment in stages:
        name, _, rate = assignment.partition("=")
        fields = {"name": name, "pod_hour_price": price}
        load = StageProfile.from_json({**fields, "samples_per_second": _number(rate)})
        demands[name] = plan_capacity(
            load, num_pairs=int(pairs), samples_per_shard=samples_per_shard, hours=hours
        )
    if as_json:
        typer.echo(json.dumps({name: asdict(demand) for name, demand in demands.items()}, indent=2))
        return
    header = ["stage", "pods", "hours", "requests/s", "MB/s", "price"]
    rows = [
        [
            name,
            str(demand.pods),
            f"{demand.hours:.1f}",
            f"{demand.requests_per_second:.1f}",
            f"{demand.bytes_per_second / 1e6:.0f}",
            f"{demand.price:.0f}",
        ]
        for name, demand in demands.items()
    ]
    typer.echo(format_table(header, rows, right=" rrrrr"))


def _number(text: str) -> float | str:
    """Return the number, or the text for the config to reject."""
    try:
        return float(text)
    except ValueError:
        return text

"""``clipmill cluster``: training jobs, data workflows and endpoints on Kubernetes."""

from typing import Annotated

import typer

from clipmill.cli import entry
from clipmill.cli.extras import needs
from clipmill.cli.options import Set

cluster = typer.Typer(
    help="Training jobs, data workflows and endpoints on Kubernetes.", no_args_is_help=True
)

Namespace = Annotated[str, typer.Option("-n", "--namespace", help="Kubernetes namespace.")]
Handle = Annotated[str, typer.Argument(help="Handle printed by `cluster submit`.")]
Workflow = Annotated[str, typer.Argument(help="Name of the workflow.")]
_PASSTHROUGH = {"allow_extra_args": True, "ignore_unknown_options": True}


@cluster.command("submit", context_settings=_PASSTHROUGH)
@needs("cluster")
def cluster_submit(
    context: typer.Context,
    name: Annotated[str, typer.Option(help="Name of the job.")],
    on: Annotated[
        str, typer.Option(help="Scheduler: local_cwd, kubernetes (Volcano) or kubeflow_trainer.")
    ] = "kubeflow_trainer",
    pool: Annotated[str, typer.Option(help="Node pool.")] = "gpu",
    nodes: Annotated[
        str, typer.Option(help="Number of nodes, or MIN:MAX for elastic training.")
    ] = "1",
    queue: Annotated[str, typer.Option(help="Kueue or Volcano queue.")] = "",
    namespace: Namespace = "default",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the manifest without submitting it.")
    ] = False,
    sets: Set = None,
) -> None:
    """Run a clipmill command on GPU nodes: submit --name a --pool gpu -- pretrain DATASET ..."""
    from clipmill.cluster import submit
    from clipmill.cluster.training_job import TrainingJobConfig, parse_nodes

    app = context.find_object(typer.Typer)
    assert app is not None, "the root command sets it"
    entry.check_command(app, context.args)

    least, most = parse_nodes(nodes)
    job = TrainingJobConfig(
        name=name,
        command=tuple(context.args),
        pool=pool,
        min_nodes=least,
        max_nodes=most,
        queue=queue,
    ).override(sets or [])
    with submit.torchx_runner() as torchx:
        run = submit.dry_run if dry_run else submit.submit
        typer.echo(run(job, on, namespace=namespace, torchx=torchx))


@cluster.command("status")
@needs("cluster")
def cluster_status(handle: Handle) -> None:
    """Print a job's state."""
    from clipmill.cluster import submit

    with submit.torchx_runner() as torchx:
        found = submit.status(handle, torchx=torchx)
    typer.echo(f"{found.state.name} {found.msg}".strip())


@cluster.command("logs")
@needs("cluster")
def cluster_logs(
    handle: Handle,
    node: Annotated[int, typer.Option(help="Index of the node.")] = 0,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Stream logs until the job finishes.")
    ] = False,
) -> None:
    """Print the log of one of a job's nodes."""
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


@cluster.command("data-status")
@needs("cluster")
def cluster_data_status(workflow: Workflow, namespace: Namespace = "default") -> None:
    """Print a data workflow's phase and its number of finished pods."""
    from clipmill.cluster.api import ClusterApi
    from clipmill.cluster.argo import workflow_status

    typer.echo(" ".join(workflow_status(namespace, workflow, api=ClusterApi())))


@cluster.command("suspend")
@needs("cluster")
def cluster_suspend(workflow: Workflow, namespace: Namespace = "default") -> None:
    """Suspend a data workflow: no further pods start."""
    from clipmill.cluster.api import ClusterApi
    from clipmill.cluster.argo import suspend_workflow

    suspend_workflow(namespace, workflow, api=ClusterApi())


@cluster.command("resume")
@needs("cluster")
def cluster_resume(workflow: Workflow, namespace: Namespace = "default") -> None:
    """Resume a suspended data workflow."""
    from clipmill.cluster.api import ClusterApi
    from clipmill.cluster.argo import suspend_workflow

    suspend_workflow(namespace, workflow, api=ClusterApi(), suspended=False)


@cluster.command("deploy")
@needs("cluster")
def cluster_deploy(
    promotion: Annotated[str, typer.Argument(help="URI of a promotion.")],
    endpoint: Annotated[str, typer.Option(help="Name of the endpoint.")],
    namespace: Namespace = "default",
    runtime: Annotated[str, typer.Option(help="Serving runtime: cpu or gpu.")] = "cpu",
    prometheus: Annotated[
        str, typer.Option(help="Prometheus URL used to monitor the canary's error rate.")
    ] = "",
    sets: Set = None,
) -> None:
    """Roll a promoted model out to an endpoint as a canary; prints its digest."""
    from clipmill.cluster.kserve import InferenceServiceConfig, RolloutConfig, deploy_promotion

    settings = {"name": endpoint, "namespace": namespace, "runtime": runtime}
    place = InferenceServiceConfig.from_json({**settings, "prometheus": prometheus})
    rollout = RolloutConfig().override(sets or [])
    typer.echo(deploy_promotion(promotion, place, rollout).digest)


@cluster.command("capacity")
def cluster_capacity(
    stages: Annotated[
        list[str], typer.Argument(help="STAGE=RATE, with the measured samples/s of one pod.")
    ],
    pairs: Annotated[float, typer.Option(help="Image-text pairs in the dataset.")] = 1.28e9,
    samples_per_shard: Annotated[int, typer.Option(help="Samples per shard.")] = 10_000,
    hours: Annotated[float, typer.Option(help="Deadline per stage, in hours.")] = 24.0,
    price: Annotated[float, typer.Option(help="Price per pod-hour.")] = 0.0,
) -> None:
    """Estimate pods, hours and store requests of stages over a dataset."""
    from clipmill.cluster.capacity import StageProfile, plan_capacity

    typer.echo(f"{'stage':<12}{'pods':>7}{'hours':>8}{'requests/s':>12}{'MB/s':>10}{'price':>12}")
    for assignment in stages:
        name, _, rate = assignment.partition("=")
        fields = {"name": name, "pod_hour_price": price}
        load = StageProfile.from_json({**fields, "samples_per_second": _number(rate)})
        found = plan_capacity(
            load, num_pairs=int(pairs), samples_per_shard=samples_per_shard, hours=hours
        )
        typer.echo(
            f"{name:<12}{found.pods:>7}{found.hours:>8.1f}{found.requests_per_second:>12.1f}"
            f"{found.bytes_per_second / 1e6:>10.0f}{found.price:>12.0f}"
        )


def _number(text: str) -> float | str:
    """Return the number, or the text for the config to reject."""
    try:
        return float(text)
    except ValueError:
        return text

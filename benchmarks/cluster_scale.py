"""API requests, object sizes and times of the cluster commands on a cluster of many nodes.

It needs a cluster (``$KUBECONFIG``) with the chart, Kubeflow Trainer, JobSet, Argo Workflows and
KServe. Nodes may be simulated by kwok, whose pods run without doing anything; its stages must leave
a Job's pods running, and end a workflow's pods. Run::

    python benchmarks/cluster_scale.py --namespace scale --pool gpu-8x --nodes 8 64 512

It prints Markdown, which is what docs/scale.md holds.
"""

import argparse
import json
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

import urllib3

from clipmill.cluster import submit as jobs
from clipmill.cluster.api import INFERENCE_SERVICE, TRAIN_JOB, WORKFLOW, ClusterApi
from clipmill.cluster.argo import DataWorkflowConfig, submit_data_workflow, workflow_status
from clipmill.cluster.doctor.snapshot import collect
from clipmill.cluster.endpoint_status import live_pods
from clipmill.cluster.kserve import (
    InferenceServiceConfig,
    PromotedModel,
    inference_service,
    predictor_settings,
)
from clipmill.cluster.training_job import TrainingJobConfig

Device = Literal["cpu", "gpu"]

_SHARDS = 100_000
_LIMIT_SECONDS = 900
_JOB_SET = "jobset.sigs.k8s.io/jobset-name"
_MODEL = PromotedModel(uri="s3://bucket/model", digest="0" * 64, task="depth")


@dataclass
class Traffic:
    """Requests to the API server of a piece of code."""

    requests: int = 0
    """Number of requests."""
    num_bytes: int = 0
    """Bytes of the answers."""
    seconds: float = 0.0
    """Time that it took."""


@dataclass
class Table:
    """Rows of a Markdown table, printed as they come."""

    columns: tuple[str, ...]
    """Titles."""
    rows: list[tuple[object, ...]] = field(default_factory=list)
    """Cells so far."""

    def __post_init__(self) -> None:
        print("| " + " | ".join(self.columns) + " |\n|" + "---|" * len(self.columns), flush=True)

    def add(self, *cells: object) -> None:
        """Add and print a row."""
        self.rows.append(cells)
        print("| " + " | ".join(map(str, cells)) + " |", flush=True)


@contextmanager
def traffic() -> Iterator[Traffic]:
    """Count the requests that urllib3 sends, and their time."""
    send, counted = urllib3.HTTPConnectionPool.urlopen, Traffic()

    def counting(pool: Any, *arguments: Any, **options: Any) -> Any:
        response = send(pool, *arguments, **options)
        counted.requests += 1
        counted.num_bytes += len(response.data)
        return response

    start = time.monotonic()
    urllib3.HTTPConnectionPool.urlopen = counting  # type: ignore[assignment, method-assign]
    try:
        yield counted
    finally:
        urllib3.HTTPConnectionPool.urlopen = send  # type: ignore[method-assign]
        counted.seconds = time.monotonic() - start


def main() -> None:
    """Measure jobs of each size, a workflow and endpoints, and print a table of each."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--namespace", default="clipmill", help="where the chart is installed")
    parser.add_argument("--pool", default="gpu-8x", help="pool of the jobs")
    parser.add_argument("--nodes", type=int, nargs="+", default=[8, 64, 512])
    parser.add_argument("--parts", type=int, default=500, help="pods of the workflow at once")
    parser.add_argument("--endpoints", type=int, default=50)
    parser.add_argument("--runtime", default="gpu", choices=("cpu", "gpu"))
    arguments = parser.parse_args()
    api = ClusterApi()
    table = Table(("nodes", "command", "requests", "answer, kB", "seconds"))
    for num_nodes in arguments.nodes:
        measure_job(num_nodes, arguments.namespace, arguments.pool, api, table)
    print()
    measure_workflow(arguments.parts, arguments.namespace, api)
    print()
    measure_endpoints(arguments.endpoints, arguments.namespace, arguments.runtime, api)


def measure_job(num_nodes: int, namespace: str, pool: str, api: ClusterApi, table: Table) -> None:
    """Submit a job, ask for its status while it starts and when it runs, and cancel it."""
    job = TrainingJobConfig(
        name="scale",
        command=("--version",),
        pool=pool,
        min_nodes=num_nodes,
        max_nodes=num_nodes,
    )

    def row(command: str, counted: Traffic) -> None:
        table.add(
            num_nodes,
            command,
            counted.requests,
            round(counted.num_bytes / 1000),
            f"{counted.seconds:.2f}",
        )

    with jobs.torchx_runner() as torchx:
        with traffic() as counted:
            handle = jobs.submit(job, "kubeflow_trainer", namespace=namespace, torchx=torchx)
        row("submit", counted)
        name = handle.rpartition(":")[2]
        start, polls = time.monotonic(), []
        state = ""
        while state != "RUNNING":
            with traffic() as counted:
                state = jobs.status(handle, torchx=torchx).state.name
            polls.append(counted)
            limit(start)
            time.sleep(2)
        slowest = max(polls, key=lambda poll: poll.seconds)
        row("status while it starts, slowest", slowest)
        table.add(num_nodes, "from submit to RUNNING", "", "", f"{time.monotonic() - start:.0f}")
        row("status", median(lambda: jobs.status(handle, torchx=torchx)))
        row(
            "list",
            median(lambda: jobs.list_jobs("kubeflow_trainer", namespace=namespace, torchx=torchx)),
        )
        resource = api.get(TRAIN_JOB, namespace, name)
        table.add(num_nodes, "the TrainJob", "", f"{size(resource) / 1000:.1f}", "")
        with traffic() as counted:
            jobs.cancel(handle, torchx=torchx)
        row("cancel", counted)
    start = time.monotonic()
    while api.pods(namespace, f"{_JOB_SET}={name}"):
        limit(start)
        time.sleep(1)
    table.add(num_nodes, "from cancel to no pod", "", "", f"{time.monotonic() - start:.0f}")


def measure_workflow(num_parts: int, namespace: str, api: ClusterApi) -> None:
    """Submit a stage over 100,000 shards, and ask for its status until it ends."""
    config = DataWorkflowConfig(
        stage="score",
        subject="s3://bucket/dataset",
        namespace=namespace,
        shards_per_pod=-(-_SHARDS // num_parts),
        parallelism=num_parts,
    )
    table = Table(("workflow", "pods", "requests", "size, kB", "seconds"))
    with traffic() as counted:
        name = submit_data_workflow(config, _SHARDS, api=api)
    table.add("submit", "", counted.requests, "", f"{counted.seconds:.2f}")
    start, polls, sizes, status = time.monotonic(), [], [], None
    while status is None or status.phase not in ("Succeeded", "Failed", "Error"):
        time.sleep(5)
        limit(start)
        with traffic() as counted:
            status = workflow_status(namespace, name, api=api)
        polls.append(counted)
        sizes.append(counted.num_bytes)
    if status.phase != "Succeeded":
        raise SystemExit(f"the workflow ended as {status}")
    worst = max(polls, key=lambda poll: poll.seconds)
    table.add("status, slowest", status.total, worst.requests, "", f"{worst.seconds:.2f}")
    table.add("object, largest", "", "", f"{max(sizes) / 1000:.0f}", "")
    table.add("from submit to the end", "", "", "", f"{time.monotonic() - start:.0f}")
    api.delete(WORKFLOW, namespace, name)


def measure_endpoints(count: int, namespace: str, runtime: Device, api: ClusterApi) -> None:
    """Create endpoints, and look at one of them as a roll-out does while there are so many."""
    endpoints = [
        InferenceServiceConfig(name=f"scale-{i}", namespace=namespace, runtime=runtime)
        for i in range(count)
    ]
    settings = predictor_settings(endpoints[0], api)
    table = Table(("endpoints", "command", "requests", "answer, kB", "seconds"))
    made = 0
    try:
        for target in (1, count):
            start = time.monotonic()
            for endpoint in endpoints[made:target]:
                resource = inference_service(endpoint, _MODEL, settings)
                api.create(INFERENCE_SERVICE, namespace, resource)
            made = target
            for endpoint in endpoints[:made]:
                while not live_pods(api, endpoint, "stable"):
                    limit(start)
                    time.sleep(1)
            elapsed = time.monotonic() - start
            table.add(made, "until each has a pod", "", "", f"{elapsed:.0f}")
            for label, ask in (
                ("one look of a roll-out", lambda: live_pods(api, endpoints[0], "stable")),
                ("cluster doctor", lambda: collect(api, namespace)),
            ):
                counted = median(ask)
                table.add(
                    made,
                    label,
                    counted.requests,
                    round(counted.num_bytes / 1000),
                    f"{counted.seconds:.2f}",
                )
    finally:
        for endpoint in endpoints[:made]:
            api.delete(INFERENCE_SERVICE, namespace, endpoint.name)


def median(call: Callable[[], object], repeats: int = 5) -> Traffic:
    """Return the traffic of a call, with the median of its times."""
    calls = []
    for _ in range(repeats):
        with traffic() as counted:
            call()
        calls.append(counted)
    calls[-1].seconds = statistics.median(counted.seconds for counted in calls)
    return calls[-1]


def size(resource: object) -> int:
    """Return the bytes of a resource's JSON."""
    return len(json.dumps(resource, separators=(",", ":")))


def limit(start: float) -> None:
    """End the benchmark where something takes too long."""
    if time.monotonic() - start > _LIMIT_SECONDS:
        raise SystemExit(f"nothing happened within {_LIMIT_SECONDS} s")


if __name__ == "__main__":
    main()

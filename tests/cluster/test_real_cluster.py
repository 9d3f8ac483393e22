"""Against the cluster that KUBECONFIG names, with the controllers that it has.

``pytest -m cluster tests/cluster``. Everything is created in namespaces of the tests' own.
CLIPMILL_TEST_IMAGE names an image with ``sh`` that the nodes have or can pull.
"""

import gzip
import json
import os
import time
from base64 import b64decode

import pytest
from typer.testing import CliRunner

from clipmill.cli import app
from clipmill.cluster.api import WORKFLOW
from clipmill.cluster.argo import DataWorkflowConfig, data_workflow, workflow_status
from clipmill.cluster.doctor.checks import Status, examine, is_broken
from clipmill.cluster.doctor.snapshot import collect
from clipmill.cluster.doctor.values import EnabledParts
from clipmill.cluster.kserve import InferenceServiceConfig, PromotedModel, inference_service
from clipmill.cluster.pools import load_installation
from clipmill.cluster.trainer_scheduler import train_job
from clipmill.cluster.training_job import TrainingJobConfig, training_app
from helpers.helm_chart import PROFILES, profile, render
from helpers.real_cluster import (
    IMAGE,
    Paths,
    as_user,
    connect,
    install,
    namespace,
    parts,
    require_part,
)

pytestmark = [
    pytest.mark.cluster,
    # kubernetes reads its configuration file without closing it in some versions.
    pytest.mark.filterwarnings("default::ResourceWarning"),
]


@pytest.fixture(scope="module")
def api():
    return connect()


@pytest.fixture(scope="module")
def installed(api):
    """A namespace with the chart's accounts, rights, pools and namespaced runtimes."""
    with namespace(api, **{"pod-security.kubernetes.io/enforce": "restricted"}) as name:
        install(api, name, {})
        yield name


def test_doctor_reads_the_cluster_in_ten_seconds(api):
    start = time.monotonic()
    snapshot, found = parts(api)
    seconds = time.monotonic() - start
    assert found["Kubernetes"].status is Status.OK
    assert found["Kubernetes"].version
    assert all(answer.status < 500 for answer in snapshot.answers.values())
    print(f"doctor read the cluster in {seconds:.1f} s")


def test_doctor_fails_where_the_values_turn_on_what_is_missing(api, tmp_path):
    """The first of the components that the cluster lacks; a full cluster has none."""
    _, found = parts(api)
    switches = {
        "KEDA": "autoscaling",
        "Kueue": "kueue",
        "Kubeflow Pipelines": "pipelines",
        "KServe": "serving",
    }
    absent = [name for name in switches if found[name].status is Status.ABSENT]
    if not absent:
        pytest.skip("the cluster has all components")
    name = absent[0]
    off = {
        key: {"enabled": False}
        for key in ("pipelines", "training", "dataPlane", "serving", "monitoring")
    }
    off["objectStore"] = {"useWorkloadIdentity": True}
    off["pools"] = {}
    values = tmp_path / "values.yaml"
    values.write_text(json.dumps(off))
    command = ["cluster", "doctor", "--values", str(values), "--json"]
    assert CliRunner().invoke(app, command).exit_code == 0
    values.write_text(json.dumps({**off, switches[name]: {"enabled": True}}))
    answer = CliRunner().invoke(app, command)
    assert answer.exit_code == 2
    broken = [p["name"] for p in json.loads(answer.stdout)["parts"] if p["status"] == "broken"]
    assert name in broken


def test_doctor_without_rights_calls_nothing_missing(api, installed):
    """A user who may only discover the API, and an account that submits jobs."""
    del api
    shot = collect(as_user("nobody@example.org"), installed)
    assert shot.parts is None
    found = {part.name: part for part in examine(shot)}
    assert found["Storage class"].status is Status.UNKNOWN
    assert found["GPUs"].status is Status.UNKNOWN
    assert not is_broken(list(found.values()))
    submitter = f"system:serviceaccount:{installed}:clipmill-submitter"
    shot = collect(as_user(submitter), installed)
    assert shot.parts is not None
    messages = [q.message for p in examine(shot) for q in p.problems]
    assert f"not allowed to read secrets in {installed}" in messages


def dry_run(api, path, resource):
    status, body = api.request("POST", f"{path}?dryRun=All&fieldValidation=Strict", body=resource)
    # A name that is taken has passed all validation but that.
    return "" if status in (201, 409) else f"{resource['kind']}: {status}: {body.get('message')}"


def test_argo_takes_data_workflows(api, installed):
    require_part(api, "Argo Workflows")
    table = load_installation(installed, api=api)
    for stage in ("shard", "recaption", "score"):
        config = DataWorkflowConfig(stage=stage, subject="s3://b/d", namespace=installed)
        path = f"/apis/argoproj.io/v1alpha1/namespaces/{installed}/workflows"
        assert dry_run(api, path, data_workflow(config, 100_000, table)) == ""


def test_trainer_takes_jobs(api, installed):
    require_part(api, "Kubeflow Trainer")
    table = load_installation(installed, api=api)
    job = TrainingJobConfig(name="a", command=("--version",), pool="cpu")
    pool = table.pool("cpu")
    manifest = train_job(
        training_app(job, pool, table.image("train")), job, pool, name="a", namespace=installed
    )
    path = f"/apis/trainer.kubeflow.org/v1alpha1/namespaces/{installed}/trainjobs"
    assert dry_run(api, path, manifest) == ""


@pytest.mark.parametrize("prometheus", ["", "http://prometheus.monitoring:9090"])
def test_kserve_takes_endpoints(api, installed, prometheus):
    require_part(api, "KServe")
    if prometheus:
        require_part(api, "KEDA")
    endpoint = InferenceServiceConfig(name="depth", namespace=installed, prometheus=prometheus)
    model = PromotedModel(uri="s3://b/m", digest="0" * 64, task="depth")
    path = f"/apis/serving.kserve.io/v1beta1/namespaces/{installed}/inferenceservices"
    assert dry_run(api, path, inference_service(endpoint, model)) == ""


@pytest.mark.parametrize("name", PROFILES)
def test_the_api_takes_the_charts_objects(api, installed, name):
    """All whose kinds and webhooks are there; those that aren't are named."""
    paths = Paths(api)
    problems, absent = [], set()
    for resource in render(profile(name), namespace=installed):
        path = paths.of(resource, resource["metadata"].get("namespace", installed))
        if not path:
            absent.add(resource["kind"])
            continue
        problem = dry_run(api, path, resource)
        if "failed calling webhook" in problem:
            absent.add(f"{resource['kind']} (webhook)")
        elif problem and "namespaces" not in problem:
            problems.append(problem)
    assert problems == []
    if absent:
        print(f"not checked, since the cluster lacks them: {', '.join(sorted(absent))}")


RIGHTS = [
    # account, path below the namespace, object, whether it may be created
    ("submitter", "/apis/argoproj.io/v1alpha1/{}/workflows", "Workflow", True),
    ("submitter", "/apis/trainer.kubeflow.org/v1alpha1/{}/trainjobs", "TrainJob", True),
    ("submitter", "/api/v1/{}/pods", "Pod", False),
    ("submitter", "/api/v1/{}/secrets", "Secret", False),
    ("data", "/apis/argoproj.io/v1alpha1/{}/workflowtaskresults", "WorkflowTaskResult", True),
    ("data", "/api/v1/{}/configmaps", "ConfigMap", False),
    ("train", "/api/v1/{}/configmaps", "ConfigMap", False),
    ("serve", "/api/v1/{}/secrets", "Secret", False),
]


@pytest.mark.parametrize(("account", "path", "kind", "may"), RIGHTS)
def test_accounts_create_what_they_need_and_no_more(api, installed, account, path, kind, may):
    """By requests that the API refuses or would have taken; an invalid body comes after rights."""
    url = path.format(f"namespaces/{installed}")
    base, _, _ = url.partition("/namespaces/")
    if api.request("GET", base)[0] == 404:
        pytest.skip(f"the cluster has no {kind}")
    user = as_user(f"system:serviceaccount:{installed}:clipmill-{account}")
    version = base.removeprefix("/apis/").removeprefix("/api/")
    body = {"apiVersion": version, "kind": kind, "metadata": {"generateName": "x-"}}
    status, answer = user.request("POST", f"{url}?dryRun=All", body=body)
    refused = status == 403 and "cannot create resource" in answer["message"]
    assert refused is not may, answer


def test_retries_and_status_of_a_data_workflow_on_one_node(api, installed):
    """Parts that do nothing: the first attempt of each fails, the second succeeds."""
    require_part(api, "Argo Workflows")
    scopes = parts(api)[1]["Argo Workflows"].settings
    if "all namespaces" not in scopes:
        pytest.skip(f"Argo {scopes}")
    num_parts = int(os.environ.get("CLIPMILL_TEST_PARTS", "4"))
    config = DataWorkflowConfig(
        stage="score", subject="s3://b/d", namespace=installed, image=IMAGE, shards_per_pod=1
    )
    workflow = data_workflow(config, num_parts, load_installation(installed, api=api))
    for template in workflow["spec"]["templates"]:
        if "container" in template:
            template["container"]["command"] = ["sh", "-c"]
            template["container"]["args"] = ["test {{retries}} -gt 0"]
            template["retryStrategy"]["backoff"] = {"duration": "1s"}
    name = api.create(WORKFLOW, installed, workflow)["metadata"]["name"]
    end = time.monotonic() + 60 * num_parts + 120
    totals = set()
    while (status := workflow_status(installed, name, api=api)).phase not in (
        "Succeeded",
        "Failed",
    ):
        totals.add(status.total)
        assert time.monotonic() < end, status
        time.sleep(2)
    assert status.phase == "Succeeded", status
    assert (status.total, status.done, status.failed) == (num_parts + 1, num_parts + 1, 0)
    assert totals <= {num_parts + 1}
    assert sum(status.reasons.values()) == num_parts + 1
    resource = api.get(WORKFLOW, installed, name)
    packed = resource["status"].get("compressedNodes")
    nodes = (
        json.loads(gzip.decompress(b64decode(packed))) if packed else resource["status"]["nodes"]
    )
    text = json.dumps(nodes, separators=(",", ":")).encode()
    print(
        f"{len(nodes)} entries of status.nodes: {len(text)} bytes, {len(gzip.compress(text, 6))} "
        f"compressed; object {len(json.dumps(resource))} bytes"
    )


def test_nothing_is_needed_without_an_installation(api):
    snapshot = collect(api, "default", EnabledParts(needs_secret=False))
    assert snapshot.parts is not None
    with namespace(api) as empty:
        assert not is_broken(examine(collect(api, empty)))

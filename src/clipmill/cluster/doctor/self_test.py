"""Self-test of an installation: a pod of each image and a task of each kind, then removed."""

import secrets
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final

from clipmill.cluster.api import ClusterApi
from clipmill.cluster.argo import DataWorkflowConfig, data_workflow
from clipmill.cluster.constants import CONTAINER_SECURITY, DOMAIN
from clipmill.cluster.doctor.snapshot import Snapshot
from clipmill.cluster.kserve import InferenceServiceConfig, PromotedModel, inference_service
from clipmill.cluster.pod_status import pod_problem
from clipmill.cluster.pools import Installation, load_installation
from clipmill.cluster.trainer_scheduler import train_job
from clipmill.cluster.training_job import TrainingJobConfig, training_app
from clipmill.errors import ClipmillError

IMPORTS: Final = {
    "data": "import pyarrow, PIL.Image, clipmill.data.shards.write",
    "train": (
        "import scipy.optimize, kfp, clipmill.tasks.finetune\n"
        "from clipmill.openmmlab.ops import importing_openmmlab\n"
        "with importing_openmmlab():\n"
        "    import mmdet.models, mmseg.models"
    ),
    "serve": "import torch, kserve, clipmill.serve.launch",
}
"""Programs that import what each image's work needs."""
_LABEL: Final = f"{DOMAIN}/self-test"
_RESOURCES: Final = {"cpu": "100m", "memory": "512Mi"}
_LIMITS: Final = {"cpu": "1", "memory": "2Gi"}
_FAILED_WAITING: Final = ("ImagePullBackOff", "InvalidImageName", "CreateContainerConfigError")
_GRACE_SECONDS = 1


@dataclass(frozen=True, kw_only=True, slots=True)
class SelfTestResult:
    """Result of one test."""

    name: str
    """Name of the test."""
    passed: bool
    """True if it passed."""
    seconds: float
    """Duration."""
    reason: str = ""
    """Reason of a failure."""


def self_test(
    api: ClusterApi,
    snapshot: Snapshot,
    *,
    pool: str = "cpu",
    timeout_seconds: float = 300.0,
    poll_interval_seconds: float = 2.0,
) -> list[SelfTestResult]:
    """Run all tests that the cluster's parts allow, in parallel, and remove what they created.

    Raises:
        ClusterError: there is no installation in the snapshot's namespace.
    """
    namespace = snapshot.namespace
    installation = load_installation(namespace, api=api)
    runner = _Runner(
        api=api,
        namespace=namespace,
        timeout_seconds=timeout_seconds,
        poll_interval_seconds=poll_interval_seconds,
    )
    tests: dict[str, Callable[[], str]] = {}
    for target in IMPORTS:
        pod = _pod(target, installation, namespace)
        tests[f"pod of the image {target}"] = _test(runner, "/api/v1", "pods", pod, pod_outcome)
    if snapshot.has("trainjobs.trainer.kubeflow.org"):
        tests["TrainJob of one node"] = _test(
            runner,
            "/apis/trainer.kubeflow.org/v1alpha1",
            "trainjobs",
            _train_job(installation, pool, namespace),
            _train_job_outcome,
        )
    if snapshot.has("workflows.argoproj.io"):
        tests["data workflow of one part"] = _test(
            runner,
            "/apis/argoproj.io/v1alpha1",
            "workflows",
            _workflow(installation, pool, namespace),
            _workflow_outcome,
        )
    if snapshot.has("inferenceservices.serving.kserve.io"):
        endpoint = InferenceServiceConfig(name=f"self-test-{_suffix()}", namespace=namespace)
        model = PromotedModel(uri="s3://clipmill/self-test", digest="0" * 64, task="depth")
        manifest = inference_service(endpoint, model)
        tests["InferenceService (dry run)"] = lambda: runner.dry_run(
            "/apis/serving.kserve.io/v1beta1", "inferenceservices", manifest
        )
    with ThreadPoolExecutor(len(tests)) as executor:
        return list(executor.map(_timed, tests, tests.values()))


@dataclass(frozen=True, kw_only=True, slots=True)
class _Runner:
    api: ClusterApi
    namespace: str
    timeout_seconds: float
    poll_interval_seconds: float

    def run(
        self,
        base: str,
        plural: str,
        manifest: dict[str, Any],
        outcome: Callable[[Mapping[str, Any]], str | None],
    ) -> str:
        """Create an object, wait for its outcome and remove it; return a failure's reason.

        ``outcome`` returns None while the object is in progress, and "" once it succeeded.
        """
        path = f"{base}/namespaces/{self.namespace}/{plural}"
        status, body = self.api.request("POST", f"{path}?fieldValidation=Strict", body=manifest)
        if status >= 300:
            return f"refused: HTTP {status}: {body.get('message', '')}"
        name = body["metadata"]["name"]
        try:
            end = time.monotonic() + self.timeout_seconds
            while (reason := outcome(body)) is None:
                if time.monotonic() >= end:
                    return f"not finished in {self.timeout_seconds:g} s{self._pod_reason(name)}"
                time.sleep(self.poll_interval_seconds)
                status, body = self.api.request("GET", f"{path}/{name}")
                if status >= 300:
                    return f"HTTP {status}: {body.get('message', '')}"
            # A pod's own reason is its outcome.
            return reason + (self._pod_reason(name) if reason and plural != "pods" else "")
        finally:
            query = f"propagationPolicy=Background&gracePeriodSeconds={_GRACE_SECONDS}"
            self.api.request("DELETE", f"{path}/{name}?{query}")

    def dry_run(self, base: str, plural: str, manifest: dict[str, Any]) -> str:
        """Return why the API refuses an object; empty if it accepts it."""
        path = f"{base}/namespaces/{self.namespace}/{plural}?dryRun=All&fieldValidation=Strict"
        status, body = self.api.request("POST", path, body=manifest)
        return "" if status < 300 else f"refused: HTTP {status}: {body.get('message', '')}"

    def _pod_reason(self, name: str) -> str:
        """Return why a pod of an object failed or doesn't start, as text to append."""
        for pod in self.api.pods(self.namespace, ""):
            if pod["metadata"]["name"].startswith(name) and (reason := pod_problem(pod)):
                return f": {pod['metadata']['name']}: {reason}"
        return ""


def _test(
    runner: _Runner,
    base: str,
    plural: str,
    manifest: dict[str, Any],
    outcome: Callable[[Mapping[str, Any]], str | None],
) -> Callable[[], str]:
    return lambda: runner.run(base, plural, manifest, outcome)


def _timed(name: str, test: Callable[[], str]) -> SelfTestResult:
    start = time.monotonic()
    try:
        reason = test()
    except ClipmillError as error:
        reason = str(error).partition("\n")[0]
    seconds = round(time.monotonic() - start, 1)
    return SelfTestResult(name=name, passed=not reason, seconds=seconds, reason=reason)


def pod_outcome(pod: Mapping[str, Any]) -> str | None:
    """Return "" for a pod that succeeded, a reason for one that can't, None for one in progress."""
    phase = (pod.get("status") or {}).get("phase")
    if phase == "Succeeded":
        return ""
    reason = pod_problem(pod)
    is_final = phase == "Failed" or reason.startswith(_FAILED_WAITING)
    return (reason or "the pod failed") if is_final else None


def _train_job_outcome(job: Mapping[str, Any]) -> str | None:
    for condition in (job.get("status") or {}).get("conditions", []):
        if condition["status"] == "True" and condition["type"] in ("Complete", "Failed"):
            failed = condition["type"] == "Failed"
            return f"failed: {condition.get('message', '')}" if failed else ""
    return None


def _workflow_outcome(workflow: Mapping[str, Any]) -> str | None:
    status = workflow.get("status") or {}
    if status.get("phase") == "Succeeded":
        return ""
    if status.get("phase") in ("Failed", "Error"):
        return f"{status['phase']}: {status.get('message', '')}"
    return None


def _suffix() -> str:
    return secrets.token_hex(3)


def _pod(target: str, installation: Installation, namespace: str) -> dict[str, Any]:
    image = installation.image(target)  # type: ignore[arg-type]  # a key of IMPORTS
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {
            "name": f"clipmill-self-test-{target}-{_suffix()}",
            "namespace": namespace,
            "labels": {"app.kubernetes.io/name": "clipmill", _LABEL: target},
        },
        "spec": {
            "restartPolicy": "Never",
            "serviceAccountName": f"clipmill-{target}",
            "automountServiceAccountToken": False,
            "securityContext": installation.pod_security,
            "containers": [
                {
                    "name": "self-test",
                    "image": image,
                    "command": [
                        "bash",
                        "-c",
                        f'clipmill --version && python -c "{IMPORTS[target]}"',
                    ],
                    "env": [{"name": "HOME", "value": "/tmp"}],  # noqa: S108  # the pod's own
                    "resources": {"requests": _RESOURCES, "limits": _LIMITS},
                    "securityContext": CONTAINER_SECURITY,
                    "terminationMessagePolicy": "FallbackToLogsOnError",
                    "volumeMounts": [{"name": "tmp", "mountPath": "/tmp"}],  # noqa: S108
                }
            ],
            "volumes": [{"name": "tmp", "emptyDir": {}}],
        },
    }


def _train_job(installation: Installation, pool: str, namespace: str) -> dict[str, Any]:
    name = f"self-test-{_suffix()}"
    job = TrainingJobConfig(name=name, command=("--version",), pool=pool)
    config = installation.pool(pool)
    app = training_app(job, config, installation.image("train"))
    return train_job(app, job, config, name=name, namespace=namespace)


def _workflow(installation: Installation, pool: str, namespace: str) -> dict[str, Any]:
    config = DataWorkflowConfig(stage="score", subject="self-test", pool=pool, namespace=namespace)
    workflow = data_workflow(config, 1, installation)
    for template in workflow["spec"]["templates"]:
        if "container" in template:
            template["container"]["args"] = ["--version"]
    return workflow

"""Generated manifests: the chart's rules and dashboards, and examples for readers."""

import json
from collections.abc import Mapping
from typing import Any

import yaml

from clipmill.cluster.argo import DataWorkflowConfig, data_workflow
from clipmill.cluster.kserve import (
    InferenceServiceConfig,
    PromotedModel,
    canary,
    endpoint_service,
    inference_service,
)
from clipmill.cluster.monitoring.dashboards import dashboards
from clipmill.cluster.monitoring.rules import NAMESPACES, rules
from clipmill.cluster.pools import default_installation
from clipmill.cluster.trainer_scheduler import train_job
from clipmill.cluster.training_job import TrainingJobConfig, training_app

_STORE = "s3://clipmill/store"


def monitoring_files() -> dict[str, str]:
    """Return the rules and dashboards as text by path under the chart's ``files/``."""
    texts = {"rules.yaml": yaml_text(rules(NAMESPACES))}
    for name, dashboard in dashboards().items():
        texts[f"dashboards/{name}.json"] = json.dumps(dashboard, indent=1) + "\n"
    return texts


def examples() -> dict[str, str]:
    """Return examples of what clipmill sends to a cluster, as YAML by file name."""
    manifests = {
        "trainjob.yaml": _train_job(),
        "volcano-job.yaml": _volcano_job(),
        "recaption-workflow.yaml": data_workflow(
            DataWorkflowConfig(
                stage="recaption",
                subject=f"{_STORE}/datasets/DIGEST",
                arguments=("--captioner", f"{_STORE}/captioners/DIGEST"),
                pool="gpu",
            ),
            100,
            default_installation({}),
        ),
    }
    texts = {name: yaml_text(value) for name, value in manifests.items()}
    return texts | {"inferenceservice-canary.yaml": yaml_text(*_endpoint())}


def _job() -> TrainingJobConfig:
    return TrainingJobConfig(
        name="clip-vit-b16",
        command=(
            *("pretrain", "clip", f"{_STORE}/datasets/DIGEST", "--store", _STORE),
            *("--captions", "both", "--caption-layer", "captions/LAYER"),
            *("--recipe", "clip-vit-b16-12.8b"),
        ),
        pool="gpu-8x",
        min_nodes=1,
        max_nodes=2,
        queue="clipmill",
        topology="topology.kubernetes.io/zone",
        grace_seconds=300,
    )


def _train_job() -> dict[str, Any]:
    job = _job()
    installation = default_installation({})
    pool = installation.pool(job.pool)
    app = training_app(job, pool, installation.image("train"))
    return train_job(app, job, pool, name=job.name, namespace="clipmill")


def _volcano_job() -> Mapping[str, Any]:
    from torchx.schedulers.kubernetes_scheduler import app_to_resource, sanitize_for_serialization

    job = _job()
    installation = default_installation({})
    app = training_app(job, installation.pool(job.pool), installation.image("train"))
    manifests = app_to_resource(app, job.queue, job.service_account, None, 0, 0, None)
    # TorchX gives each submission a name of its own.
    text = json.dumps(sanitize_for_serialization(manifests)).replace(
        manifests["metadata"]["name"], job.name
    )
    renamed: dict[str, Any] = json.loads(text)
    return renamed


def _endpoint() -> tuple[dict[str, Any], dict[str, Any]]:
    endpoint = InferenceServiceConfig(name="depth", namespace="clipmill")
    stable = PromotedModel(
        uri=f"{_STORE}/models/STABLE",
        digest="0" * 64,
        task="depth",
        metrics={"rmse": 0.61},
        parents={"encoder": "e" * 64, "data": "d" * 64},
    )
    better = PromotedModel(uri=f"{_STORE}/models/BETTER", digest="1" * 64, task="depth")
    manifests = inference_service(endpoint, stable)
    manifests["spec"]["canary"] = [canary(manifests["spec"]["predictor"], better, 10)]
    return manifests, endpoint_service(endpoint)


def yaml_text(*documents: Any) -> str:
    """Return the documents as YAML, keys in their order, text of several lines as a block."""
    text: str = yaml.dump_all(documents, Dumper=_Dumper, sort_keys=False, width=1000)
    return text


class _Dumper(yaml.SafeDumper):
    """A dumper with a representer of text of its own: KFP changes that of PyYAML's."""

    def ignore_aliases(self, data: Any) -> bool:
        """Write repeated values in full rather than as aliases."""
        del data
        return True


def _text(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    style = "|" if "\n" in value else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _text)

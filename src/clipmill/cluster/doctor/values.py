"""Parts of the chart that an installation's values turn on."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clipmill.cluster.pools import POOLS_FILE, PoolConfig, parse_pools
from clipmill.errors import ConfigError

VALUES_FILE = "values.json"
"""Key of the chart's ConfigMap with the values that turn parts on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EnabledParts:
    """Values of the chart by which it needs parts of a cluster; the defaults are the chart's."""

    pipelines: bool = True
    """``pipelines.enabled``."""
    task_namespace: str = "kubeflow"
    """``pipelines.kubeflow.namespace``: of the pipelines, and of their tasks' pods."""
    multi_user: bool = False
    """``pipelines.kubeflow.multiUser``."""
    task_account: str = ""
    """``pipelines.kubeflow.serviceAccount``; empty for Kubeflow's own."""
    training: bool = True
    """``training.enabled``."""
    gang_scheduler: str = "none"
    """``training.gangScheduler``."""
    data_plane: bool = True
    """``dataPlane.enabled``."""
    serving: bool = True
    """``serving.enabled``."""
    autoscaling: bool = False
    """``autoscaling.enabled``."""
    http_scaling: bool = False
    """``autoscaling.http.enabled``."""
    kueue: bool = False
    """``kueue.enabled``."""
    monitoring: bool = True
    """``monitoring.enabled``."""
    monitor_kind: str = "PodMonitor"
    """``monitoring.kind``."""
    monitor_labels: dict[str, str] = field(default_factory=dict)
    """``monitoring.labels``."""
    alerts: bool = True
    """``monitoring.alerts``."""
    needs_kube_state_metrics: bool = False
    """``monitoring.alertsFrom.kubeStateMetrics``."""
    demo_gateway: str = ""
    """``demo.route.gateway`` of a demo that is on."""
    needs_storage_class: bool = False
    """True if the embedded store's volume has the cluster's default class."""
    needs_secret: bool = True
    """True if the store's keys come from a secret."""
    pools: Mapping[str, PoolConfig] = field(default_factory=dict)
    """``pools``."""

    @property
    def task_user(self) -> str:
        """Kubernetes user of the pipelines' tasks."""
        default = "default-editor" if self.multi_user else "pipeline-runner"
        return f"system:serviceaccount:{self.task_namespace}:{self.task_account or default}"


def installed_parts(config_map: Mapping[str, Any]) -> EnabledParts:
    """Return the parts that the chart of a ConfigMap ``clipmill-pools`` turns on."""
    data = config_map.get("data") or {}
    pools = json.loads(data.get(POOLS_FILE, "{}")).get("pools", {})
    return enabled_parts({**json.loads(data.get(VALUES_FILE, "{}")), "pools": pools})


def read_parts(path: Path) -> EnabledParts:
    """Return the parts that a file of values turns on.

    Raises:
        ConfigError: it can't be read.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text()) or {}
        return enabled_parts(values)
    except (OSError, yaml.YAMLError, AttributeError) as error:
        raise ConfigError(
            f"the values {path} can't be read: {error}",
            expected="YAML as `helm install -f` takes it",
            action="pass the file that you install the chart with",
        ) from error


def enabled_parts(values: Mapping[str, Any]) -> EnabledParts:
    """Return the parts that values turn on; the chart's defaults where they say nothing."""

    def section(*names: str) -> Mapping[str, Any]:
        value: Any = values
        for name in names:
            value = value.get(name) or {}
        return dict(value)

    fields: dict[str, Any] = {}
    for name, (path, key) in {
        "pipelines": (("pipelines",), "enabled"),
        "task_namespace": (("pipelines", "kubeflow"), "namespace"),
        "multi_user": (("pipelines", "kubeflow"), "multiUser"),
        "task_account": (("pipelines", "kubeflow"), "serviceAccount"),
        "training": (("training",), "enabled"),
        "gang_scheduler": (("training",), "gangScheduler"),
        "data_plane": (("dataPlane",), "enabled"),
        "serving": (("serving",), "enabled"),
        "autoscaling": (("autoscaling",), "enabled"),
        "http_scaling": (("autoscaling", "http"), "enabled"),
        "kueue": (("kueue",), "enabled"),
        "monitoring": (("monitoring",), "enabled"),
        "monitor_kind": (("monitoring",), "kind"),
        "monitor_labels": (("monitoring",), "labels"),
        "alerts": (("monitoring",), "alerts"),
        "needs_kube_state_metrics": (("monitoring", "alertsFrom"), "kubeStateMetrics"),
    }.items():
        group = section(*path)
        if key in group:
            fields[name] = group[key]
    store, demo = section("objectStore"), section("demo")
    embedded = section("objectStore", "embedded")
    return EnabledParts(
        **fields,
        demo_gateway=section("demo", "route").get("gateway", "") if demo.get("enabled") else "",
        needs_storage_class=bool(embedded.get("enabled")) and not embedded.get("storageClass"),
        needs_secret=not store.get("useWorkloadIdentity", False),
        pools=parse_pools(section("pools")),
    )

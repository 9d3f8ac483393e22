"""A real Prometheus finds pods by the chart's monitors, and calls jobs by their own names."""

import json
import re
import shutil
import time
import urllib.request

import pytest
import yaml

from clipmill.processes import free_port
from helpers.background import running
from helpers.helm_chart import profile, render

NAME = "__meta_kubernetes_pod_container_name"
PORT = "__meta_kubernetes_pod_container_port_name"
LABEL = "__meta_kubernetes_pod_label_"


def discovered(name, address, *, port=None, container="node", **labels):
    """A target as Kubernetes discovery finds it: one for each port, or container without."""
    meta = {
        "__meta_kubernetes_namespace": "ml",
        "__meta_kubernetes_pod_name": name,
        "__meta_kubernetes_pod_ip": address,
        NAME: container,
        **({PORT: port} if port else {}),
        **{LABEL + key: value for key, value in labels.items()},
    }
    host = f"[{address}]" if ":" in address else address
    return {"targets": [f"{host}:9090" if port else host], "labels": meta}


TRAIN = {"app_kubernetes_io_name": "clipmill", "app_kubernetes_io_component": "train"}
TASK = {"clipmill_io_metrics": "pipeline", "workflows_argoproj_io_workflow": "run-1"}
PODS = [
    *(
        discovered(f"{job}-node-0-0", f"127.0.1.{n}", port="metrics", **TRAIN, clipmill_io_job=job)
        for n, job in enumerate(("small", "large"))
    ),
    *(
        discovered(f"task-{n}", address, container=container, **TASK)
        for n, address in enumerate(("127.0.2.1", "::1"))
        for container in ("init", "wait", "main")
    ),
    discovered("other", "127.0.3.1", container="main", app_kubernetes_io_name="other"),
]


def scrape_config(monitor):
    """The configuration that Prometheus Operator makes of a PodMonitor, as far as it matters."""
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    rules = [
        {"source_labels": [LABEL + re.sub(r"\W", "_", key)], "regex": value, "action": "keep"}
        for key, value in monitor["spec"]["selector"]["matchLabels"].items()
    ]
    if "port" in endpoint:
        rules.append({"source_labels": [PORT], "regex": endpoint["port"], "action": "keep"})
    name = f"ml/{monitor['metadata']['name']}"
    rules += [
        {"source_labels": ["__meta_kubernetes_pod_name"], "target_label": "pod"},
        {"source_labels": [NAME], "target_label": "container"},
        {"target_label": "job", "replacement": name},
    ]
    rules += [
        {re.sub("[A-Z]", lambda m: f"_{m[0].lower()}", key): value for key, value in rule.items()}
        for rule in endpoint["relabelings"]
    ]
    return {
        "job_name": name,
        "file_sd_configs": [{"files": ["pods.json"]}],
        "relabel_configs": rules,
        "metrics_path": endpoint["path"],
    }


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    """Scraped addresses and labels, by monitor and pod."""
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus isn't installed")
    folder = tmp_path_factory.mktemp("prometheus")
    monitors = [r for r in render(profile("")) if r["kind"] == "PodMonitor"]
    (folder / "pods.json").write_text(json.dumps(PODS))
    settings = {"scrape_configs": [scrape_config(monitor) for monitor in monitors]}
    (folder / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    port = free_port("127.0.0.1")
    url = f"http://127.0.0.1:{port}/api/v1/targets?state=active"
    with running(
        "prometheus",
        f"--config.file={folder / 'prometheus.yaml'}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ):
        deadline = time.monotonic() + 60
        active = []
        while not active and time.monotonic() < deadline:
            time.sleep(0.5)
            try:
                with urllib.request.urlopen(url) as response:
                    active = json.load(response)["data"]["activeTargets"]
            except OSError:
                continue
    return sorted((t["labels"]["pod"], t["labels"]["job"], t["scrapeUrl"]) for t in active)


def test_each_job_has_its_name_and_each_task_one_target(targets):
    assert targets == [
        ("large-node-0-0", "large", "http://127.0.1.1:9090/metrics"),
        ("small-node-0-0", "small", "http://127.0.1.0:9090/metrics"),
        ("task-0", "run-1", "http://127.0.2.1:9090/metrics"),
        ("task-1", "run-1", "http://[::1]:9090/metrics"),
    ]


def test_service_monitors_name_jobs_alike():
    kinds = {}
    for kind in ("PodMonitor", "ServiceMonitor"):
        resources = render({**profile(""), "monitoring": {"kind": kind}})
        field = "endpoints" if kind == "ServiceMonitor" else "podMetricsEndpoints"
        kinds[kind] = [
            [rule for rule in r["spec"][field][0]["relabelings"] if rule["targetLabel"] == "job"]
            for r in resources
            if r["kind"] == kind and "pipeline" not in r["metadata"]["name"]
        ]
    assert kinds["PodMonitor"] == kinds["ServiceMonitor"]
    assert all(len(rules) == 2 for rules in kinds["PodMonitor"])

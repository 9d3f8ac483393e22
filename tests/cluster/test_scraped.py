"""A real Prometheus scrapes a job of ours; every panel of every dashboard then has data."""

import json
import shutil
import sys
import time
import urllib.parse
import urllib.request

import pytest
import yaml

from clipmill.cluster.monitoring.dashboards import dashboards, queries
from clipmill.cluster.monitoring.rules import rules
from clipmill.processes import free_port
from helpers.background import running

JOB = """
import sys, time
from dataclasses import fields
from prometheus_client import Counter, Gauge
from clipmill import telemetry

sections = [make() for name, make in sorted(vars(telemetry).items())
            if name.endswith("_metrics") and hasattr(make, "cache_clear")]
telemetry.serve_metrics(int(sys.argv[1]))
while True:
    for section in sections:
        for field in fields(section):
            metric = getattr(section, field.name)
            names = metric._labelnames
            for value in ("200", "503") if "code" in names else ("a",):
                child = metric.labels(*[value for _ in names]) if names else metric
                kind = type(metric)
                (child.inc if kind in (Counter, Gauge) else child.observe)(0.5)
    time.sleep(0.1)
"""


def ask(port, query):
    address = f"http://127.0.0.1:{port}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    with urllib.request.urlopen(address) as response:
        return json.load(response)["data"]["result"]


def shown(query):
    """The query as Grafana sends it."""
    return query.replace("$__rate_interval", "10s").replace("$namespace", ".*")


def test_every_panel_has_data(tmp_path):
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus isn't installed")
    job, server = free_port("127.0.0.1"), free_port("127.0.0.1")
    target = {
        "targets": [f"127.0.0.1:{job}"],
        # What a PodMonitor adds.
        "labels": {"namespace": "ml", "clipmill_io_track": "stable"},
    }
    settings = {
        "global": {"scrape_interval": "1s", "evaluation_interval": "1s"},
        "rule_files": ["rules.yaml"],
        "scrape_configs": [{"job_name": "job", "static_configs": [target]}],
    }
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules(".*")).replace("interval: 30s", ""))
    (tmp_path / "prometheus.yaml").write_text(yaml.safe_dump(settings))
    wanted = {(name, query) for name, board in dashboards().items() for query in queries(board)}
    assert len(wanted) > 30
    with (
        running(sys.executable, "-c", JOB, str(job)),
        running(
            "prometheus",
            f"--config.file={tmp_path / 'prometheus.yaml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{server}",
        ),
    ):
        deadline = time.monotonic() + 60
        while wanted and time.monotonic() < deadline:
            time.sleep(1)
            try:
                wanted = {(n, query) for n, query in wanted if not ask(server, shown(query))}
            except OSError:
                continue
    assert wanted == set()

import socket
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families

from clipmill.errors import ServerError
from clipmill.telemetry import (
    data_metrics,
    serve_metrics,
    serving_metrics,
    train_metrics,
)


def test_a_job_is_scraped_under_documented_names() -> None:
    metrics = train_metrics()
    metrics.loss.labels("clip", "total").set(2.5)
    metrics.step_seconds.observe(0.2)
    data_metrics().samples_rejected.labels("not_downloaded").inc(3)
    port = serve_metrics(0)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    values = {(s.name, *sorted(s.labels.values())): s.value for f in families for s in f.samples}
    assert values["clipmill_train_loss", "clip", "total"] == 2.5
    assert values["clipmill_train_step_seconds_count",] >= 1
    assert values["clipmill_data_samples_rejected_total", "not_downloaded"] == 3
    assert ("clipmill_train_samples_total",) in values
    assert all(family.documentation for family in families)


def test_a_section_is_registered_once() -> None:
    assert train_metrics() is train_metrics()
    assert data_metrics() is data_metrics()
    assert serving_metrics() is serving_metrics()


def test_a_port_in_use_is_said() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ServerError, match=str(port)):
            serve_metrics(port)

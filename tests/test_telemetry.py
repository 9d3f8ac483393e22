import json
import logging
import socket
import urllib.request
from collections.abc import Iterator

import pytest
from prometheus_client.parser import text_string_to_metric_families

from clipmill.errors import ServerError
from clipmill.telemetry import (
    configure_logging,
    data_metrics,
    serve_metrics,
    serving_metrics,
    train_metrics,
)


def test_a_job_is_scraped_under_documented_names() -> None:
    metrics = train_metrics()
    metrics.loss.labels("clip", "total").set(2.5)
    metrics.step_seconds.observe(0.2)
    data_metrics().quarantined.labels("too-small").inc(3)
    port = serve_metrics(0)
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as response:
        families = list(text_string_to_metric_families(response.read().decode()))
    values = {(s.name, *sorted(s.labels.values())): s.value for f in families for s in f.samples}
    assert values["clipmill_train_loss", "clip", "total"] == 2.5
    assert values["clipmill_train_step_seconds_count",] >= 1
    assert values["clipmill_data_quarantined_total", "too-small"] == 3
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


@pytest.fixture
def logging_restored() -> Iterator[None]:
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.mark.usefixtures("logging_restored")
def test_each_log_line_is_a_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("INFO", json=True)
    logger = logging.getLogger("clipmill.test")
    logger.debug("too quiet")
    logger.info("step %d\nof many", 3, extra={"loss": 0.5, "level": "mine"})
    try:
        int("broken")
    except ValueError:
        logger.exception("it failed")
    first, second = (json.loads(line) for line in capsys.readouterr().err.splitlines())
    assert first["message"] == "step 3\nof many"
    assert (first["level"], first["logger"], first["loss"]) == ("INFO", "clipmill.test", 0.5)
    assert first["time"].endswith("+00:00")
    assert "ValueError: invalid literal" in second["exception"]


@pytest.mark.usefixtures("logging_restored")
def test_plain_lines_say_who_and_what(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("WARNING")
    logging.getLogger("clipmill.test").info("too quiet")
    logging.getLogger("clipmill.test").warning("careful")
    (line,) = capsys.readouterr().err.splitlines()
    assert line.endswith("WARNING clipmill.test: careful")

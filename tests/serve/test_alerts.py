"""Rules on the series of a live server after a varied load: none may select nothing."""

import re
import shutil
import subprocess
import threading
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from clipmill.cluster.monitoring.rules import ALERTS, RECORDINGS, rules
from clipmill.errors import ServerError
from clipmill.models.checkpoint import load_checkpoint, save_checkpoint
from clipmill.models.embedding_stats import EmbeddingStatistics
from clipmill.serve.client import Client
from clipmill.serve.config import ServingConfig
from clipmill.serve.launch import ServerProcess
from clipmill.serve.smoke_test import scrape_metrics

_MINUTES = 1600  # more than a day and an hour, the farthest that a rule looks back
_RULES = {
    rule.name: rule.expression
    for rule in (*RECORDINGS, *ALERTS)
    if "clipmill_serve_" in rule.expression
}
_SELECTOR = re.compile(r"\b(clipmill_serve_\w+)(?:\{([^}]*)\})?")
_MATCHER = re.compile(r'(\w+)(=~|=)"([^"]*)"')
_COMPARISON = re.compile(r" (>=|<=|==|!=|>|<) ")


@pytest.fixture(scope="module")
def samples(models: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> list[Sample]:
    """What Prometheus would scrape."""
    folder = tmp_path_factory.mktemp("alerts")
    metadata, tensors = load_checkpoint(models["depth"])
    statistics = EmbeddingStatistics(mean=(0.0,) * 32, spread=1.0, num_images=64)
    depth = save_checkpoint(str(folder / "depth"), metadata, tensors, embedding=statistics).uri
    uris = {"seg": models["seg"], "depth": depth}
    config = ServingConfig(max_queue_size=1)
    picture = np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8)
    with ServerProcess(uris, log_path=folder / "log", config=config) as server:
        client = Client(server.url)
        for _ in range(20):  # as many as the drift of embeddings needs, and some
            for name in uris:
                client.infer(name, images=[picture])
        for name in uris:
            with pytest.raises(ServerError, match="400"):
                client.infer(name, images=[b"no image"])
            with pytest.raises(ServerError, match="503"):
                client.infer(name, images=[picture], parameters={"timeout": 1})
            _fill_queue(client, name, picture, server)
        text = scrape_metrics(server.url)
    families = text_string_to_metric_families(text + "\n")
    return [sample for family in families for sample in family.samples]


def _fill_queue(client: Client, name: str, picture: np.ndarray, server: ServerProcess) -> None:
    def send() -> None:
        with suppress(ServerError):
            client.infer(name, images=[np.tile(picture, (4, 4, 1))])

    for _ in range(20):
        threads = [threading.Thread(target=send) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if f'rejected_total{{model="{name}",reason="queue_full"}}' in scrape_metrics(server.url):
            return
    pytest.fail("no request found the queue full")


def _selected(samples: Iterable[Sample], name: str, matchers: str) -> list[Sample]:
    wanted = _MATCHER.findall(matchers)

    def matches(sample: Sample) -> bool:
        return all(
            re.fullmatch(value if operator == "=~" else re.escape(value), sample.labels.get(label))
            for label, operator, value in wanted
        )

    return [sample for sample in samples if sample.name == name and matches(sample)]


def test_every_selector_of_a_rule_finds_a_series(samples: list[Sample]) -> None:
    recorded = {recording.name for recording in RECORDINGS}
    assert len(_RULES) >= 12
    empty, seen = [], set()
    for rule, expression in _RULES.items():
        scraped = re.sub("|".join(recorded), "", expression)
        for name, matchers in _SELECTOR.findall(scraped):
            seen.add(name)
            if not _selected(samples, name, matchers):
                empty.append(f"{rule}: {name}{{{matchers}}}")
    assert empty == []
    assert len(seen) >= 8


def test_every_rule_has_a_value_on_them(samples: list[Sample], tmp_path: Path) -> None:
    """promtool evaluates each on a day of such load, comparisons as 0 or 1."""
    if shutil.which("promtool") is None:
        pytest.skip("promtool isn't installed")
    series = []
    for sample in samples:
        labels = {**sample.labels, "namespace": "n", "pod": "p"}
        text = ",".join(f'{name}="{value}"' for name, value in labels.items())
        is_growing = re.search("_(total|bucket|count|sum)$", sample.name)
        assert np.isfinite(sample.value), sample
        values = f"0+{sample.value}x{_MINUTES}" if is_growing else f"{sample.value}x{_MINUTES}"
        series.append({"series": f"{sample.name}{{{text}}}", "values": values})
    expressions = [_COMPARISON.sub(r" \1 bool ", expression) for expression in _RULES.values()]
    assert sum(" bool " in expression for expression in expressions) >= 6
    expected = [{"labels": "{}", "value": 1}]
    test = {
        "interval": "1m",
        "input_series": series,
        "promql_expr_test": [
            {
                "expr": f"count({expression}) > bool 0",
                "eval_time": f"{_MINUTES}m",
                "exp_samples": expected,
            }
            for expression in expressions
        ],
    }
    # Recorded at the end only: each evaluation reads a day of every series.
    recorded = yaml.safe_dump(rules(".*")).replace("interval: 30s", f"interval: {_MINUTES}m")
    (tmp_path / "rules.yaml").write_text(recorded)
    tests = {
        "rule_files": ["rules.yaml"],
        "evaluation_interval": f"{_MINUTES}m",
        "tests": [test],
    }
    (tmp_path / "tests.yaml").write_text(yaml.safe_dump(tests))
    command = ["promtool", "test", "rules", str(tmp_path / "tests.yaml")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr

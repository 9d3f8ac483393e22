"""Alerts, rules and dashboards hold to telemetry.py, and each alert fires when it should."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from clipmill.cluster.monitoring import series
from clipmill.cluster.monitoring.dashboards import dashboards, queries
from clipmill.cluster.monitoring.rules import (
    ALERTS,
    RECORDINGS,
    REJECTED_RATIO,
    rule_tests,
    rules,
)
from clipmill.cluster.monitoring.series import (
    LABEL_VALUES,
    all_series,
    error_ratio,
    metrics_by_group,
)
from clipmill.serve.errors import RejectReason

ROOT = Path(__file__).resolve().parent.parent.parent
SERIES = re.compile(r"\b(?:clipmill|kube|argo)_[a-z0-9_]+\b(?!:)")
RECORDED = {r.name for r in RECORDINGS}


def asked(expression: str) -> set[str]:
    """Series that an expression asks for, recorded ones left out."""
    for name in RECORDED:
        expression = expression.replace(name, "")
    labels = {"clipmill_io_track"}
    return set(SERIES.findall(re.sub(r'"[^"]*"', "", expression))) - labels


def promtool(*arguments: str) -> subprocess.CompletedProcess[str]:
    if shutil.which("promtool") is None:
        pytest.skip("promtool isn't installed")
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)


def test_the_catalogue_has_every_section_of_telemetry():
    found = metrics_by_group()
    assert {"train", "data", "serving"} <= found.keys()
    names = {m.name: m.type for metrics in found.values() for m in metrics}
    assert names["clipmill_train_loss"] == "gauge"
    assert names["clipmill_train_samples_total"] == "counter"
    assert names["clipmill_serve_infer_seconds"] == "histogram"
    assert "clipmill_serve_infer_seconds_bucket" in all_series()


def test_every_query_asks_for_a_metric_that_telemetry_defines():
    known = all_series() | series.OTHERS
    texts = {a.name: a.expression for a in ALERTS}
    texts |= {r.name: r.expression for r in RECORDINGS}
    for name, dashboard in dashboards().items():
        texts |= {f"{name} {i}": q for i, q in enumerate(queries(dashboard))}
    assert len(texts) > 40
    assert {n: asked(t) - known for n, t in texts.items() if asked(t) - known} == {}
    assert all(asked(t) or any(r in t for r in RECORDED) for t in texts.values())


def test_every_metric_has_a_panel():
    texts = "\n".join(q for d in dashboards().values() for q in queries(d))
    metrics = [m for metrics in metrics_by_group().values() for m in metrics]
    assert [m.name for m in metrics if m.name not in texts] == []


LABEL = re.compile(r"(clipmill_[a-z0-9_]+)\{([^{}]*)\}")
ENUMERATED = {label for _, label in LABEL_VALUES}


def test_every_value_of_a_label_is_one_that_the_code_emits():
    texts = [a.expression for a in ALERTS] + [r.expression for r in RECORDINGS]
    texts += [name for a in ALERTS for name in (*a.firing_series, *a.quiet_series)]
    texts += [query for dashboard in dashboards().values() for query in queries(dashboard)]
    seen = set()
    for name, labels in (match for text in texts for match in LABEL.findall(text)):
        for label, value in re.findall(r'(\w+)=~?"([^"]*)"', labels):
            if label in ENUMERATED:
                assert value in LABEL_VALUES[name, label], f"{name}{{{label}={value!r}}}"
                seen.add((name, label))
    assert seen >= {
        (series.REQUESTS_REJECTED, "reason"),
        (series.SKIPPED_UPDATES, "reason"),
        (series.CHECKPOINTS, "outcome"),
        (series.SAMPLES_REJECTED, "reason"),
    }


def test_label_values_are_snake_case_and_of_labels_that_exist():
    labels = {
        (m.name, label) for ms in metrics_by_group().values() for m in ms for label in m.labels
    }
    assert labels >= LABEL_VALUES.keys()
    values = {value for values in LABEL_VALUES.values() for value in values}
    assert [value for value in values if not re.fullmatch(r"[a-z0-9]+(_[a-z0-9]+)*", value)] == []


def test_a_full_queue_alone_saturates_it():
    (alert,) = [a for a in ALERTS if a.name == "EndpointQueueSaturated"]
    assert f'reason="{RejectReason.QUEUE_FULL}"' in alert.expression


def test_recorded_series_that_are_used_exist():
    used = set()
    for text in [a.expression for a in ALERTS] + [
        q for d in dashboards().values() for q in queries(d)
    ]:
        used |= set(re.findall(r"\b(?:model|job):clipmill_[a-z0-9_:]+", text))
    assert used
    assert used <= RECORDED


def test_every_alert_has_a_runbook_of_what_to_do():
    for alert in ALERTS:
        text = (ROOT / "docs" / "runbooks" / f"{alert.name}.md").read_text()
        assert text.startswith(f"# {alert.name}\n")
        assert {"## Meaning", "## Actions"} <= set(text.splitlines()), alert.name
    names = {p.stem for p in (ROOT / "docs" / "runbooks").glob("*.md")} - {"README"}
    assert names == {alert.name for alert in ALERTS}


SELECTOR = re.compile(r"\b([a-z][a-z0-9_]+(?::[a-z0-9_]+)*)\b(?!:)(\{[^}]*\})?")


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "rules.yaml").write_text(yaml.safe_dump(rules("n")))
    return tmp_path


def test_every_selector_is_bound_to_the_namespaces():
    expressions = [r["expr"] for group in rules("a|b")["groups"] for r in group["rules"]]
    known = all_series() | series.OTHERS | RECORDED
    seen = set()
    for expression in expressions:
        for name, labels in SELECTOR.findall(expression):
            if name in known:
                assert re.search(r'namespace=~"a\|b"', labels), expression
                seen.add(name)
    assert seen > series.OTHERS
    assert len(seen) > 20


def test_each_alert_fires_when_it_should_and_is_silent_when_it_shouldnt(folder):
    done = promtool("check", "rules", str(folder / "rules.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr
    tests = rule_tests("rules.yaml")
    assert len(tests["tests"]) == 2 * len(ALERTS)
    (folder / "tests.yaml").write_text(yaml.safe_dump(tests))
    done = promtool("test", "rules", str(folder / "tests.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_ratios_are_zero_before_the_first_error_and_one_without_a_success(folder):
    job, other = ('{job="j",namespace="n"}', '{job="k",namespace="n"}')
    samples = [
        (error_ratio("5m"), '{model="depth",namespace="n"}', 0),
        (REJECTED_RATIO, job, 0),
        (REJECTED_RATIO, other, 1),
    ]
    reason = 'reason="unreadable_image"'
    inputs = {
        f'{series.SERVED_REQUESTS}{{model="depth",namespace="n",code="200"}}': "0+9x30",
        f"{series.SAMPLES_PROCESSED}{job}": "0+9x30",
        f"{series.SAMPLES_REJECTED}{other[:-1]},{reason}}}": "0+9x30",
    }
    tests = {
        "rule_files": ["rules.yaml"],
        "tests": [
            {
                "interval": "1m",
                "input_series": [{"series": k, "values": v} for k, v in inputs.items()],
                "promql_expr_test": [
                    {
                        "expr": name + labels,
                        "eval_time": "30m",
                        "exp_samples": [{"labels": name + labels, "value": value}],
                    }
                    for name, labels, value in samples
                ],
            }
        ],
    }
    (folder / "tests.yaml").write_text(yaml.safe_dump(tests))
    done = promtool("test", "rules", str(folder / "tests.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: alert.name)
def test_the_inputs_tell_the_alert_from_silence(alert, folder):
    """The two inputs swapped must fail, or the test above would prove nothing."""
    tests = rule_tests("rules.yaml")
    chosen = [t for t in tests["tests"] if t["name"].startswith(f"{alert.name} ")]
    series = [t["input_series"] for t in chosen]
    for test, other in zip(chosen, reversed(series), strict=True):
        test["input_series"] = other
    (folder / "tests.yaml").write_text(yaml.safe_dump({**tests, "tests": chosen}))
    done = promtool("test", "rules", str(folder / "tests.yaml"))
    assert done.returncode != 0
    assert (done.stdout + done.stderr).count("exp:") == 2


def test_dashboards_are_what_grafana_reads():
    uids = [d["uid"] for d in dashboards().values()]
    assert len(uids) == len(set(uids))
    for dashboard in dashboards().values():
        places = [(p["gridPos"]["x"], p["gridPos"]["y"]) for p in dashboard["panels"]]
        assert len(places) == len(set(places))
        for panel in dashboard["panels"]:
            assert panel["title"]
            assert panel["targets"]

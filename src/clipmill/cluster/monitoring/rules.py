"""Recording rules: what alerts and dashboards ask for often."""

from dataclasses import dataclass
from clipmill.cluster.monitoring import expressions as e
import json
from typing import Any
from clipmill.cluster.monitoring.alerts import ALERTS, RUNBOOKS, Alert
from clipmill.cluster.monitoring.dashboards import dashboards
from clipmill.cluster.manifests import yaml_text

BURN_WINDOWS = ("5m", "30m", "1h", "6h")
"""Windows of the error ratio: two pairs, for a fast burn and a slow one."""
_HOUR = "[1h]"
_DAY_BEFORE = "[1d] offset 1h"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """A series computed from others."""

    name: str
    """Name of the series, ``level:metric:operation``."""
    expression: str
    """PromQL."""


def drift(metric: str) -> str:
    """Name of the recorded distance between a metric's last hour and the day before it, 0 to 1."""
    return f"model:{metric.removesuffix('_total')}:drift1h"


def _histogram_drift(metric: str) -> Recording:
    """Kolmogorov and Smirnov's distance: the largest gap between two cumulative shares."""

    def shares(when: str) -> str:
        return (
            f"sum by (namespace, model, le) (rate({metric}_bucket{when}))"
            " / on (namespace, model) group_left ()"
            f" sum by (namespace, model) (rate({metric}_count{when}))"
        )

    hour, day = shares(_HOUR), shares(_DAY_BEFORE)
    return Recording(
        name=drift(metric), expression=f"max by (namespace, model) (abs({hour} - ({day})))"
    )


def _class_drift(metric: str) -> Recording:
    """Total variation distance: half of what the classes' shares differ by, summed."""

    def shares(when: str) -> str:
        rate = f"rate({metric}{when})"
        return (
            f"sum by (namespace, model, class) ({rate})"
            f" / on (namespace, model) group_left () sum by (namespace, model) ({rate})"
        )

    hour, day = shares(_HOUR), shares(_DAY_BEFORE)
    return Recording(
        name=drift(metric), expression=f"sum by (namespace, model) (abs({hour} - ({day}))) / 2"
    )


def error_ratio(window: str) -> str:
    """Name of the recorded error ratio of an endpoint over a window."""
    return f"model:clipmill_serve_errors:ratio_rate{window}"


RECORDINGS: tuple[Recording, ...] = (
    *(
        Recording(
            name=error_ratio(window),
            expression="sum by (namespace, model) "
            f'(rate({e.SERVED_REQUESTS}{{code=~"5.."}}[{window}]))'
            f" / sum by (namespace, model) (rate({e.SERVED_REQUESTS}[{window}]))",
        )
        for window in BURN_WINDOWS
    ),
    Recording(
        name="model:clipmill_serve_requests:rate5m",
        expression=f"sum by (namespace, model) (rate({e.SERVED_REQUESTS}[5m]))",
    ),
    Recording(
        name="model:clipmill_serve_queue_wait_seconds:p99_5m",
        expression="histogram_quantile(0.99, sum by (namespace, model, le) "
        f"(rate({e.QUEUE_WAIT}[5m])))",
    ),
    Recording(
        name="job:clipmill_train_samples:rate5m",
        expression=f"sum by (namespace, job) (rate({e.TRAINED}[5m]))",
    ),
    Recording(
        name="job:clipmill_data_quarantined:ratio_rate15m",
        expression=f"sum by (namespace, job) (rate({e.QUARANTINED}[15m])) / "
        f"(sum by (namespace, job) (rate({e.SAMPLES}[15m]))"
        f" + sum by (namespace, job) (rate({e.QUARANTINED}[15m])))",
    ),
    *(_histogram_drift(metric) for metric in (e.PIXELS, e.BRIGHTNESS, e.METRES)),
    _class_drift(e.CLASS_SHARE),
)



def rules() -> dict[str, Any]:
    """Rule groups as Prometheus reads them."""
    recorded = [{"record": r.name, "expr": r.expression} for r in RECORDINGS]
    return {
        "groups": [
            {"name": "clipmill-recording", "interval": "30s", "rules": recorded},
            {"name": "clipmill-alerts", "rules": [_rule(alert) for alert in ALERTS]},
        ]
    }


def rule_tests(rule_file: str) -> dict[str, Any]:
    """promtool's tests: each alert fires on one input and is silent on the other."""
    return {
        "rule_files": [rule_file],
        "evaluation_interval": "1m",
        "tests": [
            {
                "name": f"{alert.name} {'fires' if firing else 'is silent'}",
                "interval": "1m",
                "input_series": [
                    {"series": series, "values": values}
                    for series, values in (alert.fires if firing else alert.silent).items()
                ],
                "promql_expr_test": [
                    {
                        "expr": f"count({_firing(alert)}) or vector(0)",
                        "eval_time": alert.after,
                        "exp_samples": [{"labels": "{}", "value": int(firing)}],
                    }
                ],
            }
            for alert in ALERTS
            for firing in (True, False)
        ],
    }


def files() -> dict[str, str]:
    """Text by path, under the chart's ``files/``."""
    made = {"rules.yaml": yaml_text(rules())}
    for name, dashboard in dashboards().items():
        made[f"dashboards/{name}.json"] = json.dumps(dashboard, indent=1) + "\n"
    return made


def _firing(alert: Alert) -> str:
    return f'ALERTS{{alertname="{alert.name}",alertstate="firing"}}'


def _rule(alert: Alert) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": alert.expression,
        "for": alert.lasting,
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": alert.summary,
            "runbook_url": f"{RUNBOOKS}/{alert.name}.md",
        },
    }

"""The rules and dashboards as files, for the chart and for those without it."""

import json
from typing import Any

from clipmill.cluster.monitoring.alerts import ALERTS, RUNBOOKS, Alert
from clipmill.cluster.monitoring.dashboards import dashboards
from clipmill.cluster.monitoring.recording import RECORDINGS
from clipmill.cluster.yaml_text import yaml_text


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

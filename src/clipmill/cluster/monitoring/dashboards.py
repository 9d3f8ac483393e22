"""Grafana dashboards: one per group of metrics, with a panel per metric, and one of promotion.

A new metric needs no change here: its group's dashboard gets a panel for it.
"""

from typing import Any

from clipmill.cluster.monitoring.series import PrometheusMetric, error_ratio, metrics_by_group

_WIDTH, _HEIGHT, _COLUMNS = 12, 8, 2
_QUANTILES = (0.5, 0.9, 0.99)
_UNITS = {"_ratio": "percentunit", "_seconds": "s", "_bytes": "bytes", "_meters": "lengthm"}
"""Grafana's unit by a part of the metric's name."""
_SELECTED = 'namespace=~"$namespace"'


def dashboards() -> dict[str, dict[str, Any]]:
    """Return dashboards as Grafana's JSON, by file name without extension."""
    by_name = {
        f"clipmill-{name}": _dashboard(name, [_panel(metric) for metric in metrics])
        for name, metrics in metrics_by_group().items()
    }
    return by_name | {"clipmill-promotion": _dashboard("promotion", _promotion())}


def queries(dashboard: dict[str, Any]) -> list[str]:
    """Return every PromQL expression of a dashboard."""
    return [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]


def _panel(metric: PrometheusMetric) -> dict[str, Any]:
    selected = f"{metric.name}{{{_SELECTED}}}"
    if metric.type == "gauge":
        return _chart(metric.help, {"__auto": selected}, metric.name)
    if metric.type == "counter":
        title = f"{metric.help}, per second"
        # Seconds per second are a ratio.
        unit = "_ratio" if "_seconds" in metric.name else ""
        return _chart(title, {"__auto": f"rate({selected}[$__rate_interval])"}, unit)
    bucket = f"{metric.name}_bucket{{{_SELECTED}}}"
    # "without" keeps whatever labels the metric has, now or later.
    rate = f"sum without (pod, instance, endpoint) (rate({bucket}[$__rate_interval]))"
    # An endpoint's models may be a stable one and a canary.
    labels = [*metric.labels, *(["clipmill_io_track"] if "model" in metric.labels else [])]
    legend = "".join(f" {{{{{label}}}}}" for label in labels)
    lines = {f"p{q * 100:g}{legend}": f"histogram_quantile({q}, {rate})" for q in _QUANTILES}
    return _chart(metric.help, lines, metric.name)


def _promotion() -> list[dict[str, Any]]:
    by_track = "namespace, model, clipmill_io_track"
    requests = f"clipmill_serve_requests_total{{{_SELECTED}}}"
    failed = f'clipmill_serve_requests_total{{{_SELECTED},code=~"5.."}}'
    return [
        _chart("Served models", {"__auto": f"clipmill_serve_model_info{{{_SELECTED}}}"}, ""),
        _chart(
            "Requests per second, stable and canary",
            {"__auto": f"sum by ({by_track}) (rate({requests}[5m]))"},
            "",
        ),
        _chart(
            "Share of failed requests, stable and canary",
            {
                "__auto": f"sum by ({by_track}) (rate({failed}[5m]))"
                f" / sum by ({by_track}) (rate({requests}[5m]))"
            },
            "_ratio",
        ),
        _chart(
            "Share of failed requests, one hour",
            {"__auto": f"{error_ratio('1h')}{{{_SELECTED}}}"},
            "_ratio",
        ),
    ]


def _chart(title: str, lines: dict[str, str], name: str) -> dict[str, Any]:
    unit = next((unit for part, unit in _UNITS.items() if part in name), "short")
    return {
        "title": title,
        "type": "timeseries",
        "datasource": {"type": "prometheus", "uid": "${datasource}"},
        "fieldConfig": {"defaults": {"unit": unit}, "overrides": []},
        "targets": [
            {"refId": chr(ord("A") + i), "expr": expression, "legendFormat": legend}
            for i, (legend, expression) in enumerate(lines.items())
        ],
    }


def _dashboard(name: str, panels: list[dict[str, Any]]) -> dict[str, Any]:
    for i, panel in enumerate(panels):
        panel["id"] = i + 1
        row, column = divmod(i, _COLUMNS)
        panel["gridPos"] = {
            "x": column * _WIDTH,
            "y": row * _HEIGHT,
            "w": _WIDTH,
            "h": _HEIGHT,
        }
    return {
        "uid": f"clipmill-{name}",
        "title": f"clipmill: {name}",
        "tags": ["clipmill"],
        "schemaVersion": 39,
        "time": {"from": "now-6h", "to": "now"},
        "refresh": "30s",
        "templating": {
            "list": [
                {"name": "datasource", "type": "datasource", "query": "prometheus"},
                {
                    "name": "namespace",
                    "type": "query",
                    "datasource": {"type": "prometheus", "uid": "${datasource}"},
                    "query": "label_values(up, namespace)",
                    "multi": True,
                    "includeAll": True,
                    "allValue": ".*",
                },
            ]
        },
        "panels": panels,
    }

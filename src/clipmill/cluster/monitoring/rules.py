"""Prometheus rules: recordings, alerts, and promtool's tests of the alerts.

An alert names its labels' values by the constants of the code that emits them.
"""

import re
from dataclasses import dataclass
from typing import Any, Final, Literal

from clipmill.cluster.monitoring import series as e
from clipmill.cluster.monitoring.series import error_ratio
from clipmill.errors import BadSampleReason
from clipmill.serve.errors import RejectReason
from clipmill.telemetry import TOTAL_LOSS, Outcome, SkipReason

RUNBOOKS = "https://github.com/clipmill/clipmill/blob/main/docs/runbooks"
BURN_WINDOWS = ("5m", "30m", "1h", "6h")
"""Windows of the error ratio: two pairs, for a fast burn and a slow one."""
REJECTED_RATIO = "job:clipmill_data_samples_rejected:ratio_rate15m"
"""Recorded share of samples that a data job rejects."""
NAMESPACES: Final = "NAMESPACES"
"""Stands in the rules for a regular expression of an installation's namespaces: the chart's."""
_SERIES = re.compile(
    r"\b((?:(?:model|job):clipmill_\w+:\w+|(?:clipmill|kube)_\w+)\b)(?!:)(?:\{([^{}]*)\})?"
)
_HOUR = "[1h]"
_DAY_BEFORE = "[1d] offset 1h"


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """A recording rule: a series computed from others."""

    name: str
    """Name of the series, ``level:metric:operation``."""
    expression: str
    """PromQL."""


def _ratio(part: str, total: str, labels: str) -> str:
    """Return PromQL for the share of a rate in another: 0, not absent, before the first error."""
    parts = f"sum by ({labels}) (rate({part}))"
    totals = f"sum by ({labels}) (rate({total}))"
    return f"({parts} or 0 * {totals}) / {totals}"


def _increased(counter: str, window: str, labels: str) -> str:
    """Return PromQL for a counter that grew, or that begins, within the window."""
    grown = f"sum by ({labels}) (increase({counter}[{window}])) > 0"
    begun = f"sum by ({labels}) ({counter} unless {counter} offset {window}) > 0"
    return f"({grown}) or ({begun})"


def drift(metric: str) -> str:
    """Return the name of the recorded drift of a metric, 0 to 1, from the day before to an hour."""
    return f"model:{metric.removesuffix('_total')}:drift1h"


def _histogram_drift(metric: str) -> Recording:
    """Record the Kolmogorov-Smirnov distance, the largest gap of two cumulative distributions."""

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
    """Record the total variation distance, half the sum of the differences of shares."""

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


def _rejected_ratio(window: str) -> str:
    """Return PromQL for rejected samples among all; 0 before the first, 1 if none is processed."""
    rejected = f"sum by (namespace, job) (rate({e.SAMPLES_REJECTED}[{window}]))"
    processed = f"sum by (namespace, job) (rate({e.SAMPLES_PROCESSED}[{window}]))"
    rejected, processed = (
        f"({rejected} or 0 * {processed})",
        f"({processed} or 0 * {rejected})",
    )
    return f"{rejected} / ({processed} + {rejected})"


RECORDINGS: tuple[Recording, ...] = (
    *(
        Recording(
            name=error_ratio(window),
            expression=_ratio(
                f'{e.SERVED_REQUESTS}{{code=~"5.."}}[{window}]',
                f"{e.SERVED_REQUESTS}[{window}]",
                "namespace, model",
            ),
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
        expression=f"sum by (namespace, job) (rate({e.TRAINED_SAMPLES}[5m]))",
    ),
    Recording(
        name=REJECTED_RATIO,
        expression=_rejected_ratio("15m"),
    ),
    *(_histogram_drift(metric) for metric in (e.PIXELS, e.BRIGHTNESS, e.DEPTH)),
    _class_drift(e.CLASS_FRACTION),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Alert:
    """An alert, with an input that must fire it and one that must not."""

    name: str
    """Name; its runbook is the file of that name in docs/runbooks."""
    expression: str
    """PromQL that has a value while something is wrong."""
    for_: str
    """Time for which the expression must hold."""
    severity: Literal["page", "ticket"]
    """``page`` wakes someone, ``ticket`` waits for working hours."""
    summary: str
    """One line; may hold Prometheus' templates."""
    firing_series: dict[str, str]
    """Values by series, a minute apart, that must fire it at ``eval_time``."""
    quiet_series: dict[str, str]
    """Values by series that must not fire it."""
    source: Literal["", "kube-state-metrics", "argo"] = ""
    """Whose metrics it queries, if not clipmill's; the chart has a value for each."""
    eval_time: str = "30m"
    """Time at which the inputs are evaluated."""


_ERROR_BUDGET = 1 - e.OBJECTIVE
# A distance of distributions, 0 to 1: two halves of one stream stay below a tenth.
_DRIFT_THRESHOLD = 0.25
# In usual distances of a training image from their mean: means of images like them stay below 0.2.
_EMBEDDING_THRESHOLD = 1
_ENOUGH_IMAGES = (
    "and on (namespace, model) "
    f"sum by (namespace, model) (increase({e.BRIGHTNESS}_count[1h])) > 200"
)
_QUEUE_FULL = f'{e.REQUESTS_REJECTED}{{reason="{RejectReason.QUEUE_FULL}"}}'
_DATA_WAIT = f"max by (namespace, job, rank) (rate({e.DATA_WAIT}[10m]))"
_ERRORS = f'{e.SERVED_REQUESTS}{{model="depth",namespace="n",code="503"}}'
_SUCCESSES = f'{e.SERVED_REQUESTS}{{model="depth",namespace="n",code="200"}}'


def _burn(short: str, long: str, factor: float) -> str:
    budget = f"{factor * _ERROR_BUDGET:.4g}"
    return f"{error_ratio(long)} > {budget} and {error_ratio(short)} > {budget}"


def _drifted(*metrics: str) -> str:
    """Return PromQL for drift of any metric in an hour with enough images."""
    far = " or ".join(f"{drift(metric)} > {_DRIFT_THRESHOLD}" for metric in metrics)
    return f"({far}) {_ENOUGH_IMAGES}"


def _bucketed(metric: str, low: str, high: str) -> dict[str, str]:
    """Return the series of a histogram, from the values of its lower bucket and of all."""
    labels = 'model="depth",namespace="n"'
    return {
        f'{metric}_bucket{{{labels},le="0.5"}}': low,
        f'{metric}_bucket{{{labels},le="+Inf"}}': high,
        f"{metric}_count{{{labels}}}": high,
    }


def _shares(floor: str, wall: str) -> dict[str, str]:
    labels = 'model="depth",namespace="n"'
    return {
        f'{e.CLASS_FRACTION}{{{labels},class="floor"}}': floor,
        f'{e.CLASS_FRACTION}{{{labels},class="wall"}}': wall,
        f"{e.BRIGHTNESS}_count{{{labels}}}": "0+10x360",
    }


def _embedded(*distances: str) -> dict[str, str]:
    """Return the distances of each replica, and a steady stream of images."""
    labels = 'model="depth",namespace="n"'
    replicas = {
        f'{e.EMBEDDING_DRIFT}{{{labels},version="1",pod="{pod}"}}': values
        for pod, values in enumerate(distances)
    }
    return replicas | {f"{e.BRIGHTNESS}_count{{{labels}}}": "0+10x180"}


def _rejected(reason: RejectReason) -> str:
    return f'{e.REQUESTS_REJECTED}{{model="depth",namespace="n",reason="{reason}"}}'


def _checkpoints(outcome: Outcome) -> str:
    return f'{e.CHECKPOINTS}{{outcome="{outcome}"}}'


def _workflows_failed() -> str:
    """Return PromQL for workflows that failed in the namespaces.

    Argo's own label is the workflow's namespace. Prometheus renames it, for that of the
    controller's pod, unless the monitor honors labels.
    """
    failed = 'argo_workflows_total_count{phase=~"Failed|Error",'
    honored = failed + f'exported_namespace="",namespace=~"{NAMESPACES}"}}'
    renamed = failed + f'exported_namespace=~"{NAMESPACES}"}}'
    by_renamed = _increased(renamed, "15m", "exported_namespace, phase")
    return (
        f"({_increased(honored, '15m', 'namespace, phase')}) or "
        f'label_replace({by_renamed}, "namespace", "$1", "exported_namespace", "(.+)")'
    )


def _workflows(phase: str, workflow_namespace: str, namespace: str = "argo") -> str:
    """Return the count of a namespace's workflows, from a controller in another one."""
    return (
        f'argo_workflows_total_count{{phase="{phase}",exported_namespace="{workflow_namespace}",'
        f'namespace="{namespace}"}}'
    )


def _train(name: str, **labels: str) -> str:
    """Return a series with the labels that the chart's monitors give to a job's pods."""
    job = {"clipmill_io_job": "j", "container": "node", "job": "j", "namespace": "n"}
    text = ",".join(f'{k}="{v}"' for k, v in {**job, **labels}.items())
    return f"{name}{{{text}}}"


def _neighbors(series: dict[str, str]) -> dict[str, str]:
    """Return the same series of another job, or endpoint, of the same namespace."""
    others = {s.replace('"j"', '"k"').replace('"depth"', '"other"'): v for s, v in series.items()}
    return {name: values for name, values in others.items() if name not in series}


def _elsewhere(series: dict[str, str]) -> dict[str, str]:
    """Return the same series of another namespace."""
    return {s.replace('namespace="n"', 'namespace="other"'): v for s, v in series.items()}


ALERTS: tuple[Alert, ...] = (
    Alert(
        name="EndpointFastBurn",
        # Google's SRE workbook, chapter 5: 2% of a month's budget within an hour.
        expression=_burn("5m", "1h", 14.4),
        for_="2m",
        severity="page",
        summary="{{ $labels.model }} fails {{ $value | humanizePercentage }} of its requests",
        firing_series={_ERRORS: "0+30x90", _SUCCESSES: "0+70x90"},
        quiet_series={_ERRORS: "0+1x90", _SUCCESSES: "0+999x90"},
        eval_time="80m",
    ),
    Alert(
        name="EndpointSlowBurn",
        # The same chapter: 5% of the budget within six hours.
        expression=_burn("30m", "6h", 6),
        for_="15m",
        severity="ticket",
        summary="{{ $labels.model }} fails {{ $value | humanizePercentage }} of its requests",
        firing_series={_ERRORS: "0+10x420", _SUCCESSES: "0+90x420"},
        quiet_series={_ERRORS: "0+1x420", _SUCCESSES: "0+99x420"},
        eval_time="400m",
    ),
    Alert(
        name="EndpointQueueSaturated",
        expression=f"sum by (namespace, model) (rate({_QUEUE_FULL}[5m])) > 0.1",
        for_="10m",
        severity="ticket",
        summary="{{ $labels.model }} rejects requests: its queue is full",
        firing_series={_rejected(RejectReason.QUEUE_FULL): "0+60x40"},
        quiet_series={
            _rejected(RejectReason.QUEUE_FULL): "0+1x40",
            # Clients' mistakes don't fill a queue.
            _rejected(RejectReason.PROTOCOL): "0+60x40",
            _rejected(RejectReason.DISCONNECTED): "0+60x40",
        },
    ),
    Alert(
        name="EndpointModelsFileStale",
        expression=f"max by (namespace, pod) ({e.MODELS_FILE_STALE}) > 0",
        for_="10m",
        severity="ticket",
        summary="{{ $labels.pod }} serves other models than its models file lists",
        firing_series={f'{e.MODELS_FILE_STALE}{{namespace="n",pod="p"}}': "0x10 1x30"},
        # A retry that succeeds.
        quiet_series={f'{e.MODELS_FILE_STALE}{{namespace="n",pod="p"}}': "0x22 1x5 0x10"},
    ),
    Alert(
        name="InputDrift",
        expression=_drifted(e.PIXELS, e.BRIGHTNESS),
        for_="30m",
        severity="ticket",
        summary="images sent to {{ $labels.model }} are unlike those of the day before",
        # Four hours of half dark, half bright images; then dark ones alone.
        firing_series=_bucketed(e.BRIGHTNESS, "0+5x240 1210+10x120", "0+10x360"),
        quiet_series=_bucketed(e.BRIGHTNESS, "0+5x240 1206+6x120", "0+10x360"),
        eval_time="330m",
    ),
    Alert(
        name="EmbeddingDrift",
        # A replica that has seen too few images says NaN, which no comparison lets through.
        expression=f"avg by (namespace, model, version) ({e.EMBEDDING_DRIFT} >= 0)"
        f" > {_EMBEDDING_THRESHOLD} {_ENOUGH_IMAGES}",
        for_="30m",
        severity="ticket",
        summary="images sent to {{ $labels.model }} are unlike those that it was trained on",
        firing_series=_embedded("0.1x60 2x120", "NaN " * 180),
        quiet_series=_embedded("0.2x180", "NaN " * 60 + "0.9x120"),
        eval_time="150m",
    ),
    Alert(
        name="PredictionDrift",
        expression=_drifted(e.DEPTH, e.CLASS_FRACTION),
        for_="30m",
        severity="ticket",
        summary="what {{ $labels.model }} predicts is unlike the day before",
        firing_series=_shares("0+5x240 1209+9x120", "0+5x240 1201+1x120"),
        quiet_series=_shares("0+5x240 1206+6x120", "0+5x240 1204+4x120"),
        eval_time="330m",
    ),
    Alert(
        name="TrainingStalled",
        # A step counter that stands still while the process is still scraped.
        expression=f"changes({e.STEP}[20m]) == 0 and {e.STEP} > 0",
        for_="5m",
        severity="page",
        summary="{{ $labels.job }} has taken no step for 20 minutes",
        firing_series={_train(e.STEP): "100x60"},
        quiet_series={_train(e.STEP): "100+1x60"},
        eval_time="40m",
    ),
    Alert(
        name="TrainingWatchdogTimeout",
        expression=f"increase({e.WATCHDOG_TIMEOUTS}[15m]) > 0",
        for_="1m",
        severity="page",
        summary="{{ $labels.job }} has a rank without heartbeat, or a step over its timeout",
        firing_series={_train(e.WATCHDOG_TIMEOUTS): "0x20 1x20"},
        quiet_series={_train(e.WATCHDOG_TIMEOUTS): "1x40"},
    ),
    Alert(
        name="TrainingStraggler",
        # One rank that waits for its batches much longer than the middle one holds up all.
        # Rank 0 reports all of them, and each its own.
        expression=f"max by (namespace, job) ({_DATA_WAIT}) > "
        f"0.2 + 3 * quantile by (namespace, job) (0.5, {_DATA_WAIT})",
        for_="10m",
        severity="ticket",
        summary="a rank of {{ $labels.job }} waits for data while the others don't",
        firing_series={
            _train(e.DATA_WAIT, rank="0"): "0+1x60",
            _train(e.DATA_WAIT, rank="1"): "0+1x60",
            _train(e.DATA_WAIT, rank="2"): "0+40x60",
        },
        quiet_series={
            _train(e.DATA_WAIT, rank="0"): "0+20x60",
            _train(e.DATA_WAIT, rank="1"): "0+21x60",
            _train(e.DATA_WAIT, rank="2"): "0+22x60",
        },
    ),
    Alert(
        name="TrainingLossNotFinite",
        # NaN is the one value that differs from itself.
        expression=f"({e.LOSS} != {e.LOSS}) or (abs({e.LOSS}) == Inf)",
        for_="0m",
        severity="page",
        summary="the {{ $labels.term }} loss of {{ $labels.job }} is {{ $value }}",
        firing_series={_train(e.LOSS, model="clip", term=TOTAL_LOSS): "2x10" + " NaN" * 30},
        quiet_series={_train(e.LOSS, model="clip", term=TOTAL_LOSS): "2x40"},
    ),
    Alert(
        name="TrainingUpdatesSkipped",
        expression=f"sum by (namespace, job, reason) (increase({e.SKIPPED_UPDATES}[15m])) > 10",
        for_="0m",
        severity="ticket",
        summary="{{ $labels.job }} skips optimizer updates: {{ $labels.reason }}",
        firing_series={_train(e.SKIPPED_UPDATES, reason=SkipReason.NOT_FINITE): "0+5x40"},
        quiet_series={_train(e.SKIPPED_UPDATES, reason=SkipReason.NOT_FINITE): "0x20 1x20"},
    ),
    Alert(
        name="CheckpointFailed",
        expression=_increased(_checkpoints(Outcome.FAILURE), "30m", "namespace, job"),
        for_="0m",
        severity="ticket",
        summary="{{ $labels.job }} couldn't write a checkpoint",
        # The series begins with the first failure.
        firing_series={_train(e.CHECKPOINTS, outcome=Outcome.FAILURE): "_x10 1x30"},
        quiet_series={_train(e.CHECKPOINTS, outcome=Outcome.SUCCESS): "0+1x40"},
    ),
    Alert(
        name="CheckpointLate",
        # Of a job that ran two hours ago and still does; one without a checkpoint has no series.
        expression=f"(sum by (namespace, job) (changes({e.STEP}[2h])) > 0"
        f" and sum by (namespace, job) ({e.STEP} offset 2h) >= 0)"
        f" unless ({_increased(_checkpoints(Outcome.SUCCESS), '2h', 'namespace, job')})",
        for_="10m",
        severity="ticket",
        summary="{{ $labels.job }} has written no checkpoint for two hours",
        firing_series={_train(e.STEP): "0+10x200"},
        quiet_series={
            # The series begins with the first checkpoint.
            _train(e.CHECKPOINTS, outcome=Outcome.SUCCESS): "_x60 1x140",
            _train(e.STEP): "0+10x200",
        },
        eval_time="150m",
    ),
    Alert(
        name="ShardErrorsHigh",
        expression=f"{REJECTED_RATIO} > 0.1",
        for_="15m",
        severity="ticket",
        summary="{{ $labels.job }} rejects {{ $value | humanizePercentage }} of its samples",
        firing_series={
            _train(e.SAMPLES_PROCESSED): "0+80x60",
            _train(e.SAMPLES_REJECTED, reason=BadSampleReason.UNREADABLE_IMAGE): "0+20x60",
        },
        quiet_series={
            _train(e.SAMPLES_PROCESSED): "0+99x60",
            _train(e.SAMPLES_REJECTED, reason=BadSampleReason.UNREADABLE_IMAGE): "0+1x60",
        },
        eval_time="50m",
    ),
    Alert(
        name="PipelineFailed",
        expression=_workflows_failed(),
        for_="0m",
        severity="ticket",
        summary="a pipeline run or data workflow in {{ $labels.namespace }} ended as "
        "{{ $labels.phase }}",
        source="argo",
        firing_series={_workflows("Failed", "n"): "_x20 1x20"},
        quiet_series={
            _workflows("Succeeded", "n"): "0+1x40",
            # The controller's namespace is this installation's, the workflow's isn't.
            _workflows("Failed", "else", namespace="n"): "_x20 1x20",
        },
    ),
    Alert(
        name="EndpointRestarts",
        expression="increase(kube_pod_container_status_restarts_total"
        '{container="kserve-container"}[30m]) > 2',
        for_="0m",
        severity="ticket",
        summary="{{ $labels.pod }} keeps restarting",
        source="kube-state-metrics",
        firing_series={
            'kube_pod_container_status_restarts_total{container="kserve-container",namespace="n",'
            'pod="p"}': "0x5 1x5 2x5 4x30"
        },
        quiet_series={
            'kube_pod_container_status_restarts_total{container="kserve-container",namespace="n",'
            'pod="p"}': "3x40"
        },
    ),
)


def rules(namespaces: str) -> dict[str, Any]:
    """Return the rule groups as Prometheus reads them, alerts by the source of their metrics.

    They see the series of these namespaces only, a regular expression: each installation in a
    cluster has rules of its own.
    """
    recorded = [{"record": r.name, "expr": _bind(r.expression, namespaces)} for r in RECORDINGS]
    groups = [{"name": "clipmill-recording", "interval": "30s", "rules": recorded}]
    for source in dict.fromkeys(alert.source for alert in ALERTS):
        name = f"clipmill-alerts-{source}".removesuffix("-")
        alerts = [_rule(alert, namespaces) for alert in ALERTS if alert.source == source]
        groups.append({"name": name, "rules": alerts})
    return {"groups": groups}


def _bind(expression: str, namespaces: str) -> str:
    """Return the expression with each of its selectors bound to the namespaces."""

    def bound(match: re.Match[str]) -> str:
        labels = ",".join(filter(None, (match[2], f'namespace=~"{NAMESPACES}"')))
        return f"{match[1]}{{{labels}}}"

    return _SERIES.sub(bound, expression).replace(NAMESPACES, namespaces)


def rule_tests(rule_file: str) -> dict[str, Any]:
    """Return promtool's tests of the rules of namespace ``n``.

    Each alert fires on one input and is silent on the other. Another job or endpoint of the
    namespace is well: it must not hide the alert. Another installation's must not fire it.
    """
    return {
        "rule_files": [rule_file],
        "evaluation_interval": "1m",
        "tests": [
            {
                "name": f"{alert.name} {'fires' if firing else 'is silent'}",
                "interval": "1m",
                "input_series": [
                    {"series": series, "values": values}
                    for series, values in (
                        alert.firing_series | _neighbors(alert.quiet_series)
                        if firing
                        else alert.quiet_series | _elsewhere(alert.firing_series)
                    ).items()
                ],
                "promql_expr_test": [
                    {
                        "expr": f"count({_firing(alert)}) or vector(0)",
                        "eval_time": alert.eval_time,
                        "exp_samples": [{"labels": "{}", "value": int(firing)}],
                    }
                ],
            }
            for alert in ALERTS
            for firing in (True, False)
        ],
    }


def _firing(alert: Alert) -> str:
    return f'ALERTS{{alertname="{alert.name}",alertstate="firing"}}'


def _rule(alert: Alert, namespaces: str) -> dict[str, Any]:
    return {
        "alert": alert.name,
        "expr": _bind(alert.expression, namespaces),
        "for": alert.for_,
        "labels": {"severity": alert.severity},
        "annotations": {
            "summary": alert.summary,
            "runbook_url": f"{RUNBOOKS}/{alert.name}.md",
        },
    }

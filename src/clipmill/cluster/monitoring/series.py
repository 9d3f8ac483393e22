"""Prometheus series: names for rules and rollouts, and all metrics of telemetry by group."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Final, Literal

from clipmill import telemetry
from clipmill.errors import BadSampleReason
from clipmill.serve.errors import RejectReason
from clipmill.telemetry import CheckpointPhase, Outcome, RequestOutcome, SkipReason

SERVED_REQUESTS: Final = "clipmill_serve_requests_total"
REQUESTS_REJECTED: Final = "clipmill_serve_requests_rejected_total"
QUEUE_DEPTH: Final = "clipmill_serve_queue_depth"
QUEUE_WAIT: Final = "clipmill_serve_queue_wait_seconds_bucket"
PIXELS: Final = "clipmill_serve_image_pixels"
BRIGHTNESS: Final = "clipmill_serve_image_brightness"
EMBEDDING_DRIFT: Final = "clipmill_serve_embedding_drift"
DEPTH: Final = "clipmill_serve_predicted_depth_meters"
MODELS_FILE_STALE: Final = "clipmill_serve_models_file_stale"
CLASS_FRACTION: Final = "clipmill_serve_predicted_class_fraction_total"
LOSS: Final = "clipmill_train_loss"
STEP: Final = "clipmill_train_step"
TRAINED_SAMPLES: Final = "clipmill_train_samples_total"
WATCHDOG_TIMEOUTS: Final = "clipmill_train_watchdog_timeouts_total"
SKIPPED_UPDATES: Final = "clipmill_train_skipped_updates_total"
DATA_WAIT: Final = "clipmill_train_data_wait_seconds_total"
CHECKPOINTS: Final = "clipmill_train_checkpoints_total"
SAMPLES_PROCESSED: Final = "clipmill_data_samples_processed_total"
SAMPLES_REJECTED: Final = "clipmill_data_samples_rejected_total"

OTHERS: Final = frozenset(
    {
        # kube-state-metrics, Argo Workflows (which runs Kubeflow Pipelines too)
        "kube_pod_container_status_restarts_total",
        "argo_workflows_total_count",
    }
)
"""Series of others, which alerts may use."""

LABEL_VALUES: Mapping[tuple[str, str], frozenset[str]] = {
    ("clipmill_caption_requests_total", "outcome"): frozenset(RequestOutcome),
    ("clipmill_caption_samples_total", "outcome"): frozenset(
        {telemetry.CAPTIONED, *BadSampleReason}
    ),
    (SAMPLES_REJECTED, "reason"): frozenset(BadSampleReason),
    ("clipmill_data_samples_replaced_total", "reason"): frozenset(BadSampleReason),
    (REQUESTS_REJECTED, "reason"): frozenset(RejectReason),
    ("clipmill_serve_model_reloads_total", "outcome"): frozenset(Outcome),
    ("clipmill_train_checkpoint_seconds", "phase"): frozenset(CheckpointPhase),
    (CHECKPOINTS, "outcome"): frozenset(Outcome),
    (SKIPPED_UPDATES, "reason"): frozenset(SkipReason),
}
"""All values of a metric's label, for labels that the code fills from a fixed set."""

OBJECTIVE: Final = 0.99
"""Service level objective: share of requests without a 5xx, over 30 days."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PrometheusMetric:
    """A metric as Prometheus shows it."""

    name: str
    """Name of the family, a counter's ``_total`` included."""
    type: Literal["gauge", "counter", "histogram"]
    """Its type."""
    help: str
    """Its help text."""
    labels: tuple[str, ...]
    """Names of its labels."""

    @property
    def series(self) -> tuple[str, ...]:
        """Names under which it is queried."""
        if self.type == "histogram":
            return tuple(f"{self.name}_{part}" for part in ("bucket", "count", "sum"))
        return (self.name,)


@cache
def metrics_by_group() -> dict[str, tuple[PrometheusMetric, ...]]:
    """Return metrics by group: ``train``, ``data``, ``serving`` and all others of telemetry.

    A group is a cached function of telemetry whose name ends in ``_metrics``.
    """
    groups = {}
    for name, make in sorted(vars(telemetry).items()):
        if name.endswith("_metrics") and hasattr(make, "cache_clear"):
            group = make()
            groups[name.removesuffix("_metrics")] = tuple(
                _metric(getattr(group, field.name)) for field in fields(group)
            )
    return groups


def all_series() -> frozenset[str]:
    """Return each name that may be queried."""
    return frozenset(
        s for metrics in metrics_by_group().values() for m in metrics for s in m.series
    )


def _metric(collector: Any) -> PrometheusMetric:
    (family,) = collector.describe()
    kind = family.type
    name = f"{family.name}_total" if kind == "counter" else family.name
    labels = tuple(collector._labelnames)  # noqa: SLF001  # not public
    return PrometheusMetric(name=name, type=kind, help=family.documentation, labels=labels)


def error_ratio(window: str) -> str:
    """Return the name of the recorded error ratio of an endpoint over a window."""
    return f"model:clipmill_serve_errors:ratio_rate{window}"

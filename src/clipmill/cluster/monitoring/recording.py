"""Recording rules: what alerts and dashboards ask for often."""

from dataclasses import dataclass

from clipmill.cluster.monitoring import expressions as e

BURN_WINDOWS = ("5m", "30m", "1h", "6h")
"""Windows of the error ratio: two pairs, for a fast burn and a slow one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recording:
    """A series computed from others."""

    name: str
    """Name of the series, ``level:metric:operation``."""
    expression: str
    """PromQL."""


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
)

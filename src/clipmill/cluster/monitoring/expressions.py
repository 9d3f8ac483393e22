"""Names of the series that rules and rollouts ask for; a test holds them against telemetry."""

from typing import Final

SERVED_REQUESTS: Final = "clipmill_serve_requests_total"
REJECTED: Final = "clipmill_serve_rejected_total"
QUEUE_DEPTH: Final = "clipmill_serve_queue_depth"
QUEUE_WAIT: Final = "clipmill_serve_queue_wait_seconds_bucket"
INFERENCE: Final = "clipmill_serve_infer_seconds_bucket"
PIXELS: Final = "clipmill_serve_image_pixels"
BRIGHTNESS: Final = "clipmill_serve_image_brightness"
EMBEDDING_DISTANCE: Final = "clipmill_serve_embedding_distance"
METRES: Final = "clipmill_serve_predicted_metres"
CLASS_SHARE: Final = "clipmill_serve_predicted_share_total"
LOSS: Final = "clipmill_train_loss"
STEP: Final = "clipmill_train_step"
STEP_TIME: Final = "clipmill_train_step_seconds"
TRAINED: Final = "clipmill_train_samples_total"
HANGS: Final = "clipmill_train_hangs_total"
SKIPPED: Final = "clipmill_train_skipped_updates_total"
DATA_WAIT: Final = "clipmill_train_rank_data_wait_seconds"
CHECKPOINTS: Final = "clipmill_train_checkpoints_total"
SAMPLES: Final = "clipmill_data_samples_total"
QUARANTINED: Final = "clipmill_data_quarantined_total"

OTHERS: Final = frozenset(
    {
        # kube-state-metrics, Argo Workflows (which runs Kubeflow Pipelines too)
        "kube_pod_container_status_restarts_total",
        "argo_workflows_total_count",
    }
)
"""Series that aren't ours, which alerts may ask for."""

OBJECTIVE: Final = 0.99
"""Share of requests that an endpoint should answer without a 5xx, over 30 days."""

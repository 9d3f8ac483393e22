"""Every pipeline by name."""

from collections.abc import Mapping
from typing import Any

from clipmill.pipelines.encoder_to_tasks import encoder_to_tasks
from clipmill.pipelines.end_to_end import end_to_end
from clipmill.pipelines.photos import photos
from clipmill.pipelines.pretrain_encoder import pretrain_encoder
from clipmill.pipelines.pretrain_encoder_distributed import pretrain_encoder_distributed
from clipmill.pipelines.refresh import refresh
from clipmill.pipelines.study import study
from clipmill.pipelines.train_and_report import train_and_report

PIPELINES: Mapping[str, Any] = {
    pipeline.name: pipeline
    for pipeline in (
        train_and_report,
        pretrain_encoder,
        encoder_to_tasks,
        end_to_end,
        photos,
        pretrain_encoder_distributed,
        refresh,
        study,
    )
}
"""Those that are compiled, and that a cluster's UI shows."""

RENAMED_PIPELINES: Mapping[str, str] = {
    "first-light": "train-and-report",
    "captions-to-encoder": "pretrain-encoder",
    "pretrain-at-scale": "pretrain-encoder-distributed",
}
"""Names by those of clipmill 0.1."""

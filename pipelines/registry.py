"""Every pipeline by name."""

from collections.abc import Mapping
from typing import Any

from clipmill.pipelines.captions_to_encoder import captions_to_encoder
from clipmill.pipelines.encoder_to_tasks import encoder_to_tasks
from clipmill.pipelines.end_to_end import end_to_end
from clipmill.pipelines.first_light import first_light
from clipmill.pipelines.photos import photos
from clipmill.pipelines.pretrain_at_scale import pretrain_at_scale
from clipmill.pipelines.refresh import refresh
from clipmill.pipelines.study import study

PIPELINES: Mapping[str, Any] = {
    pipeline.name: pipeline
    for pipeline in (
        first_light,
        captions_to_encoder,
        encoder_to_tasks,
        end_to_end,
        photos,
        pretrain_at_scale,
        refresh,
        study,
    )
}
"""Those that are compiled, and that a cluster's UI shows."""

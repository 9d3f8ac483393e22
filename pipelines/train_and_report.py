"""From images with captions to smoke-tested models and a report."""

from typing import Any

from clipmill.pipelines.common import (
    Channel,
    captioned,
    inputs_for,
    pipeline,
    sharded,
    with_inputs_of,
)
from clipmill.pipelines.compare_captions import Compared, compare_captions


@with_inputs_of(sharded, captioned, compare_captions)
def trained_and_compared(store: Channel, **given: Any) -> Compared:
    """Caption images, and compare encoders of real captions and of both."""
    data = sharded(store, **inputs_for(sharded, given))
    captions = captioned(
        store,
        dataset=data.dataset,
        captioning=data.captioning,
        **inputs_for(captioned, given),
    )
    return compare_captions(
        store,
        dataset=data.dataset,
        layer=captions.layer,
        captioner=captions.captioner,
        ade20k=data.ade20k,
        nyu=data.nyu,
        **inputs_for(compare_captions, given),
    )


@pipeline("train-and-report", trained_and_compared)
def train_and_report(store: str, **given: Any) -> None:
    """Pretrain on real captions, and on real and synthetic ones, and compare the encoders.

    Both encoders are evaluated at segmentation and depth; the best models are promoted and tested.
    The task report shows the page with all results.
    """
    trained_and_compared(store=store, **given)

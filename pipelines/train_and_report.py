"""From images with captions to smoke-tested models and a report."""

from typing import Any

from clipmill.pipelines.common import captioned, inputs_for, sharded, with_inputs_of
from clipmill.pipelines.compare_captions import compare_captions
from kfp import dsl


@dsl.pipeline(name="train-and-report")
@with_inputs_of(sharded, captioned, compare_captions)
def train_and_report(store: str, run: str, **given: Any) -> str:
    """Pretrain on real captions, and on real and synthetic ones, and compare the encoders.

    ``pairs`` is a folder of images with captions to pretrain on instead of generated scenes. Both
    encoders are evaluated at segmentation and depth; the best models are promoted and tested.
    """
    at = {"store": store, "run": run}
    data = sharded(**at, **inputs_for(sharded, given))
    captions = captioned(
        dataset=data.dataset, captioning=data.captioning, **at, **inputs_for(captioned, given)
    )
    return compare_captions(
        dataset=data.dataset,
        layer=captions.written.output,
        captioner=captions.captioner,
        ade20k=data.ade20k,
        nyu=data.nyu,
        **at,
        **inputs_for(compare_captions, given),
    ).output

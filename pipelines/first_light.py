"""The whole way: pictures with captions in, queried endpoints and a report out."""

from typing import Any

from clipmill.pipelines.common import captioned, inputs_for, sharded, with_inputs_of
from clipmill.pipelines.compare_captions import compare_captions
from kfp import dsl


@dsl.pipeline(name="first-light")
@with_inputs_of(sharded, captioned, compare_captions)
def first_light(store: str, run: str, **given: Any) -> str:
    """Pretrain on real captions, and on real and synthetic ones, and see what that does.

    ``pairs`` is a folder of pictures with captions that takes the scenes' place for pretraining.
    Both encoders are fine-tuned for segmentation and depth; the better models are served.
    """
    at = {"store": store, "run": run}
    data = sharded(**at, **inputs_for(sharded, given))
    made = captioned(
        dataset=data.dataset, captioning=data.captioning, **at, **inputs_for(captioned, given)
    )
    return compare_captions(
        dataset=data.dataset,
        layer=made.written.output,
        captioner=made.captioner,
        ade20k=data.ade20k,
        nyu=data.nyu,
        **at,
        **inputs_for(compare_captions, given),
    ).output

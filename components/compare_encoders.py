"""Component: encoders compared at their tasks, with each other and with random weights."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def compare_encoders(
    encoders: list,
    evaluations: list,
    random: list,
    ade20k: str,
    nyu: str,
    store: str,
    run: str,
) -> str:
    """Judge each difference by the test images and by what a seed does; the comparison's URI."""
    from clipmill.stages.run import compare as stage

    made = [uri for of_one_encoder in evaluations for uri in of_one_encoder]
    return stage(encoders, made, random, [ade20k, nyu], store, run)

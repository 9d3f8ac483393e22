"""Comparison of encoders with each other and with random weights."""

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
    """Compare encoders at their tasks, with each other and with random weights.

    Args:
        encoders: URIs of the encoders.
        evaluations: Lists of evaluation URIs, one for each encoder.
        random: Evaluation URIs of encoders with random weights.
        ade20k: URI of the segmentation data.
        nyu: URI of the depth data.
        store: URI of the store to write to.
        run: Name of the run, for its timing records.

    Returns:
        URI of the comparison.
    """
    from clipmill import stages

    flat = [uri for uris in evaluations for uri in uris]
    return stages.compare(encoders, flat, random, [ade20k, nyu], store, run)

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
    comparison: dsl.Output[dsl.Markdown],
) -> str:
    """Compare encoders at their tasks, with each other and with random weights.

    Args:
        encoders: URIs of the encoders.
        evaluations: URIs of the evaluations of all encoders.
        random: Evaluation URIs of encoders with random weights.
        ade20k: URI of the segmentation data.
        nyu: URI of the depth data.
        store: URI of the store to write to.
        comparison: Table of the encoders' metrics for the UI's viewer.

    Returns:
        URI of the comparison.
    """
    from pathlib import Path

    from clipmill import stages
    from clipmill.report.comparison import comparison_markdown

    uri = stages.compare(encoders, evaluations, random, [ade20k, nyu], store)
    Path(comparison.path).write_text(comparison_markdown(uri), encoding="utf-8")
    comparison.metadata["store_uri"] = uri
    return uri

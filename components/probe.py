"""Smoke test of promoted models."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def probe(segmentation: str, depth: str, store: str, run: str) -> str:
    """Start the promoted models in a KServe server and query each.

    Args:
        segmentation: URI of the promotion for segmentation; may be empty.
        depth: URI of the promotion for depth; may be empty.
        store: URI of the store to write to.
        run: Name of the run, for its timing records.

    Returns:
        URI of the smoke test's result.
    """
    from clipmill import stages

    return stages.smoke_test([segmentation, depth], store, run)

"""Component: promoted models started and asked."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def probe(segmentation: str, depth: str, store: str, run: str) -> str:
    """Start the models in a KServe server and query each; the answers' URI."""
    from clipmill.stages.run import probe as stage

    return stage([segmentation, depth], store, run)

"""Component: a CLIP encoder from a dataset."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def pretrain(
    dataset: str, captions: str, layer: str, recipe: str, overrides: list, store: str, run: str
) -> str:
    """Pretrain on ``captions``: real, synthetic or both; the encoder's URI."""
    from clipmill.recipes.run import pretrain as stage

    return stage(recipe, overrides, dataset, store, run, captions=captions, layer=layer)

"""Component: synthetic captions beside a dataset's real ones."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def recaption(
    dataset: str, captioner: str, recipe: str, overrides: list, store: str, run: str
) -> str:
    """Caption every picture; the layer's name."""
    from clipmill.recipes.run import recaption as stage

    return stage(recipe, overrides, dataset, captioner, store, run)

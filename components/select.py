"""Component: which samples a training run sees, with which captions."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def select(dataset: str, layers: list, recipe: str, overrides: list, store: str, run: str) -> str:
    """Judge every sample by its scores; the layer's name."""
    from clipmill.stages.data import select as stage

    return stage(recipe, overrides, dataset, store, run, layers=layers)

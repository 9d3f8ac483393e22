"""Component: what encoders with random weights reach, a seed each."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def random_weights(
    clip_recipe: str,
    clip_overrides: list,
    segmentation_recipe: str,
    depth_recipe: str,
    finetune_overrides: list,
    ade20k: str,
    nyu: str,
    store: str,
    run: str,
) -> list:
    """Evaluate encoders that learned nothing at segmentation and depth; the evaluations' URIs."""
    from clipmill.stages.run import random_weights as stage

    recipes, data = [segmentation_recipe, depth_recipe], [ade20k, nyu]
    return stage(clip_recipe, clip_overrides, recipes, finetune_overrides, data, store, run)

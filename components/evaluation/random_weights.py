"""Baseline: evaluations of encoders with random weights."""

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
) -> list:
    """Evaluate encoders with random weights at segmentation and depth.

    Args:
        clip_recipe: Pretraining recipe that defines the encoder.
        clip_overrides: Overrides of the pretraining recipe.
        segmentation_recipe: Fine-tuning recipe for segmentation.
        depth_recipe: Fine-tuning recipe for depth.
        finetune_overrides: Overrides of the fine-tuning recipes.
        ade20k: URI of the segmentation data.
        nyu: URI of the depth data.
        store: URI of the store to write to.

    Returns:
        URIs of the evaluations.
    """
    from clipmill import stages

    recipes, data = [segmentation_recipe, depth_recipe], [ade20k, nyu]
    return stages.random_weights(
        clip_recipe, clip_overrides, recipes, finetune_overrides, data, store
    )

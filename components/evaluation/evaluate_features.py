"""Evaluation of an encoder's features by trained heads."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate_features(
    encoder: str,
    segmentation_recipe: str,
    depth_recipe: str,
    overrides: list,
    ade20k: str,
    nyu: str,
    store: str,
    run: str,
    label: str,
) -> list:
    """Fine-tune and evaluate a head for segmentation and for depth.

    Args:
        encoder: Address of the encoder.
        segmentation_recipe: Fine-tuning recipe for segmentation.
        depth_recipe: Fine-tuning recipe for depth.
        overrides: ``path=value`` changes of the recipe.
        ade20k: URI of the segmentation data.
        nyu: URI of the depth data.
        store: URI of the store to write to.
        run: Name of the run, for its timing records.
        label: Label of the encoder, such as a caption source.

    Returns:
        URIs of the evaluations.
    """
    from clipmill import stages

    recipes, data = [segmentation_recipe, depth_recipe], [ade20k, nyu]
    return stages.evaluate_features(recipes, overrides, encoder, data, store, run, label)

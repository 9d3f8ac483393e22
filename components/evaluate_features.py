"""Component: heads on an encoder for segmentation and depth, trained and evaluated."""

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
    """Fine-tune and evaluate a model of each task in one process; the evaluations' URIs."""
    from clipmill.stages.run import evaluate_features as stage

    recipes, data = [segmentation_recipe, depth_recipe], [ade20k, nyu]
    return stage(recipes, overrides, encoder, data, store, run, label)

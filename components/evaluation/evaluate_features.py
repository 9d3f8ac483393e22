"""Evaluation of an encoder's features by trained heads."""

from typing import NamedTuple

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
    label: str,
    segmentation_model: dsl.Output[dsl.Model],
    depth_model: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> NamedTuple("Evaluations", [("segmentation", str), ("depth", str)]):  # type: ignore[valid-type]
    """Fine-tune and evaluate a head for segmentation and for depth.

    Args:
        encoder: Address of the encoder.
        segmentation_recipe: Fine-tuning recipe for segmentation.
        depth_recipe: Fine-tuning recipe for depth.
        overrides: path=value changes of the recipe.
        ade20k: URI of the segmentation data.
        nyu: URI of the depth data.
        store: URI of the store to write to.
        label: Label of the encoder, such as a caption source.
        segmentation_model: The segmentation model as an artifact with its metadata.
        depth_model: The depth model as an artifact with its metadata.
        metrics: Metrics of both for the UI.

    Returns:
        URIs of the evaluations.
    """
    from clipmill import stages
    from clipmill.lineage import log_artifact
    from clipmill.tasks.evaluation import read_evaluation

    recipes, data = [segmentation_recipe, depth_recipe], [ade20k, nyu]
    uris = stages.evaluate_features(recipes, overrides, encoder, data, store, label=label)
    for uri, model in zip(uris, [segmentation_model, depth_model], strict=True):
        evaluation = read_evaluation(uri)
        log_artifact(evaluation.model.uri, model)
        for name, value in evaluation.metrics.items():
            metrics.log_metric(f"{evaluation.task} {name}", value)
    return tuple(uris)

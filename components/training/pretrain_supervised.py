"""Supervised pretraining on labeled images."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def pretrain_supervised(
    data: str,
    recipe: str,
    overrides: list,
    store: str,
    encoder: dsl.Output[dsl.Model],
    metrics: dsl.Output[dsl.Metrics],
) -> str:
    """Pretrain an image tower on class labels.

    Args:
        data: Folder of class folders, or URI of one as .tar.
        recipe: Name of the recipe.
        overrides: path=value changes of the recipe.
        store: URI of the store to write to.
        encoder: The encoder as an artifact with its metadata.
        metrics: The last record of the training's log, for the UI.

    Returns:
        URI of the encoder.
    """
    from clipmill import stages
    from clipmill.lineage import log_artifact

    return log_artifact(
        stages.pretrain_supervised(recipe, overrides, data, store), encoder, metrics
    )

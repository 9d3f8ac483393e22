"""CLIP pretraining."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def pretrain(
    dataset: str, captions: str, layer: str, recipe: str, overrides: list, store: str,
    encoder: dsl.Output[dsl.Model], metrics: dsl.Output[dsl.Metrics], select: str = "",
) -> str:  # fmt: skip
    """Pretrain a CLIP encoder on a dataset.

    Args:
        dataset: URI of the dataset.
        captions: Caption source: real, synthetic, both or selected.
        layer: Layer of synthetic captions.
        recipe: Name of the recipe.
        overrides: path=value changes of the recipe.
        store: URI of the store to write to.
        encoder: The encoder as an artifact with its metadata.
        metrics: The last record of the training's log, for the UI.
        select: Selection layer to follow; empty for all samples.

    Returns:
        URI of the encoder.
    """
    from clipmill import stages
    from clipmill.lineage import log_artifact

    uri = stages.pretrain(
        recipe, overrides, dataset, store,
        captions=captions, layer=layer, select=[select] if select else [],
    )  # fmt: skip
    return log_artifact(uri, encoder, metrics)

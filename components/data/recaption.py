"""Synthetic captions of a dataset."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def recaption(
    dataset: str,
    captioner: str,
    recipe: str,
    overrides: list,
    store: str,
    captions: dsl.Output[dsl.Dataset],
    start: int = 0,
    stop: int = 0,
) -> str:
    """Caption every image of a range of shards.

    Args:
        dataset: URI of the dataset.
        captioner: Address of the captioner.
        recipe: Name of the recipe.
        overrides: path=value changes of the recipe.
        store: URI of the store to write to.
        captions: The captions as an artifact with their address.
        start: First shard.
        stop: Shard to stop before; 0 for all.

    Returns:
        Name of the caption layer.
    """
    from clipmill import stages

    layer = stages.recaption(
        recipe, overrides, dataset, captioner, store, start=start, stop=stop or None
    )
    captions.metadata.update(store_uri=f"{dataset}/layers/{layer}", captioner=captioner)
    return layer

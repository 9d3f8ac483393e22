"""Quality scores of a dataset."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def score(
    dataset: str,
    recipe: str,
    overrides: list,
    store: str,
    model: str = "",
    start: int = 0,
    stop: int = 0,
) -> list:
    """Score every sample of a range of shards.

    Args:
        dataset: URI of the dataset.
        recipe: Name of the recipe.
        overrides: path=value changes of the recipe.
        store: URI of the store to write to.
        model: Address of the CLIP; empty for the recipe's.
        start: First shard.
        stop: Shard to stop before; 0 for all.

    Returns:
        Names of the score layers.
    """
    from clipmill import stages

    return stages.score(
        recipe, overrides, dataset, store, model=model, start=start, stop=stop or None
    )

"""Selection of a dataset's samples by their scores."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def select(dataset: str, layers: list, recipe: str, overrides: list, store: str) -> str:
    """Filter a dataset's samples by their scores.

    Args:
        dataset: URI of the dataset.
        layers: Score layers to prefer where a filter's name fits several.
        recipe: Name of the recipe.
        overrides: path=value changes of the recipe.
        store: URI of the store to write to.

    Returns:
        Name of the selection layer.
    """
    from clipmill import stages

    return stages.select(recipe, overrides, dataset, store, layers=layers)

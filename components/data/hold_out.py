"""Split of a dataset into training and held-out pairs."""

from typing import NamedTuple

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def hold_out(dataset: str, recipe: str, overrides: list, store: str) -> NamedTuple(  # type: ignore[valid-type]
    "Overrides", [("pretrain", list), ("retrieval", list)]
):
    """Split a dataset into a training part and a held-out part.

    Args:
        dataset: URI of the dataset.
        recipe: Pretraining recipe.
        overrides: Overrides of that recipe.
        store: URI of the store to write to.

    Returns:
        Overrides for pretraining on the training part, and for evaluating retrieval on the
        held-out part.
    """
    from typing import NamedTuple

    from clipmill import stages

    class Overrides(NamedTuple):
        pretrain: list
        retrieval: list

    return Overrides(*stages.hold_out(recipe, overrides, dataset, store))

"""Component: pairs that training doesn't see."""

from typing import NamedTuple

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def hold_out(dataset: str, recipe: str, overrides: list, store: str, run: str) -> NamedTuple(
    "Cut", [("pretraining", list), ("judging", list)]
):
    """Cut ``dataset`` in two; the overrides that pretrain on one part and judge on the other."""
    from typing import NamedTuple

    from clipmill.stages.data import hold_out as stage

    names = [("pretraining", list), ("judging", list)]
    cut = NamedTuple("Cut", names)
    return cut(*stage(recipe, overrides, dataset, store, run))

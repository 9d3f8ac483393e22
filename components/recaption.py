"""Component: synthetic captions beside a dataset's real ones."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def recaption(
    dataset: str,
    captioner: str,
    recipe: str,
    overrides: list,
    store: str,
    run: str,
    start: int = 0,
    stop: int = 0,
) -> str:
    """Caption every picture of shards ``start`` to ``stop`` (0: all); the layer's name."""
    from clipmill.stages.data import recaption as stage

    shards = {"start": start, "stop": stop or None}
    return stage(recipe, overrides, dataset, captioner, store, run, **shards)

"""Component: measures of a dataset's pictures and captions."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def score(
    dataset: str,
    recipe: str,
    overrides: list,
    store: str,
    run: str,
    model: str = "",
    start: int = 0,
    stop: int = 0,
) -> list:
    """Score every sample of shards ``start`` to ``stop`` (0: all); the layers' names."""
    from clipmill.stages.data import score as stage

    part = {"start": start, "stop": stop or None}
    return stage(recipe, overrides, dataset, store, run, model=model, **part)

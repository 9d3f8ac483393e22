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
    shards: str = "",
) -> list:
    """Score every sample, or those of some shards; the layers' names."""
    from clipmill.recipes.run import score as stage

    return stage(recipe, overrides, dataset, store, run, model=model, shards=shards)

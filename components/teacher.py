"""Component: a layer of teacher embeddings beside a dataset's shards."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def teacher(dataset: str, captions: str, recipe: str, overrides: list, store: str, run: str) -> str:
    """Embed pictures and captions with a teacher ensemble; the layer's name."""
    from clipmill.stages.data import teacher as stage

    return stage(recipe, overrides, dataset, captions, store, run)

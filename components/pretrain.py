"""Component: a CLIP encoder from a dataset."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def pretrain(
    dataset: str, captions: str, layer: str, recipe: str, overrides: list, store: str, run: str,
    made: dsl.Output[dsl.Model], select: str = "",
) -> str:  # fmt: skip
    """Pretrain on ``captions`` of what the layer ``select`` keeps; the encoder's URI."""
    from clipmill.cluster.artifacts import recorded
    from clipmill.stages.run import pretrain as stage

    seen = {"captions": captions, "layer": layer, "select": [select] if select else []}
    return recorded(stage(recipe, overrides, dataset, store, run, **seen), made)

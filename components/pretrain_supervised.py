"""Component: an image tower from labelled images."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def pretrain_supervised(
    data: str, recipe: str, overrides: list, store: str, run: str, made: dsl.Output[dsl.Model]
) -> str:
    """Pretrain on classes; the encoder's URI."""
    from clipmill.cluster.artifacts import recorded
    from clipmill.stages.run import pretrain_supervised as stage

    return recorded(stage(recipe, overrides, data, store, run), made)

"""Component: a masked autoencoder's encoder from a dataset's pictures."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def pretrain_mae(
    dataset: str, recipe: str, overrides: list, store: str, run: str, made: dsl.Output[dsl.Model]
) -> str:
    """Pretrain without captions; the encoder's URI."""
    from clipmill.cluster.artifacts import recorded
    from clipmill.stages.run import pretrain_mae as stage

    return recorded(stage(recipe, overrides, dataset, store, run), made)

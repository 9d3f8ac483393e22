"""Component: a source of pairs into a dataset."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def shard(
    source: str, recipe: str, overrides: list, store: str, run: str,
    made: dsl.Output[dsl.Dataset], label: str = "",
) -> str:  # fmt: skip
    """Cut ``source`` into shards; the dataset's URI."""
    from clipmill.cluster.artifacts import recorded
    from clipmill.stages.data import shard as stage

    return recorded(stage(recipe, overrides, source, store, run, label), made)

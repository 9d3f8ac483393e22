"""Conversion of a source into a sharded dataset."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def shard(
    source: str, recipe: str, overrides: list, store: str,
    dataset: dsl.Output[dsl.Dataset], label: str = "",
) -> str:  # fmt: skip
    """Convert a source of image-text pairs into a sharded dataset.

    Args:
        source: Address of the source.
        recipe: Name of the recipe.
        overrides: path=value changes of the recipe.
        store: URI of the store to write to.
        dataset: The dataset as an artifact with its metadata.
        label: Label of the stage in the report.

    Returns:
        URI of the dataset.
    """
    from clipmill import stages
    from clipmill.lineage import log_artifact

    return log_artifact(stages.shard(recipe, overrides, source, store, label=label), dataset)

"""Condition: whether this dataset version is unprocessed."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def is_new(dataset: str, store: str) -> bool:
    """Check whether this dataset version is still unprocessed.

    Args:
        dataset: URI of the dataset.
        store: URI of the store with the records.

    Returns:
        True if no refresh of the store was completed with it.
    """
    from clipmill import stages

    return stages.is_unprocessed(dataset, store)

"""Check of whether a dataset version was already processed."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def is_dataset_processed(dataset: str, store: str) -> bool:
    """Check whether this dataset version was already processed.

    Args:
        dataset: URI of the dataset.
        store: URI of the store with the records.

    Returns:
        True if a refresh of the store was completed with it.
    """
    from clipmill import stages

    return stages.is_processed(dataset, store)

"""Record that a dataset version was processed."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def mark_dataset_processed(dataset: str, store: str, run: str) -> None:
    """Record that a refresh was completed with this dataset version.

    Args:
        dataset: URI of the dataset.
        store: URI of the store with the records.
        run: Name of the completed run.
    """
    from clipmill import stages

    stages.mark_processed(dataset, store, run)

"""Component: whether a dataset is news."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def is_new(dataset: str, store: str) -> bool:
    """Whether no refresh of ``store`` has been finished with this dataset."""
    from clipmill.stages.data import is_new as stage

    return stage(dataset, store)

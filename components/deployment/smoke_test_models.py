"""Smoke test of promoted models."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def smoke_test_models(models: dict, store: str, run: str) -> str:
    """Start the promoted models in a KServe server and query each.

    Args:
        models: URI of the promotion by task; empty URIs are left out.
        store: URI of the store to write to.
        run: Name of the run, for its timing records.

    Returns:
        URI of the smoke test's result; empty without a model.
    """
    from clipmill import stages

    return stages.smoke_test(list(models.values()), store, run)

"""Synthetic captions of a large dataset, by an Argo workflow."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def recaption_on_argo(
    dataset: str, captioner: str, recipe: str, pool: str, namespace: str, store: str
) -> str:
    """Submit a workflow that captions a dataset, and wait for it.

    Args:
        dataset: URI of the dataset.
        captioner: Address of the captioner.
        recipe: Name of the recipe.
        pool: Node pool.
        namespace: Kubernetes namespace.
        store: URI of the store to write to.

    Returns:
        Name of the caption layer.
    """
    from clipmill import stages
    from clipmill.cluster.argo import run_data_workflow

    arguments = ["--captioner", captioner, "--recipe", recipe]
    run_data_workflow("recaption", dataset, arguments, pool=pool, namespace=namespace)
    # The layer exists by now, and the stage returns its name.
    return stages.recaption(recipe, [], dataset, captioner, store)

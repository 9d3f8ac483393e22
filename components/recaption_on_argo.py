"""Component: synthetic captions beside a large dataset's real ones, on many pods."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def recaption_on_argo(
    dataset: str, captioner: str, recipe: str, pool: str, namespace: str, store: str, run: str
) -> str:
    """Submit the workflow and wait for it; the layer's name."""
    from clipmill.cluster.data_runs import fan_out
    from clipmill.stages.data import recaption as stage

    arguments = ["--captioner", captioner, "--recipe", recipe]
    fan_out("recaption", dataset, arguments, pool=pool, namespace=namespace)
    # All is there by now: the stage finds it, and tells its name.
    return stage(recipe, [], dataset, captioner, store, run)

"""Component: a CLIP encoder from a large dataset, trained on several GPU nodes."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def pretrain_on_nodes(
    dataset: str, captions: str, layer: str, recipe: str, overrides: list,
    pool: str, nodes: str, queue: str, namespace: str, store: str, run: str,
    made: dsl.Output[dsl.Model],
) -> str:  # fmt: skip
    """Submit a TrainJob and wait for it; the encoder's URI."""
    from clipmill.cluster.artifacts import recorded
    from clipmill.cluster.submit import run_to_end
    from clipmill.stages.run import pretrain as stage

    command = ["pretrain", dataset, "--store", store, "--captions", captions, "--layer", layer]
    command += ["--recipe", recipe, *(text for o in overrides for text in ("--set", o))]
    run_to_end(f"pretrain-{captions}", command, pool, nodes, queue, namespace)
    # It is there by now: the stage finds it, and tells where.
    seen = {"captions": captions, "layer": layer}
    return recorded(stage(recipe, overrides, dataset, store, run, **seen), made)

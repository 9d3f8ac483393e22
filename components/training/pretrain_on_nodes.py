"""CLIP pretraining on several GPU nodes."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def pretrain_on_nodes(
    dataset: str, captions: str, layer: str, recipe: str, overrides: list,
    pool: str, nodes: str, queue: str, namespace: str, store: str,
    encoder: dsl.Output[dsl.Model], metrics: dsl.Output[dsl.Metrics],
    start_timeout_seconds: int = 1800,
) -> str:  # fmt: skip
    """Submit a TrainJob that pretrains a CLIP encoder, and wait for it.

    Args:
        dataset: URI of the dataset.
        captions: Caption source: real, synthetic, both or selected.
        layer: Layer of synthetic captions.
        recipe: Name of the recipe.
        overrides: path=value changes of the recipe.
        pool: Node pool.
        nodes: Number of nodes, or MIN:MAX for elastic training.
        queue: Kueue queue.
        namespace: Kubernetes namespace.
        store: URI of the store to write to.
        start_timeout_seconds: Longest time that the job may be unable to run, apart from a queue.
        encoder: The encoder as an artifact with its metadata.
        metrics: The last record of the training's log, for the UI.

    Returns:
        URI of the encoder.
    """
    from clipmill import stages
    from clipmill.cluster.submit import run_to_end
    from clipmill.lineage import log_artifact

    command = ["pretrain", "clip", dataset, "--store", store]
    command += ["--captions", captions, "--caption-layer", layer]
    command += ["--recipe", recipe, *(text for o in overrides for text in ("--set", o))]
    limit = start_timeout_seconds
    where = (pool, nodes, queue, namespace)
    run_to_end(f"pretrain-{captions}", command, *where, start_timeout_seconds=limit)
    # The encoder exists by now, and the stage returns its URI.
    seen = {"captions": captions, "layer": layer}
    return log_artifact(
        stages.pretrain(recipe, overrides, dataset, store, **seen), encoder, metrics
    )

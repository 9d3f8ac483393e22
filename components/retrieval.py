"""Component: image-text retrieval by a CLIP."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def retrieval(
    model: str, data: str, recipe: str, overrides: list, store: str, run: str, label: str,
    metrics: dsl.Output[dsl.Metrics],
) -> str:  # fmt: skip
    """Judge ``model`` by how it finds captions and images; the evaluation's URI, "" of no model."""
    from clipmill.stages.run import retrieval as stage
    from clipmill.tasks.evaluation import read_evaluation

    uri = stage(recipe, overrides, model, data, store, run, label) if model else ""
    for name, value in read_evaluation(uri).metrics.items() if uri else ():
        metrics.log_metric(name, value)
    return uri

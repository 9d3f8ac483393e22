"""Image-text retrieval evaluation of a CLIP."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def retrieval(
    model: str, data: str, recipe: str, overrides: list, store: str, label: str,
    metrics: dsl.Output[dsl.Metrics],
) -> str:  # fmt: skip
    """Evaluate a CLIP by image-text retrieval.

    Args:
        model: Address of the CLIP; may be empty.
        data: URI of a dataset or source of captioned images.
        recipe: Name of the recipe.
        overrides: path=value changes of the recipe.
        store: URI of the store to write to.
        label: Label of the encoder, such as a caption source.
        metrics: Metrics for the UI.

    Returns:
        URI of the evaluation; empty without a model.
    """
    from clipmill import stages
    from clipmill.tasks.evaluation import read_evaluation

    uri = stages.retrieval(recipe, overrides, model, data, store, label=label) if model else ""
    for name, value in read_evaluation(uri).metrics.items() if uri else ():
        metrics.log_metric(name, value)
    return uri

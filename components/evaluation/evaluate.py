"""Evaluation of a task model."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    model: str, data: str, store: str, label: str, metrics: dsl.Output[dsl.Metrics]
) -> str:
    """Evaluate a task model on its data's test split.

    Args:
        model: URI of the task model.
        data: Folder of labeled data, or URI of one as .tar.
        store: URI of the store to write to.
        label: Label of the encoder, such as a caption source.
        metrics: Metrics for the UI.

    Returns:
        URI of the evaluation.
    """
    from clipmill import stages
    from clipmill.tasks.evaluation import read_evaluation

    uri = stages.evaluate(model, data, store, label=label)
    for name, value in read_evaluation(uri).metrics.items():
        metrics.log_metric(name, value)
    return uri

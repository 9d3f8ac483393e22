"""Component: a task model's metrics."""

from clipmill.components import IMAGE
from kfp import dsl


@dsl.component(base_image=IMAGE, install_kfp_package=False)
def evaluate(
    model: str, data: str, store: str, run: str, label: str, metrics: dsl.Output[dsl.Metrics]
) -> str:
    """Judge ``model`` on the data's test split; the evaluation's URI."""
    from clipmill.stages.run import evaluate as stage
    from clipmill.tasks.evaluation import read_evaluation

    uri = stage(model, data, store, run, label)
    for name, value in read_evaluation(uri).metrics.items():
        metrics.log_metric(name, value)
    return uri

"""Stages of batch inference: predictions of a model for a folder, bucket or dataset."""

from collections.abc import Sequence

from clipmill.stage_records import Stage


def plan_predict(overrides: Sequence[str], model: str, data: str, store: str) -> str:
    """Plan a prediction for several workers; return the URI that it will have."""
    from clipmill.prediction.config import PredictionConfig
    from clipmill.prediction.plan import plan_prediction

    with Stage("plan", target=store) as stage:
        config = PredictionConfig().override(overrides)
        return stage.set_output(plan_prediction(config, model, data, store).uri)


def predict_part(plan: str, *, worker: str = "") -> str:
    """Predict a worker's part (``I/N``) of a plan, or what is left; return the prediction's URI."""
    from clipmill.data.shards.plan import parse_worker_slice, worker_range
    from clipmill.prediction.plan import read_prediction_plan
    from clipmill.prediction.run import predict_shards

    planned = read_prediction_plan(plan)
    start, stop = 0, len(planned.shard_sizes)
    if worker:
        start, stop = worker_range(stop, *parse_worker_slice(worker))
    with Stage("predict", label=planned.task, target=planned.uri) as stage:
        predict_shards(planned, report=stage.report, start=start, stop=stop)
        return stage.set_output(planned.uri)


def predict(overrides: Sequence[str], model: str, data: str, store: str, run: str = "") -> str:
    """Predict all images of a folder, bucket or dataset; return the prediction's URI."""
    from clipmill.prediction.config import PredictionConfig
    from clipmill.prediction.plan import plan_prediction
    from clipmill.prediction.run import predict_shards

    config = PredictionConfig().override(overrides)
    with Stage("predict", store=store, run=run) as stage:
        plan = plan_prediction(config, model, data, store)
        predict_shards(plan, report=stage.report)
        return stage.set_output(plan.uri)

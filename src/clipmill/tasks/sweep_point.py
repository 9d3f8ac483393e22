"""One point of a sweep: fine-tuned, judged, and never twice."""

from clipmill.errors import TrainingError
from clipmill.stage_records import Report, silent
from clipmill.tasks.evaluation import evaluate
from clipmill.tasks.finetune import FinetuneConfig, finetune


def run_point(config: FinetuneConfig, encoder: str, data: str, store: str, report: Report) -> str:
    """The URI of the evaluation of a point; ``""`` where training diverged.

    Model and evaluation lie where ``clipmill finetune`` and ``evaluate`` would put them, so that a
    point that was tried before, by whatever command, isn't tried again. Runs in any process.
    """
    try:
        model = finetune(config, encoder, data, store, report=report)
    except TrainingError:
        return ""
    return evaluate(model, data, store, report=report)


def run_quietly(value: object, encoder: str, data: str, store: str) -> str:
    """``run_point`` in a process of its own, which gets the config as JSON."""
    return run_point(FinetuneConfig.from_json(value), encoder, data, store, silent)

"""From any encoder to the models of several tasks, promoted where they are better."""

from typing import Any

from clipmill.pipelines.common import pipeline
from clipmill.pipelines.finetune_tasks import finetuned


@pipeline("encoder-to-tasks", finetuned)
def encoder_to_tasks(store: str, encoder: str, tasks: list, **given: Any) -> None:
    """Fine-tune an encoder for all tasks, evaluate, promote, report, and deploy."""
    finetuned(store, encoder=encoder, tasks=tasks, **given)

"""Tasks by name, with what trains and evaluates them."""

from typing import Any

from clipmill.tasks.classification.training import ClassificationTraining
from clipmill.tasks.depth.training import DepthTraining
from clipmill.tasks.detection.training import DetectionTraining
from clipmill.tasks.registry import get_task
from clipmill.tasks.segmentation.training import SegmentationTraining
from clipmill.tasks.training import TrainingTask

TRAINING_TASKS: dict[str, TrainingTask[Any]] = {
    task.name: task
    for task in (
        ClassificationTraining(),
        DetectionTraining(),
        SegmentationTraining(),
        DepthTraining(),
    )
}


def get_training_task(name: str) -> TrainingTask[Any]:
    """Return the task of that name with its training half.

    Raises:
        ConfigError: there is no such task.
    """
    return TRAINING_TASKS[get_task(name).name]

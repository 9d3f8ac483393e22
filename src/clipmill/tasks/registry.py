"""Tasks by name."""

from typing import Any

from clipmill.errors import ConfigError, suggestion
from clipmill.tasks.base import Task
from clipmill.tasks.classification.task import ClassificationTask
from clipmill.tasks.depth.task import DepthTask
from clipmill.tasks.detection.task import DetectionTask
from clipmill.tasks.segmentation.task import SegmentationTask

TASKS: dict[str, Task[Any]] = {
    task.name: task
    for task in (ClassificationTask(), DetectionTask(), SegmentationTask(), DepthTask())
}


def get_task(name: str) -> Task[Any]:
    """Return the task of that name.

    Raises:
        ConfigError: there is no such task.
    """
    if name not in TASKS:
        raise ConfigError(
            f"{name!r} is not a task",
            expected=f"one of {', '.join(TASKS)}",
            action=suggestion(name, TASKS, otherwise="give one of these names"),
        )
    return TASKS[name]

"""Section of predictions: each label's models on the same test images, with ground truth."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from clipmill.models.checkpoint import CheckpointMetadata
from clipmill.report.comparison import TaskComparison
from clipmill.report.html.page import (
    Html,
    Section,
    concat,
    empty_section,
    image_row,
    image_tag,
    section,
    tag,
)
from clipmill.tasks.config import MAX_DEPTH_METERS
from clipmill.tasks.evaluation import EvaluationResult
from clipmill.tasks.visualization import class_palette, depth_colors


def predictions_section(
    tasks: Sequence[TaskComparison], models: Mapping[tuple[str, str], CheckpointMetadata]
) -> Section:
    """Return the section ``Predictions``; ``models`` are by label and task."""
    parts = []
    for task in tasks:
        metadata = models[next(iter(task.evaluations)), task.task]
        strips = [
            _strip(group, index)
            for group in _by_data(task).values()
            for index in range(min(result.num_samples for result in group.values()))
        ]
        parts.append(
            concat(
                tag("h3", task.task.capitalize()),
                task_key(task.task, metadata),
                tag("div", strips, class_="strips"),
            )
        )
    body = parts or [empty_section("No evaluation was given.")]
    return section("predictions", "Predictions and ground truth", *body)


def task_key(task: str, metadata: CheckpointMetadata) -> Html:
    """Return the color legend of a task's images."""
    if task == "depth":
        return _depth_bar()
    colors = class_palette()
    items = (
        tag("li", tag("i", style=f"background: {_css(colors[index])}"), name)
        for index, name in enumerate(metadata.architecture.get("classes", []))
    )
    return tag("ul", items, class_="key")


def _by_data(task: TaskComparison) -> dict[str, dict[str, EvaluationResult]]:
    """Group evaluations by data, then by label: those of one group show the same images."""
    groups: dict[str, dict[str, EvaluationResult]] = {}
    for label, result in task.evaluations.items():
        groups.setdefault(result.data.digest, {})[label] = result
    return groups


def _strip(group: Mapping[str, EvaluationResult], index: int) -> Html:
    first = next(iter(group.values()))
    name = f"{first.task} test image {index + 1}"
    cells = [
        ("image", image_tag(first.read_image(index, "image"), f"{name}: the image")),
        ("truth", image_tag(first.read_image(index, "truth"), f"{name}: the truth")),
    ]
    cells += [
        (label, image_tag(result.read_image(index, "prediction"), f"{name}: what {label} predicts"))
        for label, result in group.items()
    ]
    return image_row(cells)


def _depth_bar() -> Html:
    stops = depth_colors(np.linspace(0, MAX_DEPTH_METERS, 13), MAX_DEPTH_METERS)
    gradient = ", ".join(_css(color) for color in stops)
    return tag(
        "div",
        tag("i", style=f"background: linear-gradient(to right, {gradient})"),
        tag(
            "span",
            (
                tag("span", f"{meters:g} m")
                for meters in np.linspace(0, MAX_DEPTH_METERS, 6).tolist()
            ),
        ),
        class_="bar",
        role="img",
        aria_label=f"Colors of depth, from 0 to {MAX_DEPTH_METERS:g} meters",
    )


def _css(color: NDArray[np.uint8]) -> str:
    return f"rgb({', '.join(str(int(c)) for c in color)})"

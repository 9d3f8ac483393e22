"""Looking through a task's data before training: one file a layout, an entry here."""

from collections.abc import Callable, Mapping
from pathlib import Path

from clipmill.errors import ConfigError
from clipmill.stage_records import Report
from clipmill.tasks.checks.classification import check_classification
from clipmill.tasks.checks.depth import check_depth
from clipmill.tasks.checks.detection import check_detection
from clipmill.tasks.checks.findings import DataCheck, Findings
from clipmill.tasks.checks.fit import check_encoder, check_model
from clipmill.tasks.checks.segmentation import check_segmentation
from clipmill.tasks.finetune import FinetuneConfig

__all__ = ["CHECKS", "DataCheck", "check_data"]

CHECKS: Mapping[str, Callable[[Path, Findings, Report], None]] = {
    "classification": check_classification,
    "depth": check_depth,
    "detection": check_detection,
    "segmentation": check_segmentation,
}
"""By task; each looks at all files of a folder and notes what it finds."""


def check_data(
    task: str,
    folder: Path,
    *,
    encoder: str = "",
    config: FinetuneConfig | None = None,
    model: str = "",
    report: Report,
) -> DataCheck:
    """Everything that is wrong with a folder, rather than the first of it.

    With ``encoder`` and the ``config`` of a fine-tuning, also whether the two fit each other; with
    a task model's URI, whether it was trained for the folder's classes.

    Raises:
        ConfigError: the task has no data to check, or the config is another task's.
    """
    if task not in CHECKS:
        raise ConfigError(
            f"there is no check of data for {task!r}",
            expected=f"one of {', '.join(CHECKS)}",
            action="give the name of a task",
        )
    if config is not None and config.task != task:
        raise ConfigError(
            f"the recipe is one of {config.task}",
            expected=f"a recipe of {task}",
            action="give another recipe",
        )
    findings = Findings()
    CHECKS[task](folder, findings, report)
    if encoder and config is not None:
        check_encoder(config, encoder, folder, findings)
    if model:
        check_model(model, folder, findings)
    return findings.result(task)

"""A pipeline on this machine, under ``kfp.local``."""

import warnings
from pathlib import Path
from typing import Any


def run_here(pipeline: Any, arguments: dict[str, Any], folder: Path) -> None:
    """Run to the end; tasks are processes, which keep their scratch files under ``folder``.

    Raises:
        RuntimeError: a task failed; its own words are on standard output.
    """
    from kfp import local

    # It would have every local user read that images and pools are not used locally.
    for message in ("You may be attemping to run a task", r"Task .*: settings .* have no effect"):
        warnings.filterwarnings("ignore", message, module="kfp|clipmill")
    # What fails on one machine fails again, and a person waits for the reason.
    for component in pipeline.pipeline_spec.components.values():
        for task in component.dag.tasks.values():
            task.ClearField("retry_policy")
    for task in pipeline.pipeline_spec.root.dag.tasks.values():
        task.ClearField("retry_policy")
    local.init(
        runner=local.SubprocessRunner(use_venv=False),
        pipeline_root=str(folder / "kfp"),
        workspace_root=str(folder / "workspace"),
    )
    pipeline(**arguments)

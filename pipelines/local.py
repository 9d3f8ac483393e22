"""A pipeline on this machine, under ``kfp.local``."""

import os
import shlex
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from clipmill.cluster.constants import NON_ROOT, STORE_VARIABLES

_EXECUTOR = "-m kfp.dsl.executor_main"
_RESTRICTED = {
    "user": f"{NON_ROOT}:{NON_ROOT}",
    "read_only": True,
    "cap_drop": ["ALL"],
    "security_opt": ["no-new-privileges"],
    "tmpfs": {"/tmp": "rw,size=2g,mode=1777"},  # noqa: S108  # the container's own
    "shm_size": "1g",
}
"""A container as a cluster would have it, in the words of Docker's client."""


def run_here(pipeline: Any, arguments: dict[str, Any], folder: Path, image: str = "") -> None:
    """Run to the end; tasks are processes, which keep their scratch files under ``folder``.

    With ``image`` they are restricted containers of it, under the Docker engine at DOCKER_HOST, on
    this machine's network: the store is a bucket, or lies under ``folder/kfp``, all they see.

    Raises:
        RuntimeError: a task failed; its own words are on standard output.
    """
    from kfp import local
    from kfp.local import subprocess_task_handler

    # It would have every local user read that images and pools are not used locally.
    for message in ("You may be attemping to run a task", r"Task .*: settings .* have no effect"):
        warnings.filterwarnings("ignore", message, module="kfp|clipmill")
    # What fails on one machine fails again, and a person waits for the reason.
    for component in pipeline.pipeline_spec.components.values():
        for task in component.dag.tasks.values():
            task.ClearField("retry_policy")
    for task in pipeline.pipeline_spec.root.dag.tasks.values():
        task.ClearField("retry_policy")
    runner, shared = local.SubprocessRunner(use_venv=False), folder / "kfp"
    if image:
        for executor in pipeline.pipeline_spec.deployment_spec["executors"].values():
            executor["container"]["image"] = image
        store = {name: os.environ[name] for name in STORE_VARIABLES if name in os.environ}
        runner = local.DockerRunner(
            network_mode="host", entrypoint=["env"], environment=store, **_RESTRICTED
        )
        shared.mkdir(parents=True)
        shared.chmod(0o777)  # the containers' user is nobody here
    subprocess_task_handler.replace_python_executable = _with_python
    local.init(
        runner=runner,
        pipeline_root=str(shared),
        workspace_root=str(folder / "workspace"),
    )
    pipeline(**arguments)


def _with_python(command: Sequence[str], executable: str) -> list[str]:
    """Name the interpreter in a task's command, quoted for the shell that reads it.

    kfp 2.17's own function replaces ``python3`` in every argument and doesn't quote, so that a
    space in the interpreter's path, or ``python3`` in a store's, breaks every task.
    """
    ours = f"{shlex.quote(executable)} {_EXECUTOR}"
    return [part.replace(f"python3 {_EXECUTOR}", ours) for part in command]

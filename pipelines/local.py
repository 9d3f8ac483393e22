"""Pipelines on this machine, under ``kfp.local``, and the stages that they will run."""

import json
import os
import re
import shlex
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from clipmill.cluster.constants import NON_ROOT, STORE_VARIABLES, TRACKING_VARIABLES
from clipmill.stage_records import RUN_VARIABLE

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
Planned = tuple[str, float]
"""First word of a stage's name, and its typical duration, seconds."""

STAGES: Mapping[str, Planned | None] = {
    "compare-encoders": ("compare", 8.0),
    "evaluate": ("evaluate", 12.0),
    "evaluate-features": ("evaluate", 35.0),
    "finetune": ("finetune", 30.0),
    "hold-out": ("hold-out", 3.0),
    "load-or-generate-pairs": ("scenes", 40.0),
    "pretrain": ("pretrain", 130.0),
    "promote": ("promote", 3.0),
    "promote-compared": ("promote", 3.0),
    "random-weights": ("random", 40.0),
    "recaption": ("recaption", 12.0),
    "report": ("report", 5.0),
    "photo-report": ("report", 5.0),
    "retrieval": ("retrieval", 8.0),
    "shard": ("shard", 5.0),
    "smoke-test-models": ("serve", 10.0),
    "train-captioner": ("captioner", 90.0),
    # Components without a stage, for which nothing is shown.
    "deploy": None,
    "runs-report": None,
}
"""Stage by component, timed in the demo on two idle cores; others get a default duration."""

OPTIONAL: Mapping[str, str] = {"retrieval": "model"}
"""Input by component; where the input is empty, the component does nothing."""

_CHANNEL = "pipelinechannel--"
_DEFAULT_SECONDS = 20.0
_CONDITION = re.compile(r"inputs\.parameter_values\['pipelinechannel--(\w+)'\] (==|!=) '([^']*)'")


def run_local(pipeline: Any, arguments: dict[str, Any], folder: Path, image: str = "") -> None:
    """Run a pipeline to its end; tasks are processes with scratch files under ``folder``.

    With ``image`` they are restricted containers of it, under the Docker engine at DOCKER_HOST, on
    this machine's network: the store is a bucket, or lies under ``folder/kfp``, all they see.

    Raises:
        RuntimeError: a task failed; its message is on standard output.
    """
    from kfp import local
    from kfp.local import io, subprocess_task_handler
    from kfp.local.orchestrator import task_spec_utils

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
        passed = (*STORE_VARIABLES, *TRACKING_VARIABLES, RUN_VARIABLE)
        environment = {name: os.environ[name] for name in passed if name in os.environ}
        runner = local.DockerRunner(
            network_mode="host", entrypoint=["env"], environment=environment, **_RESTRICTED
        )
        shared.mkdir(parents=True)
        shared.chmod(0o777)  # the containers' user is nobody here
    subprocess_task_handler.replace_python_executable = _with_python
    task_spec_utils.create_parameter_loop_iteration_task_spec = _iteration
    io.IOStore.get_parent_input = _input_or_output
    local.init(
        runner=runner,
        pipeline_root=str(shared),
        workspace_root=str(folder / "workspace"),
    )
    pipeline(**arguments)


def _with_python(command: Sequence[str], executable: str) -> list[str]:
    """Return a task's command with the interpreter's path, quoted for the shell.

    kfp 2.17's own function replaces ``python3`` in every argument and doesn't quote, so that a
    space in the interpreter's path, or ``python3`` in a store's, breaks every task.
    """
    command_line = f"{shlex.quote(executable)} {_EXECUTOR}"
    return [part.replace(f"python3 {_EXECUTOR}", command_line) for part in command]


def _iteration(loop: Any, item: Any, name: str) -> Any:
    """Return the task of one iteration of a loop over parameters.

    kfp 2.17's own function passes the item to every input that comes from a task outside the loop,
    and to that of an outer loop's item.
    """
    from kfp.compiler.pipeline_spec_builder import to_protobuf_value

    del name
    iteration = type(loop)()
    iteration.CopyFrom(loop)
    iteration.ClearField("parameter_iterator")
    value = iteration.inputs.parameters[loop.parameter_iterator.item_input].runtime_value
    value.constant.CopyFrom(to_protobuf_value(item))
    return iteration


def _input_or_output(store: Any, name: str) -> Any:
    """Return a value that a loop or a condition reads in the scope of ``store``, an ``IOStore``.

    kfp 2.17's own function finds no output of a task but the one that is called ``Output``.
    """
    if name in store._parent_input_data:  # noqa: SLF001  # as in kfp's own function
        return store._parent_input_data[name]  # noqa: SLF001
    for task, outputs in store._task_output_data.items():  # noqa: SLF001
        for key, value in outputs.items():
            if name.removeprefix(_CHANNEL) == f"{task}-{key}":
                return value
    if store._parent is None:  # noqa: SLF001
        raise ValueError(name)
    return _input_or_output(store._parent, name)  # noqa: SLF001


def planned_stages(spec: Mapping[str, Any], arguments: Mapping[str, Any]) -> list[Planned]:
    """Return the stages of a compiled pipeline (IR as JSON) for these arguments, in any order.

    A loop counts once per item where its items are constant. A branch is left out where its
    condition compares a parameter of the pipeline and doesn't hold.
    """
    inputs = spec["root"].get("inputDefinitions", {}).get("parameters", {})
    defaults = {name: value.get("defaultValue") for name, value in inputs.items()}
    return list(_stages(spec["root"]["dag"], spec["components"], {**defaults, **arguments}))


def _stages(dag: Any, components: Any, arguments: Mapping[str, Any]) -> Iterator[Planned]:
    for task in dag["tasks"].values():
        if not _may_run(task.get("triggerPolicy", {}).get("condition", ""), arguments):
            continue
        name = task["componentRef"]["name"]
        component = components[name]
        if "dag" in component:
            items = task.get("parameterIterator", {}).get("items", {}).get("raw", "[0]")
            for _ in json.loads(items):
                yield from _stages(component["dag"], components, arguments)
            continue
        # KFP numbers further tasks of one component: comp-promote-2.
        base = re.sub(r"-\d+$", "", name.removeprefix("comp-"))
        if base in OPTIONAL and _is_empty(task["inputs"]["parameters"][OPTIONAL[base]], arguments):
            continue
        planned = STAGES.get(base, (base, _DEFAULT_SECONDS))
        if planned is not None:
            yield planned


def _may_run(condition: str, arguments: Mapping[str, Any]) -> bool:
    match = _CONDITION.fullmatch(condition)
    if match is None or match[1] not in arguments:
        return True
    return (str(arguments[match[1]]) == match[3]) == (match[2] == "==")


def _is_empty(value: Mapping[str, str], arguments: Mapping[str, Any]) -> bool:
    name = value.get("componentInputParameter", "").removeprefix(_CHANNEL)
    return arguments.get(name) == ""

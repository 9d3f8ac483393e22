"""A pipeline's parameters, looked through before anything is started."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from clipmill.data.captioners import captioner_kind
from clipmill.data.dataset import Dataset
from clipmill.errors import ConfigError, NotFoundError, StorageError
from clipmill.models.pretrained import check_address
from clipmill.recipes.registry import get_recipe, recipe_type
from clipmill.stages.pretrain import CAPTION_LABELS
from clipmill.stages.tasks import TaskSpec
from clipmill.tasks.finetune import FinetuneConfig

_TYPES = {"STRING": str, "LIST": list, "STRUCT": dict, "NUMBER_DOUBLE": float}


def parse(pipeline: Any, assignments: Sequence[str]) -> dict[str, Any]:
    """Parameters from ``NAME=VALUE``; lists, dicts and numbers are JSON.

    Raises:
        ConfigError: there is no such parameter, a value is of another type, or one is missing.
    """
    inputs = pipeline.pipeline_spec.root.input_definitions.parameters
    kinds = {name: _TYPES[_kind_name(spec)] for name, spec in inputs.items()}
    found = {}
    for assignment in assignments:
        name, _, text = assignment.partition("=")
        if name not in kinds:
            raise ConfigError(
                f"{pipeline.name} has no parameter {name!r}",
                expected=f"one of {', '.join(sorted(kinds))}",
                action="correct its name",
            )
        found[name] = _value(name, text, kinds[name])
    missing = sorted(n for n, spec in inputs.items() if not spec.is_optional and n not in found)
    if missing:
        raise ConfigError(
            f"{pipeline.name} lacks {', '.join(missing)}",
            expected="a value for each parameter without a default",
            action=f"give --set {missing[0]}=VALUE",
        )
    return found


def check(pipeline: Any, parameters: Mapping[str, Any]) -> None:
    """Find what a task would stop at.

    Raises:
        ConfigError: a recipe, override, caption source or task specification is invalid.
        NotFoundError, ArtifactError: an encoder or dataset that isn't there. A store that can't be
            read from here is left to the tasks.
    """
    inputs = pipeline.pipeline_spec.root.input_definitions.parameters
    every = {name: spec.default_value.string_value for name, spec in inputs.items()}
    every |= parameters
    for name, spec in inputs.items():
        if not name.endswith("_recipe"):
            continue
        kind = recipe_type(spec.default_value.string_value)
        # Fine-tunings share their overrides.
        shared = "finetune_overrides" if kind is FinetuneConfig else ""
        overrides = name.replace("_recipe", "_overrides")
        get_recipe(every[name], kind, parameters.get(overrides, parameters.get(shared, [])))
    if "captions" in every and every["captions"] not in CAPTION_LABELS:
        raise ConfigError(
            f"captions was {every['captions']!r}",
            expected=f"one of {', '.join(CAPTION_LABELS)}",
            action="correct it",
        )
    if parameters.get("captioner"):
        captioner_kind(parameters["captioner"])
    for number, task in enumerate(parameters.get("tasks", [])):
        _ = TaskSpec.from_json(task, f"tasks[{number}]").sweep
    try:
        if "encoder" in parameters:
            check_address(parameters["encoder"])
        if "dataset" in parameters:
            Dataset.open(parameters["dataset"])
    except NotFoundError:
        raise
    except StorageError:
        return


def _kind_name(spec: Any) -> str:
    from kfp.pipeline_spec.pipeline_spec_pb2 import ParameterType

    return str(ParameterType.ParameterTypeEnum.Name(spec.parameter_type))


def _value(name: str, text: str, kind: type) -> Any:
    if kind is str:
        return text
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind):
        raise ConfigError(
            f"{name} was {text!r}",
            expected={list: "a JSON list", dict: "a JSON object", float: "a number"}[kind],
            action="write it as JSON, in single quotes for the shell",
        )
    return value

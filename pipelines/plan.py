"""Stages that a pipeline will run on one machine, and how long each typically takes."""

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

Planned = tuple[str, float]
"""First word of a stage's name, and seconds."""

STAGES: Mapping[str, Planned | None] = {
    "compare-encoders": ("compare", 8.0),
    "evaluate": ("evaluate", 12.0),
    "evaluate-features": ("evaluate", 35.0),
    "finetune": ("finetune", 30.0),
    "hold-out": ("hold-out", 3.0),
    "pretrain": ("pretrain", 130.0),
    "probe": ("serve", 10.0),
    "promote": ("promote", 3.0),
    "promote-compared": ("promote", 3.0),
    "random-weights": ("random", 40.0),
    "recaption": ("recaption", 12.0),
    "report": ("report", 5.0),
    "report-photos": ("report", 5.0),
    "retrieval": ("retrieval", 8.0),
    "shard": ("shard", 5.0),
    "source": ("scenes", 40.0),
    "train-captioner": ("captioner", 90.0),
    # Without a stage: nothing is shown for them.
    "compare": None,
    "deploy": None,
    "finish-run": None,
    "is-new": None,
    "remember": None,
}
"""By component, as the demo took on two quiet cores. Any other takes a default's time."""

OPTIONAL: Mapping[str, str] = {"retrieval": "model"}
"""Input by component that does nothing where the input is empty."""

_CHANNEL = "pipelinechannel--"
_DEFAULT_SECONDS = 20.0
_CONDITION = re.compile(r"inputs\.parameter_values\['pipelinechannel--(\w+)'\] (==|!=) '([^']*)'")


def planned_stages(spec: Mapping[str, Any], arguments: Mapping[str, Any]) -> list[Planned]:
    """Stages of a compiled pipeline (its IR as JSON) for these arguments, in no certain order.

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
    found = _CONDITION.fullmatch(condition)
    if found is None or found[1] not in arguments:
        return True
    return (str(arguments[found[1]]) == found[3]) == (found[2] == "==")


def _is_empty(value: Mapping[str, str], arguments: Mapping[str, Any]) -> bool:
    name = value.get("componentInputParameter", "").removeprefix(_CHANNEL)
    return arguments.get(name) == ""

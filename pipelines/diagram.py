"""Graph of a compiled pipeline as Mermaid: tasks as boxes, loops and conditions as frames.

GitHub and the documentation's site draw Mermaid in the reader's colors.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

Spec = Mapping[str, Any]
Edge = tuple[str, str]

_BLOCK = re.compile(r"```mermaid\n%% (?P<name>\S+)\n.*?```", re.DOTALL)


def with_diagrams(page: str, diagrams: Mapping[str, str]) -> str:
    """Return a Markdown page with its Mermaid blocks replaced; their first line is ``%% NAME``.

    Raises KeyError where a block names no diagram.
    """
    return _BLOCK.sub(lambda m: f"```mermaid\n%% {m['name']}\n{diagrams[m['name']]}```", page)


def diagram(spec: Spec, platform: Spec) -> str:
    """Return the flowchart of a pipeline, from both documents of its YAML."""
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    gpu = {
        name
        for name, executor in executors.items()
        if executor["nodeSelector"]["labels"]["clipmill.io/pool"] == "gpu"
    }
    lines = ["flowchart TD", "  classDef gpu stroke:#d9822b,stroke-width:3px"]
    lines += [f"  {line}" for line in _graph(spec["root"]["dag"], spec["components"], gpu, set())]
    return "\n".join(lines) + "\n"


def _graph(dag: Spec, components: Spec, gpu: set[str], taken: set[str]) -> Iterator[str]:
    """Yield the lines of a graph; ``taken`` are the ids of nodes so far."""
    tasks = dag["tasks"]
    ids = {}
    for name, task in tasks.items():
        ids[name] = _new_id(name, taken)
        component = components[task["componentRef"]["name"]]
        if "dag" in component:
            yield f'subgraph {ids[name]}["{_title(task)}"]'
            yield "  direction TB"
            inner = _graph(component["dag"], components, gpu, taken)
            yield from (f"  {line}" for line in inner)
            yield "end"
        else:
            style = ":::gpu" if component["executorLabel"] in gpu else ""
            yield f'{ids[name]}["{task["taskInfo"]["name"]}"]{style}'
    edges = [
        (above, name) for name, task in tasks.items() for above in task.get("dependentTasks", [])
    ]
    for above, below in without_shortcuts(tasks, edges):
        yield f"{ids[above]} --> {ids[below]}"


def _new_id(name: str, taken: set[str]) -> str:
    base = name.replace("-", "_")
    numbered = (f"{base}_{number}" for number in itertools.count(2))
    new = next(word for word in itertools.chain([base], numbered) if word not in taken)
    taken.add(new)
    return new


def _title(task: Spec) -> str:
    name = task["taskInfo"]["name"]
    if "parameterIterator" in task:
        items = task["parameterIterator"]["items"]
        if "raw" in items:
            return f"for each of {items['raw']}".replace('"', "#quot;")
        source = items["inputParameter"].removeprefix("pipelinechannel--").removesuffix("-Output")
        return f"for each of {source}"
    if "condition" in task.get("triggerPolicy", {}):
        return f"if {name.removeprefix('if-')}"
    return str(name)


def without_shortcuts(names: Iterable[str], edges: Sequence[Edge]) -> list[Edge]:
    """Return the edges of an acyclic graph without those that a longer path implies."""
    below: dict[str, set[str]] = {name: set() for name in names}
    for above, under in edges:
        below[above].add(under)

    def reachable(start: str) -> set[str]:
        seen: set[str] = set()
        waiting = [start]
        while waiting:
            new = below[waiting.pop()] - seen
            seen |= new
            waiting += new
        return seen

    return [
        (above, under)
        for above, under in edges
        if not any(under in reachable(other) for other in below[above] - {under})
    ]

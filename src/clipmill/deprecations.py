"""Names of clipmill 0.1 that still work in 0.2: commands, options and recipes.

The first use of an old name in a process prints one line on standard error. The tables are the
source of the changelog's list of old and new names. Remove them, and the code that reads them, in
0.3.
"""

import sys
from collections.abc import Mapping
from functools import cache
from typing import Final

COMMANDS: Final[Mapping[str, str]] = {
    "pretrain DATASET": "pretrain clip DATASET",
    "pretrain-mae": "pretrain mae",
    "pretrain-supervised": "pretrain supervised",
    "evaluate": "eval task",
    "zero-shot": "eval zero-shot",
    "retrieval": "eval retrieval",
    "attention": "eval attention",
    "page": "report",
    "report URI": "study compare URI",
    "query": "predict",
    "recipes": "recipes list",
    "recipes NAME": "recipes show NAME",
    "data scenes": "data generate-scenes",
    "data finish": "data finalize",
    "data teacher": "data embed-teacher",
    "data view": "data preview",
    "data check": "data validate",
    "cluster data-status": "cluster workflow status",
    "cluster suspend": "cluster workflow suspend",
    "cluster resume": "cluster workflow resume",
    "cluster capacity": "cluster plan-capacity",
}
"""New command by old command. ``report URI`` is an error that names its new command."""

_EXECUTOR: Final = {
    "--on here": "--executor local",
    "--on argo": "--executor argo",
    "--on": "--executor",
}

OPTIONS: Final[Mapping[str, Mapping[str, str]]] = {
    "cluster submit": {"--on": "--scheduler"},
    "data embed-teacher": {"--captions": "--caption-layer"},
    "data export": {"--layer": "--caption-layer"},
    "data preview": {"--best": "--top", "--worst": "--bottom"},
    "data recaption": _EXECUTOR,
    "data score": _EXECUTOR,
    "data select": {"--layer": "--prefer-layer"},
    "data shard": _EXECUTOR,
    "demo": {"--keep": "--keep-running"},
    "pretrain clip": {"--layer": "--caption-layer"},
    "promote": {"--threshold": "--min-metric"},
    "report": {"--layer": "--caption-layer"},
    "serve": {"--json-logs": "--log-format json"},
    "study captions": {"--quick": "--recipe study-captions-quick"},
    "sweep": {"--gate": "--min-metric"},
}
"""New option by old option, by new command. An entry may include the option's value."""

_TINY: Final = (
    "cascade-mask-rcnn",
    "classification",
    "clip",
    "clip-mci0",
    "clip-vit",
    "coca",
    "depth",
    "linear-depth",
    "linear-probe",
    "linear-segmentation",
    "mae",
    "mask-rcnn",
    "recaption",
    "scenes",
    "select",
    "semantic-fpn",
    "shards",
    "supervised",
    "sweep-depth",
    "sweep-upernet",
    "teacher",
    "upernet",
)
RECIPES: Final[Mapping[str, str]] = {
    **{f"{name}-miniature": f"{name}-tiny" for name in _TINY},
    "recaption-rewrite-laclip": "rewrite-laclip",
    "scenes-every-task": "scenes-all-tasks",
    "study-brief": "study-short",
}
"""New recipe by old recipe."""


def current_recipe(name: str) -> str:
    """Return the current name of a recipe, with a warning if ``name`` is an old one."""
    if name not in RECIPES:
        return name
    warn_renamed(f'recipe "{name}"', f'"{RECIPES[name]}"')
    return RECIPES[name]


@cache
def warn_renamed(old: str, new: str) -> None:
    """Print once per process that ``old`` is now ``new``."""
    sys.stderr.write(f"warning: {old} is now {new}\n")

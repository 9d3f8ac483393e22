"""The tables of docs/tasks.md, from the tasks and recipes themselves.

``python -m clipmill.recipes.task_table docs/tasks.md`` writes them anew between their marks.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path

from clipmill.recipes.registry import RECIPES
from clipmill.tasks.base import Metric
from clipmill.tasks.finetune import FinetuneConfig
from clipmill.tasks.registry import TASKS
from clipmill.tasks.sweep import SweepConfig

BEGIN, END = "<!-- generated: task_table -->", "<!-- end of generated -->"


def tables() -> str:
    """Both tables as Markdown: the tasks, and the recipes that fine-tune."""
    return f"{task_table()}\n\n{recipe_table()}\n"


def task_table() -> str:
    """A row a task: what it gives, and by what it is judged."""
    rows = [
        [
            name,
            "<br>".join(
                f"`{o.name}` ({', '.join(map(str, o.shape))}) {o.dtype}, {o.unit}"
                for o in task.outputs
            ),
            _judged(task.metric),
            "<br>".join(f"`{n}`" for n in _recipes_of(name)),
        ]
        for name, task in sorted(TASKS.items())
    ]
    return _markdown(["task", "a prediction", "judged by", "recipes"], rows)


def recipe_table() -> str:
    """A row a recipe of fine-tuning: how long it trains, and what its source expects of it."""
    rows = []
    for name, make in sorted(RECIPES.items()):
        config = make()
        if not isinstance(config, FinetuneConfig):
            continue
        train = config.train
        decay = train.optimizer.layer_decay
        rows.append(
            [
                f"`{name}`",
                f"{train.steps:,} x {train.batch_size}",
                f"{train.schedule.lr:g}",
                f"{train.optimizer.weight_decay:g}",
                f"{decay:g}" if decay < 1 else "none",
                _said(make.__doc__, "Source"),
                _said(make.__doc__, "Expected"),
            ]
        )
    head = ["recipe", "steps x batch", "peak rate", "weight decay", "layer decay"]
    return _markdown([*head, "source", "expected (not run unless docs/hardware.md says so)"], rows)


def _judged(metric: Metric) -> str:
    unit = f", {metric.unit}" if metric.unit else ""
    return f"{metric.name}{unit}; {'more' if metric.higher_is_better else 'less'} is better"


def _recipes_of(task: str) -> Iterable[str]:
    for name, make in sorted(RECIPES.items()):
        config = make()
        config = config.finetune if isinstance(config, SweepConfig) else config
        if isinstance(config, FinetuneConfig) and config.task == task:
            yield name


def _said(docstring: str | None, word: str) -> str:
    """Return a recipe's docstring after a word such as ``Source``, on one line."""
    text = " ".join((docstring or "").split())
    found = re.search(rf"{word}[^:]*: (.*?)(?=\s(?:Command|Hardware|Expected|Source)\b|$)", text)
    words = found[1].replace("``", "`").replace("|", "\\|").rstrip(". ") if found else ""
    return re.sub(r":func:`(\w+)`", r"`\1`", words)


def _markdown(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def main() -> None:
    """Write the tables into the file that the command names."""
    path = Path(sys.argv[1])
    before, _, rest = path.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    path.write_text(f"{before}{BEGIN}\n{tables()}{END}{after}")


if __name__ == "__main__":
    main()

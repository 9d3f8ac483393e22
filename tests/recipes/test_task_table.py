"""docs/tasks.md is what the code says."""

from pathlib import Path

from clipmill.recipes.registry import RECIPES
from clipmill.recipes.task_table import BEGIN, END, recipe_table, tables, task_table
from clipmill.tasks.finetune import FinetuneConfig
from clipmill.tasks.registry import TASKS

DOCS = Path(__file__).parents[2] / "docs" / "tasks.md"


def test_the_page_is_fresh():
    """If not: python -m clipmill.recipes.task_table docs/tasks.md."""
    between = DOCS.read_text().partition(BEGIN)[2].partition(END)[0]
    assert between.strip() == tables().strip()


def test_every_task_and_recipe_has_a_row():
    assert len(task_table().splitlines()) == 2 + len(TASKS)
    recipes = [name for name, make in RECIPES.items() if isinstance(make(), FinetuneConfig)]
    rows = recipe_table().splitlines()[2:]
    assert [row.split("`")[1] for row in rows] == sorted(recipes)


def test_a_rows_words_are_the_docstrings():
    (row,) = [line for line in recipe_table().splitlines() if "`depth-vit-b16`" in line]
    assert "| 25,225 x 24 | 0.0005 | 0.05 | 0.8 | CLIP-QC, Table 15" in row
    assert "0.339 m from DataCompDR" in row
    assert "Hardware" not in row

"""Components are thin."""

import ast
from pathlib import Path

import pytest

FOLDER = Path(__file__).resolve().parent.parent.parent / "components"
FILES = sorted(p for p in FOLDER.rglob("*.py") if p.name != "__init__.py")
NAMED = (
    "shard", "recaption", "score", "select", "pretrain", "embed_teacher", "pretrain_mae",
    "finetune", "sweep", "evaluate", "runs_report", "promote", "deploy", "report",
)  # fmt: skip


def test_every_stage_has_one():
    assert set(NAMED) <= {file.stem for file in FILES}


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_component_is_one_function_of_at_most_fifteen_lines(file):
    functions = [n for n in ast.parse(file.read_text()).body if isinstance(n, ast.FunctionDef)]
    (function,) = functions
    assert function.name == file.stem
    _docstring, *body = function.body
    assert sum(n.end_lineno - n.lineno + 1 for n in body) <= 15

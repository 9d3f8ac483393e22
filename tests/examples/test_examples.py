"""Each example runs as a person would run it, without arguments, in a folder of its own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
PRINTED = {
    "finetune_public_weights.py": r"mIoU \d+\.\d+\n(?s:.*)classes \(64, 64\)",
    "pretrain_on_pairs.py": r"128 pairs; .*\n(?s:.*)20/20 (?s:.*)cosine of the first pair",
    "serve_and_query.py": r"serves \['mine'\]: segmentation\n.*\(64, 64\)(?s:.*)%",
    "submit_to_kubeflow.py": r"pipeline.yaml: encoder-to-tasks",
}
"""Part of each script's output."""


def run(path, folder, *arguments):
    environment = {**os.environ, "CLIPMILL_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, str(path), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )


@pytest.mark.parametrize("name", PRINTED)
def test_a_script_runs(name, tmp_path):
    done = run(EXAMPLES / name, tmp_path)
    assert done.returncode == 0, done.stderr
    assert re.search(PRINTED[name], done.stdout), done.stdout
    if name == "submit_to_kubeflow.py":
        spec = next(yaml.safe_load_all((tmp_path / "pipeline.yaml").read_text()))
        assert spec["pipelineInfo"]["name"] == "encoder-to-tasks"


def test_the_notebook_is_clean_and_runs(tmp_path):
    notebook = json.loads((EXAMPLES / "features.ipynb").read_text())
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
    assert len(cells) > 4
    assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
    script = tmp_path / "notebook.py"
    script.write_text("\n".join("".join(cell["source"]) + "\n" for cell in cells))
    done = run(script, tmp_path)
    assert done.returncode == 0, done.stderr


def test_the_table_has_every_example():
    files = {p.name for p in EXAMPLES.iterdir() if p.suffix in {".py", ".ipynb"}}
    rows = re.findall(r"^\| \[([\w.]+)\]\(\1\)", (EXAMPLES / "README.md").read_text(), re.MULTILINE)
    assert set(rows) == files == {*PRINTED, "features.ipynb"}


def test_every_script_has_arguments(tmp_path):
    for name in PRINTED:
        text = (EXAMPLES / name).read_text()
        assert "argparse" in text
        assert len(text.splitlines()) <= 70

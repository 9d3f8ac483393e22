"""Asking whether a run is done already must not cost an import of torch."""

import subprocess
import sys

import pytest

MODULES = ("clip", "mae", "supervised", "teacher", "coca", "start", "distillation")


@pytest.mark.parametrize("module", MODULES)
def test_configs_and_stages_import_without_torch(module):
    code = f"import sys, clipmill.pretrain.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_recipes_import_without_torch():
    code = "import sys, clipmill.recipes.registry; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

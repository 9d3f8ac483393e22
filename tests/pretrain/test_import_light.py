"""Configs are read by every command, and must not cost an import of torch."""

import subprocess
import sys

import pytest

MODULES = (
    "clipmill.engine.config",
    "clipmill.engine.result",
    "clipmill.models.checkpoint",
    "clipmill.models.clip",
    "clipmill.models.config",
    "clipmill.models.pretrained",
    "clipmill.pretrain.config",
    "clipmill.recipes.registry",
)


@pytest.mark.parametrize("module", MODULES)
def test_imports_without_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

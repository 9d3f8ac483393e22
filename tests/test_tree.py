"""The README shows the tree as it is."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_every_path_in_the_readme_exists():
    table = (ROOT / "README.md").read_text().split("## The tree")[1].split("\n## ")[0]
    paths = re.findall(r"^\| `([^`]+)` \|", table, flags=re.MULTILINE)
    assert len(paths) > 20
    assert [p for p in paths if not (ROOT / p).exists()] == []


def test_every_package_and_top_folder_is_in_the_readme():
    table = (ROOT / "README.md").read_text().split("## The tree")[1].split("\n## ")[0]
    packages = [p.parent for p in (ROOT / "src" / "clipmill").glob("*/__init__.py")]
    folders = [ROOT / n for n in ("components", "pipelines", "benchmarks", "tests", "requirements")]
    shown = [str(p.relative_to(ROOT)) + "/" for p in (*packages, *folders)]
    assert [p for p in shown if f"`{p}`" not in table] == []


def test_every_package_is_in_the_wheel():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = [p.parent.relative_to(ROOT / "src") for p in (ROOT / "src").rglob("__init__.py")]
    packages = {".".join(folder.parts) for folder in folders}
    assert packages <= set(setuptools["packages"])

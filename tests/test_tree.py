"""The README and the architecture page show the tree as it is."""

import ast
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = [p.parent for p in (ROOT / "src" / "clipmill").glob("*/__init__.py")]


def layout():
    """The README's table of paths."""
    return (ROOT / "README.md").read_text().split("## Repository layout")[1].split("\n## ")[0]


def test_every_path_in_the_readme_exists():
    paths = re.findall(r"^\| `([^`]+)` \|", layout(), flags=re.MULTILINE)
    assert len(paths) == 14
    assert [p for p in paths if not (ROOT / p).exists()] == []


def test_every_top_folder_is_in_the_readme():
    outputs = re.compile(r"\.|build$|dist$|site$|.*\.egg-info$")
    kept = {p.name for p in ROOT.iterdir() if p.is_dir() and not outputs.match(p.name)}
    table = layout()
    assert [name for name in kept - {"src"} if f"`{name}/`" not in table] == []
    assert "`src/clipmill/`" in table


def test_every_package_is_in_the_layers_of_the_architecture():
    page = (ROOT / "docs" / "architecture.md").read_text()
    layers = page.split("## Package layering")[1].split("\n## ")[0]
    assert len(PACKAGES) > 10
    assert [p.name for p in PACKAGES if f"`{p.name}`" not in layers] == []


def test_every_package_and_module_of_the_architecture_exists():
    page = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| [a-z ]+ \| ((?:`\w+`(?:, )?)+) \|", page, flags=re.MULTILINE)
    names = re.findall(r"`(\w+)`", " ".join(rows))
    assert len(names) > 15
    there = {p.name for p in PACKAGES} | {p.stem for p in (ROOT / "src" / "clipmill").glob("*.py")}
    assert set(names) <= there


def test_every_function_and_component_of_the_stages_exists():
    page = (ROOT / "docs" / "architecture.md").read_text()
    functions = re.findall(r"`clipmill((?:\.\w+)+)\.(\w+)`", page)
    assert len(functions) > 15
    for module, name in functions:
        file = ROOT / "src" / "clipmill" / f"{module[1:].replace('.', '/')}.py"
        assert re.search(rf"^def {name}\(", file.read_text(), re.MULTILINE), (module, name)
    components = re.findall(r"`(components/[\w/]+\.py)`", page)
    assert len(components) > 10
    assert [c for c in components if not (ROOT / c).exists()] == []


@pytest.mark.parametrize(
    ("heading", "longest"), [("From a caption to the loss", 15), ("From a request to the mask", 12)]
)
def test_every_function_of_a_walk_is_in_its_file(heading, longest):
    page = (ROOT / "docs" / "architecture.md").read_text()
    walk = page.split(f"## {heading}\n")[1].split("\n## ")[0]
    rows = re.findall(r"^\| `([\w.]+)` \| `([\w/]+\.py)` \|", walk, re.MULTILINE)
    assert 8 < len(rows) <= longest
    for function, file in rows:
        tree = ast.parse((ROOT / "src" / "clipmill" / file).read_text())
        for name in function.split("."):
            inside = [node for node in tree.body if getattr(node, "name", "") == name]
            assert inside, (function, file)
            tree = inside[-1]


def test_every_package_is_in_the_wheel():
    setuptools = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    folders = [p.parent.relative_to(ROOT / "src") for p in (ROOT / "src").rglob("__init__.py")]
    packages = {".".join(folder.parts) for folder in folders}
    assert packages <= set(setuptools["packages"])

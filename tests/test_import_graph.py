"""No import cycles, lazy imports and those for type checkers included."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# In a process of its own: grimp finds packages by their names, and components and pipelines are
# parts of clipmill only once they are installed.
GRAPH = """
import json, sys
import grimp
graph = grimp.build_graph("clipmill", cache_dir=None)
edges = {m: sorted(graph.find_modules_directly_imported_by(m)) for m in sorted(graph.modules)}
json.dump(edges, sys.stdout)
"""


@pytest.fixture(scope="module")
def imports(tmp_path_factory):
    """The modules that each module imports, anywhere in its file."""
    folder = tmp_path_factory.mktemp("graph") / "clipmill"
    folder.mkdir()
    for path in (ROOT / "src" / "clipmill").iterdir():
        (folder / path.name).symlink_to(path)
    for name in ("components", "pipelines"):
        (folder / name).symlink_to(ROOT / name)
    done = subprocess.run(
        [sys.executable, "-c", GRAPH],
        env={"PYTHONPATH": str(folder.parent)},
        capture_output=True,
        text=True,
        check=True,
    )
    return {module: set(targets) for module, targets in json.loads(done.stdout).items()}


def with_packages(imports):
    """Add that who imports a module from outside its package imports the package, too."""
    graph = {}
    for module, targets in imports.items():
        graph[module] = set(targets)
        for target in targets:
            package = target.rpartition(".")[0]
            while package and not f"{module}.".startswith(f"{package}."):
                graph[module].add(package)
                package = package.rpartition(".")[0]
    return graph


def cycles(graph):
    """Groups of modules that import each other, directly or not (Tarjan's algorithm)."""
    order, low, stack, groups = {}, {}, [], []

    def visit(node):
        order[node] = low[node] = len(order)
        stack.append(node)
        for target in sorted(graph.get(node, ())):
            if target not in order:
                visit(target)
                low[node] = min(low[node], low[target])
            elif target in stack:
                low[node] = min(low[node], order[target])
        if low[node] == order[node]:
            group = stack[stack.index(node) :]
            del stack[-len(group) :]
            if len(group) > 1:
                groups.append(sorted(group))

    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(10_000)
    try:
        for node in sorted(graph):
            if node not in order:
                visit(node)
    finally:
        sys.setrecursionlimit(limit)
    return groups


def test_the_graph_has_everything(imports):
    assert len(imports) > 200
    for module in (
        "clipmill.components.training.sweep",
        "clipmill.pipelines.submit",
        "clipmill.stages",
    ):
        assert module in imports
    # An import for type checkers, and a lazy one.
    assert "clipmill.serve.client" in imports["clipmill"]
    assert "clipmill.stages" in imports["clipmill.cli.train"]


def test_no_modules_import_each_other(imports):
    assert cycles(with_packages(imports)) == []


def test_no_module_imports_the_public_names(imports):
    """They are for users: a module that took them would import most of the library."""
    library = {m for m in imports if m.startswith("clipmill.")}
    assert [m for m in library if "clipmill" in imports[m]] == []


@pytest.mark.parametrize("parent", ["clipmill", "clipmill.data", "clipmill.models"])
def test_no_packages_import_each_other(imports, parent):
    """The children of a package, each with all that is below it."""
    children = {m for m in imports if m.rpartition(".")[0] == parent}

    def child_of(module):
        return next((c for c in children if f"{module}.".startswith(f"{c}.")), None)

    graph = {child: set() for child in children}
    for module, targets in imports.items():
        source = child_of(module)
        if source:
            graph[source] |= {child_of(target) for target in targets} - {None, source}
    assert cycles(graph) == []


def test_a_cycle_would_be_seen():
    assert cycles({"a": {"b"}, "b": {"c"}, "c": {"a"}, "d": {"a"}}) == [["a", "b", "c"]]
    package = with_packages({"a.b": {"c.d"}, "c": {"a.b"}, "c.d": set(), "a": set()})
    assert cycles(package) == [["a.b", "c"]]

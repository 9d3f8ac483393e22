"""``python -m clipmill.pipelines.compile``: write every generated file of the repository.

The compiled pipelines in ``manifests/`` and the chart, a diagram of each in ``docs/``, tables of
components in ``components/``, the chart's rules and dashboards from ``telemetry.py``, and the table
of pools from the chart's values.
``--check`` compares instead, and fails where a file differs.
"""

import importlib
import re
import sys
import tempfile
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parent.parent
MANIFESTS = ROOT / "manifests"
CHART = ROOT / "helm" / "clipmill"
DIAGRAMS = ROOT / "docs" / "pipelines" / "README.md"
COMPONENTS = ROOT / "components"


def compile_all(folder: Path) -> list[Path]:
    """Compile each pipeline to a YAML file of its name; the files."""
    from clipmill.pipelines.registry import PIPELINES
    from kfp import compiler

    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for pipeline in PIPELINES.values():
        files.append(folder / f"{pipeline.name}.yaml")
        compiler.Compiler().compile(pipeline, str(files[-1]))
    return files


def generated() -> dict[Path, str]:
    """Text of every generated file, by its path in the repository."""
    from clipmill.pipelines.diagram import diagram, with_diagrams

    from clipmill.cluster.manifests import examples, monitoring_files
    from clipmill.cluster.pools import pools_json

    pools = ROOT / "src" / "clipmill" / "cluster" / "pools.json"
    files = {pools: pools_json(CHART / "values.yaml")}
    files |= {CHART / "files" / name: text for name, text in monitoring_files().items()}
    files |= component_readmes()
    diagrams = {}
    with tempfile.TemporaryDirectory() as scratch:
        for file in compile_all(Path(scratch)):
            text = file.read_text()
            for folder in (MANIFESTS, CHART / "files" / "pipelines"):
                files[folder / file.name] = text
            diagrams[file.stem] = diagram(*yaml.safe_load_all(text))
    files[DIAGRAMS] = with_diagrams(DIAGRAMS.read_text(), diagrams)
    files |= {MANIFESTS / "examples" / name: text for name, text in examples().items()}
    return files


def component_readmes() -> dict[Path, str]:
    """Return a README for each category of components: name, purpose, inputs and outputs."""
    readmes = {}
    for package in sorted(COMPONENTS.glob("*/__init__.py")):
        category = package.parent.name
        module = importlib.import_module(f"clipmill.components.{category}")
        rows = [_component_row(file) for file in sorted(package.parent.glob("[a-z]*.py"))]
        lines = [
            f"# {category.capitalize()} components",
            "",
            str(module.__doc__).strip(),
            "",
            "| component | purpose | inputs | outputs |",
            "|---|---|---|---|",
            *rows,
            "",
            "Written by `python -m clipmill.pipelines.compile` from the components' docstrings.",
        ]
        readmes[package.parent / "README.md"] = "\n".join(lines) + "\n"
    return readmes


def _component_row(file: Path) -> str:
    name = file.stem
    module = importlib.import_module(f"clipmill.components.{file.parent.name}.{name}")
    component = getattr(module, name)
    spec = component.component_spec
    purpose = component.python_func.__doc__.partition("\n")[0].rstrip(".")
    inputs = ", ".join(f"`{key}`" for key in spec.inputs or {})
    # KFP calls a single returned value Output.
    outputs = [", ".join(f"`{key}`" for key in spec.outputs or {} if key != "Output")]
    returned = re.search(r"Returns:\n(.*)", component.python_func.__doc__, re.DOTALL)
    if returned:
        outputs.insert(0, " ".join(returned[1].split()).rstrip("."))
    produced = "; ".join(filter(None, outputs)) or "none"
    return f"| [`{name}`]({file.name}) | {purpose} | {inputs} | {produced} |"


def _write(files: dict[Path, str], *, check: bool) -> list[str]:
    """Write the files, or only say which differ."""
    stale = []
    for file, text in files.items():
        if check:
            if not file.exists() or file.read_text() != text:
                stale.append(str(file.relative_to(ROOT)))
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return stale


def main() -> int:
    """Write the generated files, or check that they are current."""
    check = "--check" in sys.argv
    stale = _write(generated(), check=check)
    if not check:
        return 0
    if stale:
        sys.stderr.write(f"stale: {', '.join(stale)}; run python -m clipmill.pipelines.compile\n")
    return bool(stale)


if __name__ == "__main__":
    sys.exit(main())

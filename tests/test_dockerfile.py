"""What can be told of the images without building them."""

import importlib.util
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "Dockerfile").read_text()
TARGETS = ("data", "train", "serve")


def stage(name: str) -> str:
    return re.search(rf"^FROM \S+ AS {name}\n(.*?)(?=^FROM|\Z)", TEXT, re.DOTALL | re.MULTILINE)[1]


@pytest.mark.parametrize("target", TARGETS)
def test_every_target_ends_as_a_plain_user(target):
    assert re.findall(r"^USER (.*)$", stage(target), re.MULTILINE) == ["10001:10001"]
    assert "sbom.json" in stage(target)


def test_the_endpoint_says_whether_it_is_well():
    assert "HEALTHCHECK" in stage("serve")
    assert "/v2/health/ready" in stage("serve")


def test_nothing_is_installed_that_isnt_pinned():
    scripts = [(ROOT / "requirements" / f"{n}.sh").read_text() for n in ("install", "finish")]
    commands = re.findall(r"pip install.*", "\n".join([TEXT, *scripts]))
    assert len(commands) == 3
    assert all("--no-deps" in command for command in commands)
    files = re.findall(r"install\.sh ([a-z-]+) ", TEXT)
    assert len(files) == 3
    spec = importlib.util.spec_from_file_location("lock", ROOT / "requirements" / "lock.py")
    lock = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(lock)
    assert set(files) == set(lock.IMAGES)
    for name in files:
        text = (ROOT / "requirements" / f"{name}.txt").read_text()
        pins = re.findall(
            r"^([\w.-]+)==\S+(?: ; [^\\\n]+)?(?: \\\n    --hash=sha256:[0-9a-f]{64})+$",
            text,
            re.MULTILINE,
        )
        assert len(pins) == len(re.findall(r"^\w", text, re.MULTILINE)) > 50
        assert "@ file:" not in text
    assert "--require-hashes" in scripts[0]


def test_what_is_copied_isnt_ignored():
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    assert {"src", "components", "pipelines", "requirements", "pyproject.toml"} <= kept
    assert all((ROOT / name).exists() for name in kept)


@pytest.mark.parametrize(
    ("what", "kept"),
    [("torch", ""), ("cuda", "torch==2.14.1 \\\n    --hash=sha256:2\nnvidia-cuda-runtime==13\n")],
)
def test_cuda_is_left_out_with_its_hashes(what, kept):
    path = ROOT / "requirements" / "without.py"
    spec = importlib.util.spec_from_file_location("without", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = (
        "timm==1.0 \\\n    --hash=sha256:1\n"
        "torch==2.14.1 \\\n    --hash=sha256:2\nnvidia-cuda-runtime==13\n"
        "nvidia-nccl-cu13==2.30.7 ; sys_platform == 'linux' \\\n"
        "    --hash=sha256:3 \\\n    --hash=sha256:4\n"
        "torchx-nightly==2026.10.26\ntriton==3.8.0\ncuda-toolkit==13\n"
    )
    assert module.without(what, text) == (
        f"timm==1.0 \\\n    --hash=sha256:1\n{kept}torchx-nightly==2026.10.26\n"
    )

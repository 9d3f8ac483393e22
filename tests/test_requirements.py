"""The lock files: pins with markers, for every platform and Python version that is supported."""

import os
import re
import subprocess
import sys
import tomllib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import pytest
from packaging import tags
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name, parse_sdist_filename, parse_wheel_filename

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
FILES = sorted((ROOT / "requirements").glob("*.txt"))
DOCS = ROOT / "requirements" / "docs.txt"
"""The documentation's, in an environment of its own: no torch."""
PEERS, IMG2DATASET = (ROOT / "requirements" / f"{name}.txt" for name in ("peers", "img2dataset"))
"""The benchmarks' peers, in two environments of their own; the second has no torch."""
PYTHONS = ("3.11", "3.12", "3.13")
PLATFORMS = {"linux x86_64": "Linux", "linux aarch64": "Linux", "darwin arm64": "Darwin"}
INDEX = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/")
FROM_SOURCE = {"kfp-server-api", "onedl-mmcv", "onedl-mmdetection", "onedl-mmsegmentation"}
"""Packages of Python alone that are published without a wheel."""
COMPILED = {"linux aarch64": {"psutil"}}
"""Packages whose source is compiled: docs/install.md names them."""


def pins(path):
    lines = re.findall(r"^\w[^\\\n]*", path.read_text(), re.MULTILINE)
    return [Requirement(line.strip()) for line in lines]


def wanted(requirements, platform, python):
    """Those whose markers hold on a platform, by name."""
    system, machine = platform.split()
    environment = {
        "implementation_name": "cpython",
        "platform_python_implementation": "CPython",
        "platform_machine": machine,
        "platform_system": PLATFORMS[platform],
        "python_full_version": f"{python}.0",
        "python_version": python,
        "sys_platform": system,
    }
    held = (r for r in requirements if r.marker is None or r.marker.evaluate(environment))
    return {canonicalize_name(r.name): r for r in held}


def fitting_tags(platform, python):
    """What pip on such a machine can install: glibc 2.28, or macOS 14."""
    system, machine = platform.split()
    if system == "darwin":
        platforms = list(tags.mac_platforms((14, 0), machine))
    else:
        minor = range(28, 4, -1)
        platforms = [f"manylinux_2_{n}_{machine}" for n in minor] + [f"manylinux2014_{machine}"]
        platforms += [f"manylinux{year}_{machine}" for year in (1, 2010)]
    version = tuple(map(int, python.split(".")))
    interpreter = "cp" + python.replace(".", "")
    return {
        *tags.cpython_tags(version, platforms=platforms),
        *tags.compatible_tags(version, interpreter=interpreter, platforms=platforms),
    }


@pytest.mark.parametrize(
    "path", [f for f in FILES if f not in {DOCS, IMG2DATASET}], ids=lambda path: path.stem
)
def test_markers_keep_cuda_off_a_mac_and_windows_out_of_linux(path):
    requirements = pins(path)
    assert len(requirements) > 50
    mac = wanted(requirements, "darwin arm64", "3.12")
    cuda = re.compile(r"nvidia-|cuda-|triton")
    assert "torch" in mac
    assert not [name for name in mac if cuda.match(name)]
    assert any(cuda.match(name) for name in wanted(requirements, "linux aarch64", "3.12"))
    assert "pywin32" not in wanted(requirements, "linux x86_64", "3.11")


def test_every_requirement_has_a_pin_that_satisfies_it_on_every_platform():
    extras = dict(PROJECT["optional-dependencies"])
    docs, peers = extras.pop("docs"), extras.pop("peers")
    others = [text for texts in extras.values() for text in texts]
    for path, texts in ((DOCS, docs), (PEERS, peers), (ROOT / "requirements" / "dev.txt", others)):
        direct = [Requirement(text) for text in [*texts, *PROJECT["dependencies"]]]
        for platform in PLATFORMS:
            for python in PYTHONS:
                found = wanted(pins(path), platform, python)
                for requirement in direct:
                    name = canonicalize_name(requirement.name)
                    if name != "clipmill" and name in wanted([requirement], platform, python):
                        pin = found[name]
                        assert requirement.specifier.contains(str(pin.specifier)[2:]), pin


def test_pythons_are_those_of_the_project_and_of_the_makefile():
    supported = SpecifierSet(PROJECT["requires-python"])
    assert all(supported.contains(f"{python}.5") for python in PYTHONS)
    assert not supported.contains("3.10.9")
    assert not supported.contains("3.14.0")
    prefix = "Programming Language :: Python :: "
    assert [c.removeprefix(prefix) for c in PROJECT["classifiers"] if prefix in c] == [*PYTHONS]


def test_the_files_are_current_without_a_network():
    offline = {**os.environ, "https_proxy": "http://127.0.0.1:9", "UV_OFFLINE": "1"}
    command = [sys.executable, str(ROOT / "requirements" / "lock.py"), "--check"]
    subprocess.run(command, check=True, env=offline)


def listing(client, pin):
    """Files of the pinned version: name, and the Pythons that they are for."""
    answer = client.get(f"{INDEX}/{canonicalize_name(pin.name)}/")
    answer.raise_for_status()
    part = f"-{str(pin.specifier)[2:]}"
    files = [file for file in answer.json()["files"] if part in file["filename"]]
    return [(f["filename"], SpecifierSet(f.get("requires-python") or "")) for f in files]


@pytest.fixture(scope="module")
def published():
    """Files of every pinned package, as the package index lists them."""
    found = [*pins(ROOT / "requirements" / "dev.txt"), *pins(DOCS)]
    accept = {"Accept": "application/vnd.pypi.simple.v1+json"}
    timeout = httpx.Timeout(20, connect=5)
    try:
        with (
            httpx.Client(headers=accept, timeout=timeout, follow_redirects=True) as client,
            ThreadPoolExecutor(8) as pool,
        ):
            listing(client, found[0])
            files = list(pool.map(lambda pin: listing(client, pin), found))
    except (httpx.HTTPError, ValueError) as error:
        pytest.skip(f"no package index answers at {INDEX}: {type(error).__name__}")
    return {str(pin): of for pin, of in zip(found, files, strict=True)}


@pytest.mark.network
@pytest.mark.parametrize("python", PYTHONS)
@pytest.mark.parametrize("platform", PLATFORMS)
@pytest.mark.parametrize("path", [DOCS, ROOT / "requirements" / "dev.txt"], ids=lambda p: p.stem)
def test_every_pin_can_be_installed(path, platform, python, published):
    """As ``pip install --dry-run --no-deps`` on that machine: a wheel fits, or a known source."""
    fits = fitting_tags(platform, python)
    without_wheel = set()
    for name, pin in wanted(pins(path), platform, python).items():
        version = str(pin.specifier)[2:]
        files = [f for f, pythons in published[str(pin)] if pythons.contains(f"{python}.0")]
        wheels = [parse_wheel_filename(file) for file in files if file.endswith(".whl")]
        if any(str(wheel[1]) == version and wheel[3] & fits for wheel in wheels):
            continue
        sources = [parse_sdist_filename(file) for file in files if file.endswith(".tar.gz")]
        assert version in {str(source[1]) for source in sources}, pin
        without_wheel.add(name)
    known = set() if path == DOCS else FROM_SOURCE | COMPILED.get(platform, set())
    assert without_wheel == known

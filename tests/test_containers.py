"""The images, built and then run as restricted as a cluster runs them: ``pytest -m containers -s``.

CLIPMILL_BASE_IMAGE names a base that podman has, where the Dockerfile's own can't be had, and
CLIPMILL_BUILD_OPTIONS what else ``podman build`` needs here. CLIPMILL_SERVE_TORCH is the image
serve's TORCH_INDEX, such as ``pypi-cpu`` where only PyPI can be reached.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
import urllib.request
from contextlib import contextmanager
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from packaging.requirements import Requirement
from PIL import Image

from clipmill.cluster.constants import NON_ROOT
from clipmill.cluster.doctor.self_test import IMPORTS
from clipmill.serve.client import Client
from clipmill.stage_records import read_stages
from clipmill.storage import read_json
from clipmill.tasks.predictor import Predictor
from clipmill.tasks.promotion import read_promotion
from helpers import program, program_environment
from helpers.small_models import save_model
from test_demo import OVERRIDES

ROOT = Path(__file__).resolve().parent.parent
RESTRICTED = (
    *("--read-only", "--cap-drop=ALL", "--security-opt=no-new-privileges", "--user=10001:10001"),
    *("--tmpfs=/tmp:rw,size=2g,mode=1777", "--shm-size=1g"),
)

pytestmark = pytest.mark.containers


def podman(*arguments, check=True):
    done = subprocess.run(
        ["podman", *arguments], capture_output=True, text=True, check=False, cwd=ROOT
    )
    assert not check or done.returncode == 0, done.stdout[-4000:] + done.stderr[-4000:]
    return done


@cache
def base_image():
    own = re.search(r"^ARG BASE_IMAGE=(\S+)$", (ROOT / "Dockerfile").read_text(), re.MULTILINE)[1]
    name = os.environ.get("CLIPMILL_BASE_IMAGE", own)
    if shutil.which("podman") is None:
        pytest.skip("podman isn't installed")
    there = ("image", "exists", name), ("pull", "--quiet", name)
    if all(podman(*command, check=False).returncode for command in there):
        pytest.skip(f"the base image {name} can't be had: set CLIPMILL_BASE_IMAGE")
    return name


@cache
def image(target):
    """An image of the Dockerfile's, built once; what it took is printed."""
    base, started = base_image(), time.monotonic()
    torch = os.environ.get("CLIPMILL_SERVE_TORCH") if target == "serve" else None
    name = f"localhost/clipmill-test/{target}"
    podman(
        # HEALTHCHECK is in Docker's format only.
        *("build", "--format=docker", f"--build-arg=BASE_IMAGE={base}"),
        *shlex.split(os.environ.get("CLIPMILL_BUILD_OPTIONS", "")),
        *([f"--build-arg=TORCH_INDEX={torch}"] if torch else []),
        *(f"--target={target}", f"--tag={name}", "."),
    )
    seconds, size = time.monotonic() - started, inspected(name)["Size"]
    sys.stdout.write(f"\n{target}: built in {seconds:.0f} s, {size / 1e9:.2f} GB\n")
    return name


def inspected(name):
    (found,) = json.loads(podman("image", "inspect", name).stdout)
    return found


def inside(name, code):
    """What a Python program prints in a restricted container without a network."""
    command = ("run", "--rm", "--network=none", *RESTRICTED, "--entrypoint=python", name)
    return podman(*command, "-c", code).stdout


@contextmanager
def running(*arguments):
    """A container's id; it is removed afterwards, whatever happens."""
    identity = podman("run", "--detach", *arguments).stdout.strip()
    try:
        yield identity
    finally:
        sys.stdout.write(podman("logs", identity, check=False).stderr[-2000:])
        podman("rm", "--force", "--time=5", identity)


@pytest.mark.parametrize("target", ["data", "train", "serve"])
def test_an_image_holds_what_is_pinned_and_nothing_else(target):
    name = image(target)
    found = inspected(name)
    assert found["User"] == "10001:10001"
    assert found["Labels"]["org.opencontainers.image.title"] == "clipmill"
    read = "print(open('/usr/share/clipmill/sbom.json').read())"
    components = json.loads(inside(name, read))["components"]
    held = {normal(c["name"]): c["version"].split("+")[0] for c in components}
    file = {"train": "train-image"}.get(target, target)
    text = (ROOT / "requirements" / f"{file}.txt").read_text()
    pins = [Requirement(line.strip()) for line in re.findall(r"^\w[^\\\n]*", text, re.MULTILINE)]
    here = [pin for pin in pins if pin.marker is None or pin.marker.evaluate()]
    pinned = {normal(pin.name): str(pin.specifier).removeprefix("==") for pin in here}
    # A torch from an index of its own brings no CUDA, and it may be taken out of PyPI's.
    optional = {n for n in pinned if re.match(r"triton|nvidia-|cuda-", n)}
    assert pinned.keys() - optional <= held.keys() <= pinned.keys() | {"clipmill", "pip"}
    assert {n: v for n, v in held.items() if pinned.get(n, v) != v} == {}
    if "triton" not in held:
        assert found["Size"] < 2e9


IMPORT_ALL = """
import importlib, importlib.metadata, json, pkgutil, clipmill
installed = importlib.metadata.packages_distributions()
failures = {}
for module in pkgutil.walk_packages(clipmill.__path__, "clipmill."):
    if module.name.rpartition(".")[2] == "__main__":
        continue
    try:
        importlib.import_module(module.name)
    except ModuleNotFoundError as error:
        top = (error.name or "").partition(".")[0]
        # A package that the image has no need of may be absent; a part of one that it has may not.
        if top in installed:
            failures[module.name] = repr(error)
    except Exception as error:
        # clipmill says which extra lacks.
        if type(error).__name__ != "MissingExtraError":
            failures[module.name] = repr(error)
print(json.dumps(failures))
"""


@pytest.mark.parametrize("target", ["data", "train", "serve"])
def test_every_module_can_be_imported_in_an_image(target):
    assert json.loads(inside(image(target), IMPORT_ALL).splitlines()[-1]) == {}
    # scipy.optimize imports numpy.testing, and that numpy._core.tests.
    assert "ok" in inside(image(target), f"{IMPORTS[target]}\nprint('ok')")


def test_data_shards_a_folder_restricted(tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for i in range(8):
        Image.new("RGB", (48, 32), (i * 30, 99, 200)).save(source / f"{i}.jpg")
        (source / f"{i}.txt").write_text(f"image number {i}")
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o777 if path.is_dir() else 0o644)
    command = ("data", "shard", "/data/source", "--store=/data/store", "--recipe=shards-tiny")
    name = image("data")
    mount = f"--volume={tmp_path}:/data"
    done = podman("run", "--rm", "--network=none", *RESTRICTED, mount, name, *command)
    dataset = done.stdout.strip().replace("/data/", f"{tmp_path}/", 1)
    assert read_json(f"{dataset}/dataset.json")["summary"]["num_samples"] == 8


def normal(name):
    return re.sub("[-_.]+", "-", name).lower()


def test_serve_answers_restricted_as_it_does_here(tmp_path):
    uri = save_model(str(tmp_path / "depth"), "depth")
    for path in (tmp_path, *tmp_path.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    image_HW3 = np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)
    options = (*RESTRICTED, f"--volume={uri}:/models/depth:ro", "--publish=127.0.0.1::8080")
    command = ("serve", "depth=/models/depth", "--host=0.0.0.0", "--port=8080")
    name, started = image("serve"), time.monotonic()
    with running(*options, name, *command) as identity:
        address = f"http://{podman('port', identity, '8080').stdout.strip()}"
        while not ready(address):
            assert time.monotonic() < started + 120
            time.sleep(0.2)
        sys.stdout.write(f"\nserve: ready after {time.monotonic() - started:.1f} s\n")
        (depth_HW,) = Client(address).dense("depth", [image_HW3])
        assert podman("healthcheck", "run", identity, check=False).returncode == 0
        assert podman("exec", identity, "id", "-u").stdout.strip() == "10001"
        assert podman("exec", identity, "touch", "/x", check=False).returncode != 0
        capabilities = podman("exec", identity, "grep", "CapEff", "/proc/1/status").stdout
        assert int(capabilities.split()[1], 16) == 0
    (here,) = Predictor.open(uri).predict([image_HW3])
    (depth_here_HW,) = here.values()
    np.testing.assert_allclose(depth_HW, depth_here_HW, rtol=1e-3)


def ready(address):
    try:
        with urllib.request.urlopen(f"{address}/v2/health/ready", timeout=2) as response:
            return response.status == 200
    except OSError:
        return False


def test_the_demo_runs_restricted_and_without_a_network(tmp_path):
    tmp_path.chmod(0o777)
    code = (
        "from pathlib import Path\n"
        "from clipmill.demo import DemoOptions, show_demo\n"
        f"show_demo(DemoOptions(folder=Path('/out'), overrides={OVERRIDES!r}), as_json=True)"
    )
    name, started = image("train"), time.monotonic()
    done = podman(
        *("run", "--rm", "--network=none", *RESTRICTED, f"--volume={tmp_path}:/out"),
        *("--entrypoint=python", name, "-c", code),
    )
    sys.stdout.write(f"\ntrain: the smallest demo took {time.monotonic() - started:.0f} s\n")
    assert set(json.loads(done.stdout)["models"]) == {"segmentation", "depth"}
    assert "<svg" in (tmp_path / "report.html").read_text()


@contextmanager
def docker_engine():
    """Podman as a Docker engine, and its DOCKER_HOST."""
    with tempfile.TemporaryDirectory() as folder:  # a socket's path has to be short
        address = f"unix://{folder}/socket"
        service = subprocess.Popen(["podman", "system", "service", "--time=0", address])
        try:
            while not Path(folder, "socket").exists():
                assert service.poll() is None
                time.sleep(0.1)
            yield address
        finally:
            service.terminate()
            service.wait()


def test_end_to_end_runs_in_containers_to_its_end(s3, tmp_path):
    name, store = image("train"), f"s3://containers/{tmp_path.name}"
    arguments = json.dumps({"store": store, **OVERRIDES})
    command = program("run_pipeline", "end-to-end", arguments, tmp_path, name)
    started = time.monotonic()
    with docker_engine() as address:
        done = subprocess.run(
            command,
            env=program_environment(**s3, DOCKER_HOST=address, CLIPMILL_RUN="r"),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
    assert done.returncode == 0, done.stdout[-8000:]
    containers = done.stdout.count(f"Found image '{name}:latest'")
    seconds = time.monotonic() - started
    sys.stdout.write(f"\ntrain: end-to-end took {seconds:.0f} s in {containers} containers\n")
    for task in ("segmentation", "depth"):
        assert read_promotion(f"{store}/serving/{task}").evaluation.task == task
    assert containers >= len(read_stages(store, "r"))
    (page,) = tmp_path.glob("kfp/**/html")
    assert "<svg" in page.read_text()
    assert page.stat().st_uid == NON_ROOT

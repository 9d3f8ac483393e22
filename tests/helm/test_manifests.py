"""The manifests for those without Helm are the chart's, and examples are what a cluster takes."""

import re
import shutil
import subprocess

import pytest
import yaml
from helpers.helm_chart import CHART, ROOT, deep, profile, render
from helpers.strict_schemas import findings

from clipmill.pipelines.kustomize import OVERLAYS, kustomize_files, main

MANIFESTS = ROOT / "manifests"


def by_name(resources):
    return {
        (r["kind"], r["metadata"].get("namespace"), r["metadata"]["name"]): r for r in resources
    }


REGISTRY = "registry.example.com:5000/ml"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Base and overlays of a registry and namespace of one's own."""
    folder = tmp_path_factory.mktemp("kustomize")
    options = ["--registry", REGISTRY, "--namespace", "vision", "--out", str(folder)]
    assert main(options) == 0
    return folder


@pytest.mark.parametrize("name", ["", *OVERLAYS])
def test_kustomize_builds_what_helm_renders(name, folder):
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl isn't installed")
    path = folder / (f"overlays/{name}" if name else "base")
    done = subprocess.run(
        ["kubectl", "kustomize", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    built = by_name(yaml.load_all(done.stdout, Loader=yaml.CSafeLoader))
    values = deep(profile(name), "images.registry", REGISTRY)
    wanted = by_name(render(values, name="clipmill", namespace="vision"))
    for resource in wanted.values():
        resource["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "kustomize"
    assert built.keys() == wanted.keys()
    # Keys are random.
    same = [key for key in wanted if key[0] != "Secret"]
    assert [key for key in same if built[key] != wanted[key]] == []
    assert ("Secret" in {key[0] for key in built}) == (name == "kind")


def test_the_registry_reaches_the_images_of_pipelines(folder):
    text = (folder / "base" / "clipmill.yaml").read_text()
    images = set(re.findall(r"image: (\S*clipmill/\S+)", text))
    assert len(images) == 2
    assert all(image.startswith(f"{REGISTRY}/clipmill/") for image in images)
    versions = {
        yaml_file: set(re.findall(r"^  name: (end-to-end-\w{8})$", yaml_file, re.MULTILINE))
        for yaml_file in (text, kustomize_files(CHART, {}, "vision")["base/clipmill.yaml"])
    }
    one, other = versions.values()
    # Another specification is another version.
    assert len(one) == len(other) == 1
    assert one != other


def test_values_that_the_chart_refuses_are_an_error(tmp_path, capsys):
    values = tmp_path / "values.yaml"
    values.write_text("images: {registry: localhost/}\n")
    assert main(["--values", str(values), "--out", str(tmp_path / "out")]) == 2
    assert 'images.registry is "localhost/"' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_no_secret_is_in_the_repository():
    files = [*MANIFESTS.rglob("*.yaml"), *CHART.glob("values*.yaml")]
    assert not [
        f for f in files if re.search(r"^kind: Secret$|secretKey: (?!\"|AWS_|CLIPMILL_TRACKING|CLIPMILL_REGISTRY|MLFLOW_|WANDB_API_KEY)", f.read_text(), re.M)
    ]


def test_examples_are_what_a_cluster_takes():
    files = sorted((MANIFESTS / "examples").glob("*.yaml"))
    assert len(files) == 4
    for file in files:
        for resource in yaml.safe_load_all(file.read_text()):
            assert findings(resource) == [], file.name

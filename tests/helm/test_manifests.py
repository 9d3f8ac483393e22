"""The manifests for those without Helm are the chart's, and examples are what a cluster takes."""

import re
import shutil
import subprocess

import pytest
import yaml
from helpers.helm_chart import CHART, ROOT, profile, render
from helpers.strict_schemas import findings

from clipmill.pipelines.kustomize import OVERLAYS, kustomize_files

MANIFESTS = ROOT / "manifests"


def by_name(resources):
    return {
        (r["kind"], r["metadata"].get("namespace"), r["metadata"]["name"]): r for r in resources
    }


@pytest.mark.parametrize("name", ["", *OVERLAYS])
def test_kustomize_builds_what_helm_renders(name):
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl isn't installed")
    folder = MANIFESTS / (f"overlays/{name}" if name else "base")
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    built = by_name(yaml.safe_load_all(done.stdout))
    wanted = by_name(render(profile(name), name="clipmill", namespace="clipmill"))
    wanted = {key: r for key, r in wanted.items() if r["kind"] != "Secret"}
    for resource in wanted.values():
        resource["metadata"]["labels"]["app.kubernetes.io/managed-by"] = "kustomize"
    assert built.keys() == wanted.keys()
    assert [key for key, resource in wanted.items() if built[key] != resource] == []


def test_the_files_are_current():
    for name, text in kustomize_files(CHART).items():
        assert (MANIFESTS / name).read_text() == text, name


def test_no_secret_is_in_the_repository():
    files = [*MANIFESTS.rglob("*.yaml"), *CHART.glob("values*.yaml")]
    assert not [
        f for f in files if re.search(r"^kind: Secret$|secretKey: [^\"A]", f.read_text(), re.M)
    ]


def test_examples_are_what_a_cluster_takes():
    files = sorted((MANIFESTS / "examples").glob("*.yaml"))
    assert len(files) == 4
    for file in files:
        for resource in yaml.safe_load_all(file.read_text()):
            assert findings(resource) == [], file.name

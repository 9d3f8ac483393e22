"""One version: pyproject.toml's, everywhere that it is named."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml

import clipmill
from clipmill.cluster.constants import DATA_IMAGE, VERSION

ROOT = Path(__file__).resolve().parent.parent
EXPECTED = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]


def test_the_package_has_the_version_of_its_project_file():
    assert clipmill.__version__ == VERSION == metadata.version("clipmill") == EXPECTED, (
        "install the checkout again: make installed-dev"
    )
    assert DATA_IMAGE.endswith(f":{EXPECTED}")


@pytest.mark.parametrize(
    ("file", "keys"),
    [("helm/clipmill/Chart.yaml", ("version", "appVersion")), ("CITATION.cff", ("version",))],
)
def test_chart_and_citation_have_it(file, keys):
    value = yaml.safe_load((ROOT / file).read_text())
    assert {value[key] for key in keys} == {EXPECTED}


@pytest.mark.parametrize("file", ["Dockerfile", "docs/cluster.md", "manifests/study.yaml"])
def test_images_are_tagged_with_it(file):
    text = (ROOT / file).read_text()
    tags = re.findall(r"clipmill/(?:data|train|serve|\$target):(\d[\w.]*)", text)
    assert tags
    assert set(tags) == {EXPECTED}
    assert re.findall(r"ARG VERSION=(\S+)", text) == [EXPECTED] * (file == "Dockerfile")


def test_the_changelog_describes_it():
    assert f"\n## [{EXPECTED}]" in (ROOT / "CHANGELOG.md").read_text()

"""What the pages tell people to write is what the chart takes."""

import re

import pytest
import yaml
from helpers.helm_chart import ROOT, chart, profile, render
from helpers.strict_schemas import findings


def blocks():
    docs = ROOT / "docs"
    for path in (docs / "cluster.md", docs / "developing.md", *sorted(docs.glob("cluster/*.md"))):
        page, text = path.name, path.read_text()
        for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)):
            yield pytest.param(yaml.safe_load(block), id=f"{page} {number}")


@pytest.mark.parametrize("values", list(blocks()))
def test_values_of_the_pages_render(values):
    chart().validate_schema(chart().merge_values(values))
    both = {**profile("gpu"), **values, "kueue": {"enabled": True, **values.get("kueue", {})}}
    rendered = render(both)
    assert [f for r in rendered for f in findings(r)] == []
    runtimes = {r["metadata"]["name"] for r in rendered if r["kind"] == "TrainingRuntime"}
    assert {
        f"clipmill-{name}" for name, pool in values.get("pools", {}).items() if pool
    } <= runtimes

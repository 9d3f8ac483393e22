"""What the pages tell people to write is what the chart takes."""

import re
import shlex

import pytest
import yaml
from helpers.helm_chart import ROOT, chart, profile, render
from helpers.strict_schemas import findings


def blocks():
    for page in ("cluster.md", "developing.md"):
        text = (ROOT / "docs" / page).read_text()
        for number, block in enumerate(re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)):
            yield pytest.param(yaml.safe_load(block), id=f"{page} {number}")


@pytest.mark.parametrize("values", list(blocks()))
def test_values_of_the_pages_render(values):
    chart().validate_schema(chart().merge_values(values))
    both = {**profile("gpu"), **values, "kueue": {"enabled": True, **values.get("kueue", {})}}
    rendered = render(both)
    assert [f for r in rendered for f in findings(r)] == []
    runtimes = {r["metadata"]["name"] for r in rendered if r["kind"] == "ClusterTrainingRuntime"}
    assert {f"clipmill-{name}" for name in values.get("pools", {})} <= runtimes


def test_commands_of_the_pages_exist():
    import typer

    from clipmill.cli import app

    commands = typer.main.get_command(app).commands["cluster"].commands
    text = "\n".join(p.read_text() for p in sorted((ROOT / "docs").rglob("*.md")))
    named = set(re.findall(r"clipmill cluster ([a-z-]+)", text))
    assert len(named) > 5
    assert named <= commands.keys()


def lines():
    """Each command of ours that the pages tell people to type, continued lines joined."""
    pages = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]
    for page in pages:
        for block in re.findall(r"```(?:bash|sh)\n(.*?)```", page.read_text(), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if found := re.match(r"\s*(?:\S*/)?clipmill (.*)", line):
                    yield page.name, found[1].split("  #")[0]


def test_every_option_of_the_pages_exists():
    import typer

    from clipmill.cli import app

    seen, unknown = 0, []
    for page, line in lines():
        command, words = typer.main.get_command(app), shlex.split(line)
        while getattr(command, "commands", None) and words and words[0] in command.commands:
            command = command.commands[words.pop(0)]
        # What follows -- is another command's.
        ours = words[: words.index("--")] if "--" in words else words
        if ours == ["--help"]:
            continue
        named = {w.partition("=")[0] for w in ours if re.match("--?[a-z]", w)}
        known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
        unknown += [f"{page}: {command.name} {o}" for o in named - known]
        if getattr(command, "commands", None):
            unknown.append(f"{page}: clipmill {line}")
        seen += 1
    assert seen > 20
    assert unknown == []

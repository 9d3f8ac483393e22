"""Every command that the pages, the sources and the chart name exists, with its options."""

import re
import shlex
from pathlib import Path

import pytest
import typer

from clipmill.cli import app
from clipmill.cli.entry import current_arguments
from clipmill.recipes.registry import RECIPES, describe_recipe

ROOT = Path(__file__).resolve().parents[2]
HISTORY = {"CHANGELOG.md", "LOG.md"}
PAGES = [p for p in (*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")) if p.name not in HISTORY]
SOURCES = [p for f in ("src", "components", "pipelines") for p in (ROOT / f).rglob("*.py")]
MESSAGES = ("needs ",)
"""How messages begin that the pages quote, after the program's name."""
OLD_NAMES = ROOT / "src" / "clipmill" / "deprecations.py"
# The program in a shell's line, or after torchrun's -m.
_PROGRAM = r"(?:\S*/)?(?:.* -m )?clipmill "


def in_blocks(page):
    """The commands of a page's shell blocks, continued lines joined."""
    for block in re.findall(r"```(?:bash|sh|console)\n(.*?)```", page.read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            if found := re.match(rf"\s*{_PROGRAM}(.*)", line):
                yield found[1].split("  #")[0]


def in_text(text):
    """The commands in backticks, which may go on in the next line."""
    text = re.sub(r"(?ms)^```.*?^```", "", text)
    for code in re.findall(r"`+([^`]+)`+", text):
        line = " ".join(code.split())
        if found := re.match(rf"{_PROGRAM}([a-z].*)", line):
            yield found[1]


def check(line):
    """What is wrong with a command: an unknown name or option, or nothing."""
    command = typer.main.get_command(app)
    try:
        words = shlex.split(line.split(" | ")[0].replace("...", ""))
    except ValueError:
        words = line.split()
    if current_arguments(words) != words and words != ["recipes"]:
        return f"an old name: {line}"
    while getattr(command, "commands", None) and words and words[0] in command.commands:
        command = command.commands[words.pop(0)]
    is_group = hasattr(command, "commands")
    if is_group and words and not words[0].startswith("-"):
        return f"unknown: {line}"
    ours = words[: words.index("--")] if "--" in words else words
    named = {w.partition("=")[0] for w in ours if re.match(r"--?[a-z]", w)} - {"--help", "-h"}
    known = {o for p in command.params for o in (*p.opts, *p.secondary_opts)}
    return f"{line}: {', '.join(sorted(named - known))}" if named - known else None


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_of_a_page(page):
    lines = [*in_blocks(page), *in_text(page.read_text())]
    problems = [check(line) for line in lines if not line.startswith(MESSAGES)]
    assert [problem for problem in problems if problem] == []


def test_the_pages_name_most_commands():
    lines = [line for page in PAGES for line in in_blocks(page)]
    assert len(lines) > 60


def test_commands_of_the_sources():
    modules = re.compile(r"[{}]|^(stages|cli|deprecations)\b")
    problems = {}
    for source in SOURCES:
        lines = in_text(re.sub(r'"\s*\n\s*f?"', "", source.read_text()))
        found = [check(line) for line in lines if not modules.search(line)]
        if source != OLD_NAMES and any(found):
            problems[str(source.relative_to(ROOT))] = found
    assert problems == {}


@pytest.mark.parametrize("name", RECIPES)
def test_commands_of_recipes(name):
    for line in in_text(describe_recipe(name)):
        assert check(line) is None

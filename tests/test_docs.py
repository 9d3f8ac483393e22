"""The documentation: its links, its navigation, and the pages that come from the code."""

import dataclasses
import importlib
import importlib.util
import pkgutil
import re
from pathlib import Path

import pytest
import typer
import yaml
from clipmill.pipelines.registry import PIPELINES

import clipmill
from clipmill.cli import app
from clipmill.config import Config

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"
PAGES = sorted([*ROOT.glob("*.md"), *DOCS.rglob("*.md"), *(ROOT / "dev").glob("*.md")])
GENERATED = {"changelog.md", "contributing.md"}


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("hooks", DOCS / "hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def prose(page):
    """A page's text without its blocks of code."""
    return re.sub(r"(?ms)^```.*?^```", "", page.read_text())


def anchors(page):
    """The anchors of a page's headings, as GitHub and MkDocs make them."""
    found = set()
    for heading in re.findall(r"(?m)^#+ (.+)$", prose(page)):
        plain = re.sub(r"[^\w\s-]", "", heading.lower()).strip()
        found.add(re.sub(r"[\s]+", "-", plain))
    return found


def test_every_link_leads_somewhere():
    seen, broken = 0, []
    for page in PAGES:
        for link in re.findall(r"\]\(([^)\s]+)\)", prose(page)):
            if re.match(r"[a-z]+:", link):
                continue
            seen += 1
            name, _, anchor = link.partition("#")
            target = (page.parent / name).resolve() if name else page
            if not target.exists() or (anchor and anchor not in anchors(target)):
                broken.append(f"{page.relative_to(ROOT)}: {link}")
    assert seen > 150
    assert broken == []


def test_no_page_names_a_machine_or_a_host_of_its_author():
    places = re.compile(r"/(?:root|home|work|Users)/|\b(?:10|192\.168)\.\d+\.\d+")
    assert [str(p) for p in PAGES if places.search(p.read_text())] == []


def nav(entries):
    """The pages that a navigation names."""
    for entry in entries:
        value = next(iter(entry.values())) if isinstance(entry, dict) else entry
        if isinstance(value, list):
            yield from nav(value)
        else:
            yield value


def test_the_navigation_has_every_page_once():
    named = list(nav(yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]))
    pages = {str(p.relative_to(DOCS)) for p in DOCS.rglob("*.md")} | GENERATED
    assert sorted(named) == sorted(pages)


def test_a_decision_has_context_decision_and_consequences():
    records = sorted((DOCS / "adr").glob("0*.md"))
    assert [int(p.name[:4]) for p in records] == list(range(1, len(records) + 1))
    index = (DOCS / "adr" / "README.md").read_text()
    for record in records:
        headings = re.findall(r"(?m)^## (.+)$", record.read_text())
        assert headings == ["Context", "Decision", "Consequences"], record.name
        assert f"| [{record.name[:4]}]({record.name}) |" in index


def test_the_api_reference_has_every_package():
    text = "".join(p.read_text() for p in (DOCS / "reference").glob("*.md"))
    named = re.findall(r"(?m)^::: clipmill\.(\w+)$", text)
    packages = {p.parent.name for p in (ROOT / "src" / "clipmill").glob("*/__init__.py")}
    assert packages - {"cli"} <= set(named)
    source = ROOT / "src" / "clipmill"
    assert [
        n for n in named if not (source / n).is_dir() and not (source / f"{n}.py").exists()
    ] == []


def test_the_command_line_reference_has_every_command_and_option(hooks):
    page = hooks.cli_reference()

    def check(command, name):
        for child, sub in getattr(command, "commands", {}).items():
            check(sub, f"{name} {child}")
        if not hasattr(command, "commands"):
            assert re.search(rf"(?m)^#+ {name}$", page), name
            options = [o for p in command.params for o in p.opts if o.startswith("--")]
            section = re.split(rf"(?m)^#+ {name}$", page)[1].split("\n#")[0]
            assert [o for o in options if f"`{o}" not in section and o != "--help"] == [], name

    check(typer.main.get_command(app), "clipmill")


def test_the_recipe_reference_has_every_recipe(hooks):
    from clipmill.recipes.registry import RECIPES

    page = hooks.recipe_reference()
    assert [name for name in RECIPES if f"| `{name}` |" not in page] == []
    assert "CLIP-QC, Table 11" in page


@pytest.mark.parametrize(
    ("folder", "link", "expected"),
    [
        ("docs", "../CONTRIBUTING.md", "contributing.md"),
        ("docs/adr", "../../CHANGELOG.md#a", "../changelog.md#a"),
        ("docs", "serving.md#errors", "serving.md#errors"),
        ("docs", "../dev/LOG.md", "https://github.com/clipmill/clipmill/blob/main/dev/LOG.md"),
        ("", "docs/tasks.md", "tasks.md"),
        ("", "LICENSE", "https://github.com/clipmill/clipmill/blob/main/LICENSE"),
        ("", "https://kserve.github.io", "https://kserve.github.io"),
    ],
)
def test_links_are_rewritten_for_the_site(hooks, folder, link, expected):
    assert hooks.site_links(f"[x]({link})", folder=folder) == f"[x]({expected})"


def config_fields():
    """The names of all fields of configs, and of the pipelines' parameters."""
    for module in pkgutil.walk_packages(clipmill.__path__, "clipmill."):
        if module.name.endswith(("config", "recaption", "export", "rollout", "training_job")):
            importlib.import_module(module.name)
    importlib.import_module("clipmill.recipes.registry")
    kinds = [Config]
    for kind in kinds:
        kinds += kind.__subclasses__()
    names = {field.name for kind in kinds[1:] for field in dataclasses.fields(kind)}
    return names | {name for p in PIPELINES.values() for name in p.component_spec.inputs}


def test_every_setting_of_the_pages_is_a_field():
    names = config_fields()
    keys = re.compile(r"(user_data\.(labels|layers)|table_budgets)\.\w+")  # entries of dicts
    seen, unknown = 0, []
    for page in PAGES:
        if page.name in {"LOG.md", "CHANGELOG.md"}:  # settings of their time
            continue
        # Charts' values aren't clipmill's settings.
        text = re.sub(r"helm (?:.*\\\n)*.*", "", page.read_text())
        paths = re.findall(r"--set '?([a-z_.]+)=", text)
        paths += re.findall(r"`((?:train|model|view|validation|distillation)\.[a-z_.]+)=", text)
        for path in paths:
            seen += 1
            parts = keys.sub(lambda m: m[0].rpartition(".")[0], path).split(".")
            if path != "path" and not names.issuperset(parts):
                unknown.append(f"{page.relative_to(ROOT)}: {path}")
    assert seen > 40
    assert unknown == []


def test_every_path_of_the_pages_exists():
    folders = "src|tests|benchmarks|components|pipelines|helm|manifests|requirements|docs|dev"
    seen, missing = 0, []
    for page in PAGES:
        if page.name in {"LOG.md", "CHANGELOG.md"}:  # paths of their time
            continue
        text = re.sub(r"git show \w+:\S+|\]\([^)]*\)", "", page.read_text())
        for path in re.findall(rf"(?<![\w/])((?:{folders})/[\w/.-]*\w/?)", text):
            seen += 1
            if not (ROOT / path).exists():
                missing.append(f"{page.relative_to(ROOT)}: {path}")
    assert seen > 60
    assert missing == []

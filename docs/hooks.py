"""MkDocs hooks: pages and links that are made when the site is built.

Pages under ``reference/`` with the mark ``<!-- generated: NAME -->`` come from the code: commands
from the Typer application, recipes from their docstrings. The changelog and the contributing guide
come from the root. Mermaid is drawn in the browser. Links to other files outside of ``docs/`` lead
to GitHub.
"""

import posixpath
import re
from enum import Enum
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).resolve().parent.parent
REPOSITORY = "https://github.com/clipmill/clipmill/blob/main"
ROOT_PAGES = {"CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
_LINK = re.compile(r"\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_config(config: Any) -> Any:
    """Let Mermaid's blocks be drawn; in ``mkdocs.yml`` this takes a tag that names a function."""
    from pymdownx.superfences import fence_code_format

    fence = {"name": "mermaid", "class": "mermaid", "format": fence_code_format}
    config.mdx_configs["pymdownx.superfences"] = {"custom_fences": [fence]}
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the root's pages to the site's files."""
    from mkdocs.structure.files import File

    for name, page in ROOT_PAGES.items():
        text = (ROOT / name).read_text("utf-8")
        files.append(File.generated(config, page, content=site_links(text, folder="")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Generate a page's content, or rewrite its links to files outside of ``docs/``."""
    if match := re.search(r"<!-- generated: (\w+_reference) -->", markdown):
        return GENERATED[match[1]]()
    if page.file.src_uri in ROOT_PAGES.values():
        return markdown  # its links are the site's already
    return site_links(markdown, folder=posixpath.join("docs", posixpath.dirname(page.file.src_uri)))


def site_links(markdown: str, *, folder: str) -> str:
    """Return Markdown with links for the site, of a page in a folder of the repository."""

    def rewrite(match: re.Match[str]) -> str:
        target, anchor = match[1], match[2] or ""
        if ":" in target:
            return match[0]
        path = posixpath.normpath(posixpath.join(folder, target))
        if path.startswith("docs/"):
            if folder:
                return match[0]
            return f"]({path.removeprefix('docs/')}{anchor})"
        if path in ROOT_PAGES:
            above = posixpath.relpath("docs", folder) if folder else "."
            return f"]({posixpath.normpath(posixpath.join(above, ROOT_PAGES[path]))}{anchor})"
        return f"]({REPOSITORY}/{path}{anchor})"

    return _LINK.sub(rewrite, markdown)


_CLI_CONVENTIONS = """\
- Results go to standard output: a URI or a table, or JSON with `--json`. Progress, the default
  recipe and the next command go to standard error, so that `ENCODER=$(clipmill pretrain clip ...)`
  captures the URI.
- `clipmill --install-completion` installs completion of commands, options, recipes and tasks for
  your shell.
- Exit codes: 0 success, 1 a bug or damaged data, 2 a mistake that the message explains, 75 training
  that SIGTERM stopped after it saved its state, 130 Ctrl-C.
- Names of clipmill 0.1 work with a warning; the [changelog](../changelog.md) lists them.
"""


def cli_reference() -> str:
    """Return the reference of every command: usage, arguments, options and defaults."""
    import typer

    from clipmill.cli import app

    sections = [
        "# Command-line reference\n",
        "Generated from the application. `clipmill COMMAND --help` prints the same text.\n",
        _CLI_CONVENTIONS,
    ]
    sections += _sections(typer.main.get_command(app), "clipmill")
    return "\n".join(sections)


def _sections(command: Any, name: str) -> list[str]:
    """Return the Markdown of a command, or of a group and all that it contains."""
    level = "#" * min(name.count(" ") + 1, 3)
    text = [f"{level} {name}\n\n{_prose(command.help)}\n"] if " " in name else []
    if children := getattr(command, "commands", None):
        ordered = sorted(
            children.items(), key=lambda item: bool(getattr(item[1], "commands", None))
        )
        for child, sub in ordered:
            text += _sections(sub, f"{name} {child}")
        return text
    shown = [p for p in command.params if not getattr(p, "hidden", False) and p.name != "help"]
    arguments = [p for p in shown if p.param_type_name == "argument"]
    options = [p for p in shown if p.param_type_name == "option"]
    usage = " ".join([name, *(["[OPTIONS]"] if options else []), *map(_metavar, arguments)])
    text.append(f"```text\n{usage}\n```\n")
    if arguments:
        rows = [f"| `{_metavar(p)}` | {_help(p)} |" for p in arguments]
        text.append("\n".join(["| Argument | Description |", "|---|---|", *rows]) + "\n")
    if options:
        rows = [f"| {_names(p)} | {_default(p)} | {_help(p)} |" for p in options]
        text.append(
            "\n".join(["| Option | Default | Description |", "|---|---|---|", *rows]) + "\n"
        )
    return text


def _prose(text: str | None) -> str:
    """Return help as Markdown paragraphs; examples that were indented become code blocks."""
    text = (text or "").replace("\b\n", "").replace("\f", "")
    return re.sub(r"(?m)^( {2,}\S.*)$", lambda m: "    " + m[1].strip(), text).strip()


def _metavar(parameter: Any) -> str:
    name = (parameter.metavar or parameter.name or "").upper().strip("[]").removesuffix("...")
    name = f"{name}..." if parameter.nargs == -1 else name
    return name if parameter.required else f"[{name}]"


def _names(parameter: Any) -> str:
    flags = [*parameter.opts, *parameter.secondary_opts]
    kind = "" if parameter.is_flag else f" {_type(parameter)}"
    return ", ".join(f"`{flag}{kind}`" for flag in flags)


def _type(parameter: Any) -> str:
    """Return the placeholder of an option's value: its choices, or a word for its type."""
    if parameter.metavar:
        return str(parameter.metavar)
    kind = parameter.type_descriptor.annotation
    while arguments := [a for a in get_args(kind) if a is not type(None)]:
        kind = arguments[0]
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "/".join(str(choice.value) for choice in kind)
    return {int: "N", float: "NUMBER", Path: "PATH"}.get(kind, "TEXT")


def _default(parameter: Any) -> str:
    if parameter.required:
        return "required"
    if parameter.default in (None, (), [], "", False) or callable(parameter.default):
        return ""
    value = getattr(parameter.default, "value", parameter.default)
    return f"`{value}`"


def _help(parameter: Any) -> str:
    text = " ".join((parameter.help or "").split()).replace("|", "\\|")
    if parameter.multiple and "repeatable" not in text.lower():
        text += " Repeatable."
    return text.strip()


def recipe_reference() -> str:
    """Return a table of all recipes by kind, from their docstrings."""
    from clipmill.recipes.registry import RECIPES, describe_recipe

    by_kind: dict[str, list[str]] = {}
    for name, make in sorted(RECIPES.items()):
        summary, fields = _docstring_fields(describe_recipe(name))
        cells = [f"`{name}`", summary, fields["Source"], fields["Hardware"], fields["Expected"]]
        row = " | ".join(cell.replace("|", "\\|") for cell in cells)
        by_kind.setdefault(type(make()).__name__, []).append(f"| {row} |")
    text = [
        "# Recipes\n",
        "Generated from the docstrings. `clipmill recipes show NAME` prints a recipe's fields.\n",
    ]
    head = "| Recipe | Description | Source | Hardware and time | Expected |\n|---|---|---|---|---|"
    for kind, rows in sorted(by_kind.items()):
        words = re.findall(r"[A-Z][a-z]+", kind.removesuffix("Config"))
        text.append("\n".join([f"## {' '.join(words).capitalize()}\n", head, *rows]) + "\n")
    return "\n".join(text)


def _docstring_fields(docstring: str) -> tuple[str, dict[str, str]]:
    """Return a recipe's summary, and what its docstring states as source, hardware, ..."""
    text = " ".join(docstring.split())
    text = text.replace("docs/hardware.md", "[hardware guide](../hardware.md)")
    parts = re.split(r"\b(Source|Command|Hardware|Expected)([^:.]{0,40}): ", text)
    fields = dict.fromkeys(("Source", "Command", "Hardware", "Expected"), "")
    for word, qualifier, value in zip(parts[1::3], parts[2::3], parts[3::3], strict=True):
        note = qualifier.strip(" ,") if word == "Expected" else ""
        fields[word] = (f"{note}: " if note else "") + value.strip(" .")
    return parts[0].split(". ")[0].strip(" ."), fields


GENERATED = {"cli_reference": cli_reference, "recipe_reference": recipe_reference}

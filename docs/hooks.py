"""MkDocs hooks: pages that are generated when the site is built.

The command-line reference comes from the Typer application, the changelog and the contributing guide
from the files at the repository's root.
"""

import re
from enum import Enum
from pathlib import Path
from typing import Any, get_args

ROOT = Path(__file__).resolve().parent.parent
ROOT_PAGES = {"changelog.md": "CHANGELOG.md", "contributing.md": "CONTRIBUTING.md"}


def on_files(files: Any, config: Any) -> Any:
    """Add the generated pages to the site's files."""
    from mkdocs.structure.files import File

    pages = {"reference/cli.md": cli_reference()}
    pages |= {page: root_page(ROOT / name) for page, name in ROOT_PAGES.items()}
    for page, text in pages.items():
        files.append(File.generated(config, page, content=text))
    return files


def root_page(path: Path) -> str:
    """Return a page of the repository's root with its links rewritten for the site."""
    names = {name: page for page, name in ROOT_PAGES.items()}

    def rewrite(match: re.Match[str]) -> str:
        target, _, anchor = match[1].partition("#")
        anchor = f"#{anchor}" if anchor else ""
        if not target or "://" in target:
            return match[0]
        if target in names:
            return f"]({names[target]}{anchor})"
        if target.startswith("docs/"):
            return f"]({target.removeprefix('docs/')}{anchor})"
        return f"](https://github.com/clipmill/clipmill/blob/main/{target}{anchor})"

    return re.sub(r"\]\(([^)\s]+)\)", rewrite, path.read_text("utf-8"))


def cli_reference() -> str:
    """Return the reference of every command: usage, arguments, options and defaults."""
    import typer

    from clipmill.cli import app

    sections = [
        "# Command-line reference\n\n"
        "Generated from the application when this site is built. `clipmill COMMAND --help` prints "
        "the same text.\n"
    ]
    sections += _sections(typer.main.get_command(app), "clipmill")
    return "\n".join(sections)


def _sections(command: Any, name: str) -> list[str]:
    """Return the Markdown of a command, or of a group and all that it contains."""
    level = "#" * min(name.count(" ") + 1, 3)
    text = [f"{level} {name}\n\n{_prose(command.help)}\n"] if " " in name else []
    if children := getattr(command, "commands", None):
        ordered = sorted(children.items(), key=lambda item: bool(getattr(item[1], "commands", None)))
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
        text.append("\n".join(["| Option | Default | Description |", "|---|---|---|", *rows]) + "\n")
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

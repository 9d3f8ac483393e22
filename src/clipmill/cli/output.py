"""Output of the commands: results on standard output, hints on standard error."""

import json
import shlex
from collections.abc import Sequence
from typing import Any

import typer

from clipmill.processes import is_first_rank


def print_uri(uri: str, *, as_json: bool, **fields: Any) -> None:
    """Print a result's URI alone, for scripts to capture, or as JSON with ``fields``."""
    typer.echo(json.dumps({"uri": uri, **fields}, indent=2) if as_json else uri)


def print_hint(text: str) -> None:
    """Print a line on standard error; under torchrun, by the first rank only."""
    if is_first_rank():
        typer.echo(text, err=True)


def print_next(*arguments: str) -> None:
    """Print the next sensible command on standard error; words in capitals are to be filled in."""
    print_hint(f"next: {shlex.join(['clipmill', *arguments])}")


def format_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, right: str = "") -> str:
    """Return rows as aligned columns, two spaces apart; the columns in ``right`` to the right.

    ``right`` has a letter per column: ``r`` for numbers. Rows may be shorter than the header.
    """
    lines = [header, *rows]
    widths = [
        max(len(line[i]) if i < len(line) else 0 for line in lines) for i in range(len(header))
    ]
    texts = []
    for line in lines:
        cells = (
            cell.rjust(width) if right[i : i + 1] == "r" else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(line, widths, strict=False))
        )
        texts.append("  ".join(cells).rstrip())
    return "\n".join(texts)

"""``clipmill study``: the paper's experiment, with error bars."""

import csv
import json
import sys
from typing import Annotated

import typer

from clipmill.cli.options import Json, Set, Store

study = typer.Typer(no_args_is_help=True, help="Experiments on what captions do, with error bars.")


@study.command("captions")
def captions(
    store: Store,
    recipe: str = "study-captions",
    quick: Annotated[
        bool, typer.Option("--quick", help="The recipe study-captions-quick.")
    ] = False,
    workers: Annotated[int, typer.Option(help="Runs that train side by side.")] = 1,
    sets: Set = None,
    as_json: Json = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print every figure as CSV.")] = False,
    as_latex: Annotated[bool, typer.Option("--latex", help="Print the table for a paper.")] = False,
) -> None:
    """Compare caption sources by what encoders learn from them; prints where the page is.

    A study that was stopped goes on where it was when the same command runs again.
    """
    from clipmill.recipes import run_judge as run
    from clipmill.study.result import read_study
    from clipmill.study.words import latex, markdown, rows, verdict

    name = "study-captions-quick" if quick else recipe
    uri = run.study(name, sets or [], store, workers=workers)
    found = read_study(uri)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
    elif as_csv:
        table = csv.DictWriter(sys.stdout, list(rows(found)[0]))
        table.writeheader()
        table.writerows(rows(found))
    elif as_latex:
        typer.echo(latex(found), nl=False)
    else:
        typer.echo(markdown(found))
        typer.echo("\n".join(verdict(found)))
        typer.echo(f"{uri}/study.html")

"""``clipmill study``: the paper's experiment, with error bars."""

import csv
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipmill.cli.extras import needs
from clipmill.cli.options import Json, Set, Store, require_output
from clipmill.errors import ConfigError

if TYPE_CHECKING:
    from clipmill.study.results_table import Findings

Csv = Annotated[bool, typer.Option("--csv", help="Print every figure as CSV.")]
Latex = Annotated[bool, typer.Option("--latex", help="Print the table for a paper.")]

study = typer.Typer(no_args_is_help=True, help="Experiments on what captions do, with error bars.")


@study.command("captions")
@needs("train")
def captions(
    store: Store,
    recipe: str = "study-captions",
    quick: Annotated[
        bool, typer.Option("--quick", help="The recipe study-captions-quick.")
    ] = False,
    table: Annotated[
        list[str] | None,
        typer.Option(help="Only sources, objectives, mobile, scaling or dose; repeatable."),
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Only this one of the recipe's; repeatable.")
    ] = None,
    workers: Annotated[int, typer.Option(help="Runs that train side by side.")] = 1,
    sets: Set = None,
    as_json: Json = False,
    as_csv: Csv = False,
    as_latex: Latex = False,
) -> None:
    """Compare caption sources by what encoders learn from them; prints where the page is.

    A study that was stopped goes on where it was when the same command runs again.
    """
    from clipmill.recipes import run_judge as run
    from clipmill.study.result import read_study

    name = "study-captions-quick" if quick else recipe
    uri = run.study(name, sets or [], store, tables=table or (), seeds=seed or (), workers=workers)
    found = read_study(uri)
    if as_json:
        typer.echo(json.dumps(found.to_json()))
        return
    _tell(found.judged, as_csv=as_csv, as_latex=as_latex)
    if not as_csv and not as_latex:
        typer.echo(f"{uri}/study.html")


def report(
    runs: Annotated[
        list[str],
        typer.Argument(
            help="URIs of studies, parts of one; or CONDITION=URI of evaluations (with the runs of "
            "studies, if need be), the first condition being the reference."
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="Write a page too, with the paper's figures beside.")
    ] = None,
    as_csv: Csv = False,
    as_latex: Latex = False,
) -> None:
    """Make one study of its parts, or compare anybody's runs as the study does."""
    require_output(output)
    from clipmill.study.page import findings_page, study_page
    from clipmill.study.result import join_studies, read_study
    from clipmill.study.results_table import gather

    if any("=" in text for text in runs):
        found = gather(_by_condition(runs))
        page = partial(findings_page, found)
    else:
        joined = join_studies([read_study(uri) for uri in dict.fromkeys(runs)])
        found = joined.judged
        page = partial(study_page, joined)
    if output is not None:
        output.write_text(page(), encoding="utf-8")
    _tell(found, as_csv=as_csv, as_latex=as_latex)


def _by_condition(runs: list[str]) -> dict[str, list[str]]:
    """URIs of evaluations; one that two studies share counts once."""
    from clipmill.study.result import read_study

    found: dict[str, dict[str, None]] = {}
    for text in runs:
        condition, is_named, uri = text.partition("=")
        if is_named and not (condition and uri):
            raise ConfigError(
                f"{text!r} is no evaluation of a condition",
                expected="CONDITION=URI, or the URI of a study",
                action="write it as 'G=out/evaluations/0123456789ab'",
            )
        if is_named:
            found.setdefault(condition, {})[uri] = None
            continue
        for run in read_study(text).runs:
            found.setdefault(run.condition, {}).update(dict.fromkeys(run.evaluations.values()))
    return {condition: list(uris) for condition, uris in found.items()}


def _tell(found: "Findings", *, as_csv: bool, as_latex: bool) -> None:
    from clipmill.study.tables import latex, markdown, rows, verdict

    if as_csv:
        table = csv.DictWriter(sys.stdout, list(rows(found)[0]))
        table.writeheader()
        table.writerows(rows(found))
    elif as_latex:
        typer.echo(latex(found), nl=False)
    else:
        typer.echo(markdown(found))
        typer.echo("\n".join(verdict(found)))

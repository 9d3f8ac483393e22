"""``clipmill study``: the caption-quality study, and comparisons of its kind."""

import csv
import json
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipmill.cli.extras import needs
from clipmill.cli.options import (
    Json,
    Set,
    Store,
    Workers,
    one_of,
    recipe_option,
    require_output,
    tracked,
)
from clipmill.cli.output import print_next
from clipmill.errors import ConfigError

if TYPE_CHECKING:
    from clipmill.study.tables import ResultsTable

_TABLES = ("sources", "objectives", "mobile", "scaling", "dose")

Csv = Annotated[bool, typer.Option("--csv", help="Every metric of every run, as CSV.")]
Latex = Annotated[bool, typer.Option("--latex", help="The table as LaTeX.")]

study = typer.Typer(
    no_args_is_help=True, help="Measure the effect of captions, with intervals and tests."
)


@study.command("captions")
@needs("train")
@tracked
def captions(
    store: Store,
    recipe: Annotated[str, recipe_option("study", "a night on two CPU cores")] = "study-captions",
    table: Annotated[
        list[str] | None,
        typer.Option(
            metavar="TABLE",
            help=f"Run only this table: {', '.join(_TABLES)}; repeatable.",
            autocompletion=one_of(*_TABLES),
        ),
    ] = None,
    seed: Annotated[
        list[int] | None, typer.Option(help="Run only this seed of the recipe; repeatable.")
    ] = None,
    workers: Workers = 1,
    sets: Set = None,
    as_json: Json = False,
    as_csv: Csv = False,
    as_latex: Latex = False,
) -> None:
    """Compare caption sources by the encoders trained on them; prints the page's location.

    The same command resumes an interrupted study.
    """
    from clipmill import stages
    from clipmill.study.result import read_study

    uri = stages.study(
        recipe, sets or [], store, tables=table or (), seeds=seed or (), workers=workers
    )
    result = read_study(uri)
    if as_json:
        typer.echo(json.dumps(result.to_json()))
        return
    _print_result(result.headline_table, as_csv=as_csv, as_latex=as_latex)
    if not as_csv and not as_latex:
        typer.echo(f"{uri}/study.html")
    print_next("study", "compare", uri, "--output", "study.html")


@study.command("compare")
def compare(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN",
            help="URIs of studies, parts of one; or CONDITION=URI of evaluations (with the runs of "
            "studies, if need be), the first condition being the baseline.",
        ),
    ],
    output: Annotated[
        Path | None, typer.Option(help="HTML page to write, with the paper's values.")
    ] = None,
    as_json: Json = False,
    as_csv: Csv = False,
    as_latex: Latex = False,
) -> None:
    """Merge the parts of a study, or compare any evaluations as the study does."""
    require_output(output)
    from clipmill.study.page import comparison_page, study_page
    from clipmill.study.result import merge_studies, read_study
    from clipmill.study.tables import collect_evaluations, csv_rows

    if any("=" in text for text in runs):
        table = collect_evaluations(_by_condition(runs))
        page = partial(comparison_page, table)
    else:
        merged = merge_studies([read_study(uri) for uri in dict.fromkeys(runs)])
        table = merged.headline_table
        page = partial(study_page, merged)
    if output is not None:
        output.write_text(page(), encoding="utf-8")
    if as_json:
        typer.echo(json.dumps(csv_rows(table), indent=2))
        return
    _print_result(table, as_csv=as_csv, as_latex=as_latex)


def _by_condition(runs: list[str]) -> dict[str, list[str]]:
    """Return URIs of evaluations by condition; one that two studies share counts once."""
    from clipmill.study.result import read_study

    uris: dict[str, dict[str, None]] = {}
    for text in runs:
        condition, is_named, uri = text.partition("=")
        if is_named and not (condition and uri):
            raise ConfigError(
                f"{text!r} is no evaluation of a condition",
                expected="CONDITION=URI, or the URI of a study",
                action="write it as 'G=out/evaluations/0123456789ab'",
            )
        if is_named:
            uris.setdefault(condition, {})[uri] = None
            continue
        for run in read_study(text).runs:
            uris.setdefault(run.condition, {}).update(dict.fromkeys(run.evaluations.values()))
    return {condition: list(evaluations) for condition, evaluations in uris.items()}


def _print_result(table: "ResultsTable", *, as_csv: bool, as_latex: bool) -> None:
    from clipmill.study.tables import csv_rows, latex, markdown, summary_sentences

    if as_csv:
        rows = csv_rows(table)
        writer = csv.DictWriter(sys.stdout, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    elif as_latex:
        typer.echo(latex(table), nl=False)
    else:
        typer.echo(markdown(table))
        typer.echo("\n".join(summary_sentences(table)))

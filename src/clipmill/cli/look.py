"""``clipmill data stats, view, verify, export``: looking at a dataset, and taking it elsewhere."""

import json
from pathlib import Path
from typing import Annotated

import typer

from clipmill.cli.options import Json, Set, Store, require_output

DatasetUri = Annotated[str, typer.Argument(help="URI of the dataset.")]
DAMAGED_CODE = 1


def stats(
    dataset: DatasetUri,
    shards: Annotated[int, typer.Option(help="Read so many, evenly apart; 0 is all.")] = 0,
    as_json: Json = False,
) -> None:
    """Count pairs, measure captions and pictures, draw scores; by kind and layer."""
    from clipmill.recipes import run_data as run

    found = run.stats(dataset, max_shards=shards)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
        return
    from rich.console import Console

    from clipmill.cli.stats_tables import stats_tables

    console = Console()
    console.print(stats_tables(found, console.width))


def view(
    dataset: DatasetUri,
    output: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("dataset.html"),
    uid: Annotated[list[str] | None, typer.Option(help="Show this sample; repeatable.")] = None,
    best: Annotated[str, typer.Option(metavar="LAYER:COLUMN", help="Show the highest.")] = "",
    worst: Annotated[str, typer.Option(metavar="LAYER:COLUMN", help="Show the lowest.")] = "",
    count: Annotated[int, typer.Option(help="Samples to show (of best and worst, each).")] = 24,
    seed: Annotated[int, typer.Option(help="Seed of the random choice.")] = 0,
) -> None:
    """Put samples on one HTML page: pictures, every caption, scores, verdicts.

    Random ones, unless --uid, --best or --worst says which.
    """
    require_output(output)
    from clipmill.recipes import run_data as run

    page = run.view(dataset, uids=uid or [], best=best, worst=worst, count=count, seed=seed)
    output.write_text(page, encoding="utf-8")
    typer.echo(str(output))


def verify(
    dataset: DatasetUri,
    sizes_only: Annotated[
        bool, typer.Option("--sizes-only", help="Compare lists and sizes; read no shard.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Check every digest, count and uid of a dataset; exit code 1 if it's damaged."""
    from clipmill.recipes import run_data as run

    found = run.verify(dataset, contents=not sizes_only)
    if as_json:
        typer.echo(json.dumps(found.to_json(), indent=2))
    else:
        for fault in found.faults:
            typer.echo(f"damaged: {fault}")
        for note in found.notes:
            typer.echo(f"note: {note}")
        verdict = f"{len(found.faults)} faults" if found.faults else "whole"
        read = f"{found.num_files:,} files, {found.num_bytes / 1e6:,.1f} MB read"
        typer.echo(f"{found.uri}: {verdict} ({read})")
    if not found.is_whole:
        raise typer.Exit(DAMAGED_CODE)


def export(
    dataset: DatasetUri,
    store: Store,
    captions: Annotated[str, typer.Option(help="real, synthetic or both.")] = "real",
    layer: Annotated[str, typer.Option(help="Layer of synthetic captions.")] = "",
    recipe: str = "export",
    sets: Set = None,
) -> None:
    """Bake captions into plain WebDataset tars for open_clip; prints their folder's URI."""
    from clipmill.recipes import run_data as run

    typer.echo(run.export(recipe, sets or [], dataset, store, captions=captions, layer=layer))

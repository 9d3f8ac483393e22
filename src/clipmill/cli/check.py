"""``clipmill data check``: what is wrong with a task's data, before training on it."""

import dataclasses
import json
from typing import Annotated

import typer

from clipmill.cli.options import Json
from clipmill.errors import SourceError


def check(
    task: Annotated[str, typer.Argument(help="classification, detection, segmentation or depth.")],
    data_uri: Annotated[str, typer.Argument(metavar="FOLDER", help="Folder, or URI of a .tar.")],
    encoder: Annotated[str, typer.Option(help="Also: does this encoder fit --recipe?")] = "",
    recipe: Annotated[str, typer.Option(help="Recipe of a fine-tuning.")] = "",
    model: Annotated[str, typer.Option(help="Also: has this task model the data's classes?")] = "",
    as_json: Json = False,
) -> None:
    """Look at every file of a task's data; exit code 2 if training couldn't use it."""
    from clipmill.recipes import run

    found = run.check_data(task, data_uri, encoder=encoder, name=recipe, model=model)
    if as_json:
        typer.echo(json.dumps(dataclasses.asdict(found) | {"is_fit": found.is_fit}, indent=2))
    else:
        for split, number in found.num_samples.items():
            typer.echo(f"{split}: {number:,} samples")
        for finding in found.findings:
            kind = "fault" if finding.is_fatal else "note"
            typer.echo(f"{kind}: {finding.reason}, {finding.count:,} times")
            for example in finding.examples:
                typer.echo(f"    {example}")
    if not found.is_fit:
        faults = [f"{f.reason} ({f.count:,})" for f in found.findings if f.is_fatal]
        raise SourceError(
            f"{data_uri} can't be used for {task}: {', '.join(faults)}",
            expected="data without faults; notes are only counted",
            action="mend what is listed above, and check again",
        )

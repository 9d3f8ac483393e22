"""Options that several commands share."""

from typing import Annotated

import typer

Store = Annotated[
    str, typer.Option("--store", help="Folder or s3:// URI that everything is written under.")
]
OptionalStore = Annotated[
    str, typer.Option("--store", help="Folder or s3:// URI that everything is written under.")
]
Set = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="PATH=VALUE",
        help="Change a field; repeatable.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]

"""``clipmill recipes``: list the recipes, and show their settings."""

import json
from dataclasses import asdict
from itertools import groupby
from typing import Annotated

import typer

from clipmill.cli.options import TASKS, Json, complete_stages, one_of, recipes_of
from clipmill.cli.output import format_table, print_next

recipes = typer.Typer(help="List recipes, and show their settings.", no_args_is_help=True)


@recipes.command("list")
def list_recipes(
    stage: Annotated[
        str,
        typer.Option(
            metavar="STAGE",
            help="Recipes of this stage, such as pretrain, finetune or score.",
            autocompletion=complete_stages,
        ),
    ] = "",
    task: Annotated[
        str,
        typer.Option(
            metavar="TASK",
            help=f"Recipes that fine-tune for this task: {', '.join(TASKS)}.",
            autocompletion=one_of(*TASKS),
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """List the recipes by the command that takes them."""
    from clipmill.recipes.registry import STAGES, describe_recipes

    infos = describe_recipes(stage, task)
    if as_json:
        typer.echo(json.dumps([asdict(i) | {"command": STAGES[i.stage]} for i in infos], indent=2))
        return
    width = max((len(info.name) for info in infos), default=0)
    blocks = []
    for name, group in groupby(infos, key=lambda info: info.stage):
        rows = [[f"  {info.name:<{width}}", info.task, info.description] for info in group]
        rows = rows if any(row[1] for row in rows) else [[row[0], row[2]] for row in rows]
        heading = f"{name}: clipmill {STAGES[name]} --recipe NAME"
        blocks.append("\n".join([heading, format_table(rows[0], rows[1:])]))
    typer.echo("\n\n".join(blocks))
    print_next("recipes", "show", "NAME")


@recipes.command("show")
def show_recipe(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="Name of a recipe.", autocompletion=recipes_of("")),
    ],
    as_json: Json = False,
) -> None:
    """Show a recipe: its source, hardware, and settings as --set takes them."""
    from clipmill.config import Config, flatten
    from clipmill.recipes.registry import describe_recipe, get_recipe

    config = get_recipe(name, Config).to_json()
    if as_json:
        typer.echo(json.dumps(config, indent=2))
        return
    typer.echo(describe_recipe(name))
    typer.echo("\nSettings (override with --set PATH=VALUE):")
    for path, value in flatten(config).items():
        typer.echo(f"  {path}={value if isinstance(value, str) else json.dumps(value)}")

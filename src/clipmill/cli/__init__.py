"""The ``clipmill`` command: each subcommand a thin call into the library."""

from pathlib import Path
from typing import Annotated, Final

import typer

from clipmill.cli import artifacts, entry, evaluate, serve, train
from clipmill.cli.cluster import cluster
from clipmill.cli.data import data
from clipmill.cli.entry import CommandGroup
from clipmill.cli.extras import needs
from clipmill.cli.options import Json, tracked
from clipmill.cli.recipes import recipes
from clipmill.cli.study import study
from clipmill.serve.config import DEFAULT_PORT

_START: Final = "Quickstart"
_DATA: Final = "Data"
_TRAINING: Final = "Training"
_EVALUATION: Final = "Evaluation"
_SERVING: Final = "Serving"
_ARTIFACTS: Final = "Artifacts"
_CLUSTER: Final = "Cluster"


class _Root(CommandGroup):
    order = (
        *("demo", "data", "recipes", "pretrain", "finetune", "sweep"),
        *("eval", "report", "study", "promote", "serve", "predict"),
        *("ls", "show", "runs", "lineage", "import", "export", "cluster"),
    )


app = typer.Typer(
    cls=_Root,
    help="Quality-captioned CLIP encoders: pretrained, fine-tuned for dense tasks, and served.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(is_requested: bool) -> None:
    if is_requested:
        from clipmill.version import clipmill_version

        typer.echo(f"clipmill {clipmill_version()}")
        raise typer.Exit


@app.callback()
def _root(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    del version, debug
    context.obj = app  # for `cluster submit`, which parses another command with it


@app.command(rich_help_panel=_START)
@needs("demo")
@tracked
def demo(
    folder: Annotated[Path, typer.Option(help="Folder for artifacts, logs and the page.")] = Path(
        ".clipmill"
    ),
    images: Annotated[
        Path | None, typer.Option(help="Folder of your photos, each with a .txt caption.")
    ] = None,
    captioner: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Captioner for --images: hf:ORG/NAME, file:FOLDER, vlm:URL, ..."
        ),
    ] = "",
    captioner_set: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH=VALUE", help="Override of the captioner's recipe; repeatable."),
    ] = None,
    encoder: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="Encoder to evaluate on --images as well."),
    ] = "",
    seed: Annotated[int, typer.Option(help="Seed of the encoders and task models.")] = 0,
    keep_running: Annotated[
        bool, typer.Option("--keep-running", help="Leave the endpoints running, until --stop.")
    ] = False,
    port: Annotated[int, typer.Option(help="HTTP port of the endpoints.")] = DEFAULT_PORT,
    s3: Annotated[
        bool, typer.Option("--s3", help="Keep artifacts in an embedded S3 server.")
    ] = False,
    stop: Annotated[
        bool,
        typer.Option(
            "--stop", help="Stop the endpoints that --keep-running left, and run nothing."
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the full pipeline on this machine, from captions to endpoints and a report."""
    from clipmill.demo import DemoOptions, show_demo, stop_demo

    if stop:
        typer.echo("\n".join(stop_demo(folder)))
        return
    options = DemoOptions(
        folder=folder,
        images=images,
        captioner=captioner,
        captioner_overrides=captioner_set or [],
        encoder=encoder,
        seed=seed,
        keep=keep_running,
        port=port,
        s3=s3,
    )
    show_demo(options, as_json=as_json)


app.add_typer(data, name="data", rich_help_panel=_DATA)
app.add_typer(recipes, name="recipes", rich_help_panel=_TRAINING)
app.add_typer(train.pretrain, name="pretrain", rich_help_panel=_TRAINING)
app.command(rich_help_panel=_TRAINING)(train.finetune)
app.command(rich_help_panel=_TRAINING)(train.sweep)
app.add_typer(evaluate.evaluate, name="eval", rich_help_panel=_EVALUATION)
app.command(rich_help_panel=_EVALUATION)(evaluate.report)
app.add_typer(study, name="study", rich_help_panel=_EVALUATION)
app.command(rich_help_panel=_SERVING)(evaluate.promote)
app.command(rich_help_panel=_SERVING)(serve.serve)
app.command(rich_help_panel=_SERVING)(serve.predict)
app.command(rich_help_panel=_ARTIFACTS)(artifacts.ls)
app.command(rich_help_panel=_ARTIFACTS)(artifacts.show)
app.command(rich_help_panel=_ARTIFACTS)(artifacts.runs)
app.command(rich_help_panel=_ARTIFACTS)(artifacts.lineage)
app.command("import", rich_help_panel=_ARTIFACTS)(artifacts.import_weights)
app.command(rich_help_panel=_ARTIFACTS)(artifacts.export)
app.add_typer(cluster, name="cluster", rich_help_panel=_CLUSTER)


def main() -> None:
    """Run the command; see :func:`clipmill.cli.entry.run` for errors and exit codes."""
    entry.run(app)

"""The ``clipmill`` command: each subcommand a thin call into the library."""

from pathlib import Path
from typing import Annotated

import typer

from clipmill.cli import entry, evaluate, models, serve, train
from clipmill.cli.cluster import cluster
from clipmill.cli.data import data
from clipmill.cli.extras import needs
from clipmill.cli.options import Json
from clipmill.cli.study import report, study
from clipmill.serve.config import DEFAULT_PORT

app = typer.Typer(
    help="Quality-captioned CLIP encoders: pretrained, fine-tuned for dense tasks, and served.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.add_typer(data, name="data")
app.add_typer(cluster, name="cluster")
app.add_typer(study, name="study")
app.command()(models.runs)
app.command()(models.export)
app.command("import")(models.import_weights)
app.command("zero-shot")(evaluate.zero_shot)
app.command("retrieval")(evaluate.retrieval)
app.command()(evaluate.attention)
app.command("sweep")(train.sweep)
app.command()(report)


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


@app.command()
@needs("demo")
def demo(
    folder: Annotated[Path, typer.Option(help="Folder for artifacts, logs and the page.")] = Path(
        ".clipmill"
    ),
    images: Annotated[
        Path | None, typer.Option(help="Folder of your photos, each with a .txt caption.")
    ] = None,
    captioner: Annotated[
        str, typer.Option(help="Captioner for --images: hf:ORG/NAME, file:FOLDER, vlm:URL, ...")
    ] = "",
    captioner_set: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH=VALUE", help="Override of the captioner's recipe; repeatable."),
    ] = None,
    encoder: Annotated[
        str, typer.Option(help="Address of an encoder to evaluate on --images as well.")
    ] = "",
    seed: Annotated[int, typer.Option(help="Seed of the encoders and task models.")] = 0,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the endpoints running, until --stop.")
    ] = False,
    port: Annotated[int, typer.Option(help="HTTP port of the endpoints.")] = DEFAULT_PORT,
    s3: Annotated[
        bool, typer.Option("--s3", help="Keep artifacts in an embedded S3 server.")
    ] = False,
    stop: Annotated[
        bool, typer.Option("--stop", help="Only stop the endpoints that --keep left running.")
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
        keep=keep,
        port=port,
        s3=s3,
    )
    show_demo(options, as_json=as_json)


app.command()(train.pretrain)
app.command("pretrain-mae")(train.pretrain_mae)
app.command("pretrain-supervised")(train.pretrain_supervised)
app.command()(train.finetune)
app.command()(evaluate.evaluate)
app.command()(evaluate.page)
app.command()(evaluate.promote)
app.command()(serve.serve)
app.command()(serve.query)
app.command()(models.lineage)
app.command()(models.recipes)


def main() -> None:
    """Run the command; see :func:`clipmill.cli.entry.run` for errors and exit codes."""
    entry.run(app)

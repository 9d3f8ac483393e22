"""The ``clipmill`` command: each subcommand a thin call into the library."""

import json
from pathlib import Path
from typing import Annotated

import typer

from clipmill.cli import entry, judge, models
from clipmill.cli import sweep as sweeping
from clipmill.cli.cluster import cluster
from clipmill.cli.data import data
from clipmill.cli.extras import needs
from clipmill.cli.options import Json, Set, Store, require_output
from clipmill.cli.study import report, study
from clipmill.serve.config import DEFAULT_PORT

app = typer.Typer(
    help="Quality-captioned CLIP encoders: made, fine-tuned for dense tasks, and served.",
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
app.command("zero-shot")(judge.zero_shot)
app.command("retrieval")(judge.retrieval)
app.command()(judge.attention)
app.command("sweep")(sweeping.sweep)
app.command()(report)


def _version(asked: bool) -> None:
    if asked:
        from clipmill import __version__

        typer.echo(f"clipmill {__version__}")
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks.")] = False,
) -> None:
    del version, debug


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
        str, typer.Option(help="Caption --images too: hf:ORG/NAME, file:FOLDER, vlm:URL, ...")
    ] = "",
    captioner_set: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH=VALUE", help="Change a field of its recipe; repeatable."),
    ] = None,
    encoder: Annotated[str, typer.Option(help="Measure this encoder on --images as well.")] = "",
    seed: Annotated[int, typer.Option(help="Seed of the encoders and task models.")] = 0,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave the endpoints running, until --stop.")
    ] = False,
    port: Annotated[int, typer.Option(help="HTTP port of the endpoints.")] = DEFAULT_PORT,
    s3: Annotated[
        bool, typer.Option("--s3", help="Keep artifacts in an embedded S3 server.")
    ] = False,
    stop: Annotated[
        bool, typer.Option("--stop", help="Stop what --keep left running, and do nothing else.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run the whole pipeline on this machine, from captions to endpoints and a report."""
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


@app.command()
@needs("model")
def pretrain(
    dataset: Annotated[str, typer.Argument(help="URI of the dataset.")],
    store: Store,
    captions: Annotated[str, typer.Option(help="real, synthetic, both or chosen.")] = "real",
    layer: Annotated[str, typer.Option(help="Layer of synthetic captions.")] = "",
    select: Annotated[
        list[str] | None, typer.Option(help="Select layer to follow; repeatable.")
    ] = None,
    recipe: str = "clip-miniature",
    sets: Set = None,
) -> None:
    """Pretrain a CLIP encoder; prints its URI."""
    from clipmill.recipes import run

    made = run.pretrain(
        recipe,
        sets or [],
        dataset,
        store,
        captions=captions,
        layer=layer,
        select=select or [],
    )
    typer.echo(made)


@app.command("pretrain-mae")
@needs("model")
def pretrain_mae(
    dataset: Annotated[str, typer.Argument(help="URI of the dataset.")],
    store: Store,
    recipe: str = "mae-miniature",
    sets: Set = None,
) -> None:
    """Pretrain a masked autoencoder on a dataset's pictures; prints its URI."""
    from clipmill.recipes import run

    typer.echo(run.pretrain_mae(recipe, sets or [], dataset, store))


@app.command("pretrain-supervised")
@needs("model")
def pretrain_supervised(
    data_uri: Annotated[str, typer.Option("--data", help="Folder, or URI of one as .tar.")],
    store: Store,
    recipe: str = "supervised-miniature",
    sets: Set = None,
) -> None:
    """Pretrain an image tower on labelled images, train/CLASS/*; prints its URI."""
    from clipmill.recipes import run

    typer.echo(run.pretrain_supervised(recipe, sets or [], data_uri, store))


@app.command()
@needs("train")
def finetune(
    encoder: Annotated[str, typer.Option(help="Address of an encoder (docs/weights.md).")],
    data_uri: Annotated[str, typer.Option("--data", help="Folder, or URI of one as .tar.")],
    store: Store,
    recipe: str = "upernet-miniature",
    sets: Set = None,
) -> None:
    """Fine-tune an encoder for the recipe's task; prints the model's URI."""
    from clipmill.recipes import run

    typer.echo(run.finetune(recipe, sets or [], encoder, data_uri, store))


@app.command()
@needs("train")
def evaluate(
    model: Annotated[str, typer.Argument(help="URI of a task model.")],
    data_uri: Annotated[str, typer.Option("--data", help="Folder, or URI of one as .tar.")],
    store: Store,
    as_json: Json = False,
) -> None:
    """Judge a task model on its data's test split."""
    from clipmill.recipes import run
    from clipmill.tasks.evaluation import read_evaluation

    found = read_evaluation(run.evaluate(model, data_uri, store))
    if as_json:
        typer.echo(json.dumps({"uri": found.uri, "task": found.task, "metrics": found.metrics}))
        return
    typer.echo(found.uri)
    for name, value in found.metrics.items():
        typer.echo(f"  {name:<10}{value:10.4f}")


@app.command()
def page(
    dataset: Annotated[str, typer.Option(help="URI of the dataset.")],
    layer: Annotated[str, typer.Option(help="Layer of synthetic captions.")],
    captioner: Annotated[str, typer.Option(help="URI of the captioner.")],
    encoder: Annotated[list[str], typer.Option(help="URI of an encoder; repeatable.")],
    evaluation: Annotated[list[str], typer.Option(help="URI of an evaluation; repeatable.")],
    store: Store,
    output: Annotated[Path, typer.Option(help="Where the page goes.")] = Path("report.html"),
) -> None:
    """Put encoders of real and of synthetic captions, and their evaluations, on one page."""
    require_output(output)
    from clipmill.recipes import run
    from clipmill.storage import join, read_bytes

    made = run.report(dataset, layer, captioner, encoder, evaluation, store)
    output.write_bytes(read_bytes(join(made, "report.html")))
    typer.echo(str(output))


@app.command()
def promote(
    task: Annotated[str, typer.Argument(help="Name of the task.")],
    evaluations: Annotated[list[str], typer.Argument(help="URIs of evaluations; the best wins.")],
    threshold: Annotated[float, typer.Option(help="What the task's metric must reach.")],
    store: Store,
) -> None:
    """Let the best judged model of a task serve, if it passes the gate; prints what serves."""
    from clipmill.recipes import run
    from clipmill.tasks.promotion import read_promotion

    typer.echo(
        read_promotion(run.promote(task, threshold, evaluations, store)).evaluation.model.uri
    )


@app.command()
@needs("serve")
def serve(
    models: Annotated[
        list[str] | None, typer.Argument(help="NAME=URI or NAME@VERSION=URI of models.")
    ] = None,
    models_file: Annotated[
        Path | None,
        typer.Option(help="JSON object that lists them instead; served anew when it changes."),
    ] = None,
    host: str = "127.0.0.1",
    port: int = DEFAULT_PORT,
    grpc_port: int | None = None,
    sets: Set = None,
    json_logs: Annotated[bool, typer.Option("--json-logs", help="Log as JSON lines.")] = False,
) -> None:
    """Serve task models and CLIPs with KServe: Open Inference Protocol V2 and V1, and a page."""
    from clipmill.logs import configure_logging
    from clipmill.serve.config import ServingConfig
    from clipmill.serve.launch import serve as run
    from clipmill.serve.model_spec import parse_model_args

    configure_logging(json=json_logs)
    run(
        parse_model_args(models or []),
        models_file=models_file,
        host=host,
        http_port=port,
        grpc_port=grpc_port,
        config=ServingConfig().override(sets or []),
    )


@app.command()
def query(
    url: Annotated[str, typer.Argument(help="Address of an endpoint.")],
    image: Annotated[Path, typer.Argument(help="JPEG, PNG or WebP file.", exists=True)],
    model: Annotated[str, typer.Option(help="Model to ask; the only one if left out.")] = "",
    label: Annotated[
        list[str] | None, typer.Option(help="What a CLIP may choose from; repeatable.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Where the drawn answer goes.")] = Path("answer.png"),
) -> None:
    """Ask an endpoint about a picture; prints the answer and draws it over the picture."""
    require_output(output)
    from clipmill.serve.client import ask

    answer = ask(url, image.read_bytes(), model=model, labels=tuple(label or ()))
    for line in answer.lines:
        typer.echo(line)
    if answer.drawn_png:
        output.write_bytes(answer.drawn_png)
        typer.echo(str(output))


@app.command()
def lineage(
    uri: Annotated[str, typer.Argument(help="URI of any artifact.")], as_json: Json = False
) -> None:
    """Draw what an artifact was made from, back to source files and captioner."""
    import dataclasses

    from clipmill.lineage import lineage as trace
    from clipmill.lineage import render

    node = trace(uri)
    typer.echo(json.dumps(dataclasses.asdict(node), indent=2) if as_json else render(node))


@app.command()
def recipes(
    name: Annotated[str | None, typer.Argument(help="Show this one whole.")] = None,
) -> None:
    """List the recipes, or show one as JSON."""
    from clipmill.config import Config
    from clipmill.recipes.registry import RECIPES, get_recipe

    if name:
        typer.echo(json.dumps(get_recipe(name, Config).to_json(), indent=2))
        return
    for known, make in RECIPES.items():
        first = (make.__doc__ or "").strip().splitlines()[0]
        typer.echo(f"{known:<30}{first}")


def main() -> None:
    """Run the command; see :func:`clipmill.cli.entry.run` for errors and exit codes."""
    entry.run(app)

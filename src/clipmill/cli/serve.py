"""Commands of inference: ``clipmill serve`` and ``predict``."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from clipmill.cli.extras import needs, require
from clipmill.cli.options import (
    DryRun,
    Executor,
    ExecutorOption,
    Json,
    Set,
    Store,
    Workflow,
    reject_range_options,
    require_output,
    should_submit,
    submit_stage,
)
from clipmill.cli.output import print_hint, print_next, print_uri
from clipmill.serve.config import DEFAULT_PORT


class LogFormat(StrEnum):
    """Format of the log."""

    TEXT = "text"
    JSON = "json"


@needs("serve")
def serve(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="MODEL", help="Models as NAME=URI or NAME@VERSION=URI."),
    ] = None,
    models_file: Annotated[
        Path | None,
        typer.Option(help="JSON file mapping NAME to URI. The server reloads it when it changes."),
    ] = None,
    host: Annotated[str, typer.Option(metavar="HOST", help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="HTTP port.")] = DEFAULT_PORT,
    grpc_port: Annotated[
        int | None, typer.Option(help="gRPC port; no gRPC server if left out.")
    ] = None,
    sets: Set = None,
    log_format: Annotated[LogFormat, typer.Option(help="Log format.")] = LogFormat.TEXT,
) -> None:
    """Serve task models and CLIPs with KServe: Open Inference Protocol V2 and V1, and a page."""
    from clipmill.logs import configure_logging
    from clipmill.serve.config import ServingConfig, parse_model_args
    from clipmill.serve.launch import serve as launch

    configure_logging(json=log_format is LogFormat.JSON)
    launch(
        parse_model_args(models or []),
        models_file=models_file,
        host=host,
        http_port=port,
        grpc_port=grpc_port,
        config=ServingConfig().override(sets or []),
    )


def predict(
    target: Annotated[
        str,
        typer.Argument(
            metavar="URL|MODEL", help="URL of a server; with --data, the URI of a model."
        ),
    ] = "",
    image: Annotated[
        Path | None,
        typer.Argument(metavar="IMAGE", help="Image file to send to the server.", exists=True),
    ] = None,
    model: Annotated[
        str, typer.Option(metavar="NAME", help="Name of the model; optional if only one is served.")
    ] = "",
    label: Annotated[
        list[str] | None,
        typer.Option(metavar="TEXT", help="Candidate label for a CLIP; repeatable."),
    ] = None,
    output: Annotated[
        Path, typer.Option(help="PNG file to write: the prediction, drawn over the image.")
    ] = Path("answer.png"),
    data_uri: Annotated[
        str,
        typer.Option(
            "--data", metavar="URI", help="Folder or s3:// prefix of images, or a dataset."
        ),
    ] = "",
    store: Store = "",
    sets: Set = None,
    plan_only: Annotated[
        bool, typer.Option("--plan-only", help="List the images, and predict nothing yet.")
    ] = False,
    plan: Annotated[
        str,
        typer.Option(metavar="URI", help="URI of a planned prediction to work on, for --worker."),
    ] = "",
    worker: Annotated[
        str, typer.Option(metavar="I/N", help="Part of a plan: worker I (from 0) of N.")
    ] = "",
    executor: ExecutorOption = Executor.LOCAL,
    workflow: Workflow = None,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Send an image to a server, or predict all images of a folder, bucket or dataset.

    `predict URL IMAGE` prints the prediction and draws it over the image. `predict MODEL --data URI
    --store URI` needs no server; it prints the URI of the results, and resumes if it was stopped.
    With several workers: run it with `--plan-only` once, then `predict --plan URI --worker I/N` in
    each, then `predict --plan URI`. `--executor argo` has pods do that.
    """
    is_batch = bool(data_uri or store or plan)
    if is_batch and (image or model or label):
        raise typer.BadParameter("IMAGE, --model and --label are for a server, without --data")
    if plan and (target or data_uri or store or sets or plan_only):
        raise typer.BadParameter("--plan has the model, the data and the settings already")
    if worker and not plan:
        raise typer.BadParameter("--worker goes with --plan")
    if is_batch and not plan and not (target and data_uri and store):
        raise typer.BadParameter("give MODEL, --data and --store")
    if not is_batch:
        if not (target and image):
            raise typer.BadParameter("give URL and IMAGE, or MODEL, --data and --store")
        _predict_by_server(target, image, model, label, output, as_json=as_json)
        return
    if should_submit(executor, workflow, dry_run):
        reject_range_options(plan=plan, worker=worker)
        options = {"--data": data_uri, "--store": store}
        submit_stage(
            "predict", target, options, sets, workflow=workflow, dry_run=dry_run, as_json=as_json
        )
        return
    require("model")
    from clipmill import stages

    if plan_only:
        uri = stages.plan_predict(sets or [], target, data_uri, store)
        print_uri(uri, as_json=as_json)
        print_next("predict", "--plan", uri, "--worker", "I/N")
        return
    uri = (
        stages.predict_part(plan, worker=worker)
        if plan
        else stages.predict(sets or [], target, data_uri, store)
    )
    _print_prediction(uri, as_json=as_json)


def _print_prediction(uri: str, *, as_json: bool) -> None:
    from clipmill.prediction.run import PREDICTION, TABLE, read_prediction
    from clipmill.storage import exists, join

    if not exists(join(uri, PREDICTION)):  # other workers' parts are missing
        print_uri(uri, as_json=as_json)
        print_next("predict", "--plan", uri)
        return
    value = read_prediction(uri)
    counts = {name: value[name] for name in ("task", "num_images", "num_predicted", "rejected")}
    print_uri(uri, as_json=as_json, **counts)
    for reason, count in value["rejected"].items():
        print_hint(f"rejected: {count} {reason}")
    data = value["parents"][1]
    if data["role"] == "dataset":
        layer = f"predictions/{value['task']}-{value['digest'][:8]}"
        print_next("data", "import-layer", data["uri"], layer, join(uri, TABLE))
    else:
        print_next("show", uri)


def _predict_by_server(
    url: str,
    image: Path,
    model: str,
    labels: list[str] | None,
    output: Path,
    *,
    as_json: bool,
) -> None:
    require_output(output)
    from clipmill.serve.client import predict_image

    result = predict_image(url, image.read_bytes(), model=model, labels=tuple(labels or ()))
    if result.overlay_png:
        output.write_bytes(result.overlay_png)
    drawn = str(output) if result.overlay_png else None
    if as_json:
        value = {"model": result.model, "prediction": list(result.lines), "output": drawn}
        typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
        return
    typer.echo("\n".join([*result.lines, *([drawn] if drawn else [])]))

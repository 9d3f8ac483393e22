"""Commands of inference: ``clipmill serve`` and ``predict``."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from clipmill.cli.extras import needs
from clipmill.cli.options import Json, Set, require_output
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
    url: Annotated[str, typer.Argument(metavar="URL", help="URL of a server.")],
    image: Annotated[
        Path, typer.Argument(metavar="IMAGE", help="JPEG, PNG or WebP file.", exists=True)
    ],
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
    as_json: Json = False,
) -> None:
    """Send an image to a server; prints the prediction and draws it over the image."""
    require_output(output)
    from clipmill.serve.client import predict_image

    result = predict_image(url, image.read_bytes(), model=model, labels=tuple(label or ()))
    if result.overlay_png:
        output.write_bytes(result.overlay_png)
    drawn = str(output) if result.overlay_png else None
    if as_json:
        value = {"model": result.model, "prediction": list(result.lines), "output": drawn}
        typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
        return
    typer.echo("\n".join([*result.lines, *([drawn] if drawn else [])]))

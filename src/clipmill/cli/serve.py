"""Commands of inference: ``clipmill serve`` and ``query``."""

from pathlib import Path
from typing import Annotated

import typer

from clipmill.cli.extras import needs
from clipmill.cli.options import Set, require_output
from clipmill.serve.config import DEFAULT_PORT


@needs("serve")
def serve(
    models: Annotated[
        list[str] | None, typer.Argument(help="Models as NAME=URI or NAME@VERSION=URI.")
    ] = None,
    models_file: Annotated[
        Path | None,
        typer.Option(help="JSON file mapping NAME to URI. The server reloads it when it changes."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="HTTP port.")] = DEFAULT_PORT,
    grpc_port: Annotated[
        int | None, typer.Option(help="gRPC port; no gRPC server if left out.")
    ] = None,
    sets: Set = None,
    json_logs: Annotated[bool, typer.Option("--json-logs", help="Log as JSON lines.")] = False,
) -> None:
    """Serve task models and CLIPs with KServe: Open Inference Protocol V2 and V1, and a page."""
    from clipmill.logs import configure_logging
    from clipmill.serve.config import ServingConfig
    from clipmill.serve.launch import serve as launch
    from clipmill.serve.model_spec import parse_model_args

    configure_logging(json=json_logs)
    launch(
        parse_model_args(models or []),
        models_file=models_file,
        host=host,
        http_port=port,
        grpc_port=grpc_port,
        config=ServingConfig().override(sets or []),
    )


def query(
    url: Annotated[str, typer.Argument(help="URL of an endpoint.")],
    image: Annotated[Path, typer.Argument(help="JPEG, PNG or WebP file.", exists=True)],
    model: Annotated[str, typer.Option(help="Name of the model; optional if only one.")] = "",
    label: Annotated[
        list[str] | None, typer.Option(help="Candidate label for a CLIP; repeatable.")
    ] = None,
    output: Annotated[Path, typer.Option(help="Image file to write the prediction to.")] = Path(
        "answer.png"
    ),
) -> None:
    """Send an image to an endpoint; prints the prediction and draws it over the image."""
    require_output(output)
    from clipmill.serve.client import predict_image

    result = predict_image(url, image.read_bytes(), model=model, labels=tuple(label or ()))
    for line in result.lines:
        typer.echo(line)
    if result.overlay_png:
        output.write_bytes(result.overlay_png)
        typer.echo(str(output))

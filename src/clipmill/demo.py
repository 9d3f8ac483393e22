"""The first-light pipeline on this machine: an embedded store, ``kfp.local``, live progress."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from clipmill.errors import ClipmillError, SourceError, StorageError, UserError
from clipmill.progress import follow
from clipmill.serve.probe import curl_lines
from clipmill.serve.process import ServerProcess
from clipmill.stages import EVENTS_VARIABLE
from clipmill.storage import SeaweedServer, join, read_bytes, read_json
from clipmill.tasks.promotion import read_promotion

STORE = "s3://clipmill"
_HOST = "127.0.0.1"
_STOP_SECONDS = 5.0


class PipelineError(ClipmillError):
    """A stage of the pipeline failed; its own words say why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoOptions:
    """What a person may choose."""

    folder: Path
    """Where store, logs and the page go."""
    images: Path | None = None
    """A folder of pictures with captions, in place of scenes; None for scenes."""
    seed: int = 0
    """Seed of the two encoders and of all that is trained on them."""
    keep: bool = False
    """Leave the store and the endpoints up."""
    port: int | None = None
    """HTTP port of the endpoints; None takes a free one."""
    overrides: dict[str, Sequence[str]] = field(default_factory=dict)
    """Overrides by the pipeline's parameter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """What a person wants to hear at the end."""

    page: Path
    """The report."""
    results: dict[str, Any]
    """What the report's JSON says."""
    models: dict[str, str]
    """URI of the model that serves, by task."""


def run_demo(options: DemoOptions, environment: Mapping[str, str], console: Console) -> DemoResult:
    """Run the pipeline against the store that ``environment`` names, and fetch the page.

    Raises:
        PipelineError: a stage failed for a reason that isn't the user's.
        UserError: a stage said what the user can mend.
    """
    run = time.strftime("%Y%m%d-%H%M%S")
    folder = options.folder
    events = folder / "events.jsonl"
    events.write_text("")
    parameters = {
        "store": STORE,
        "run": run,
        "pairs": str(options.images.absolute()) if options.images else "",
        "clip_overrides": [f"train.seed={options.seed}"],
        "finetune_overrides": [f"train.seed={options.seed}"],
        **options.overrides,
    }
    environment = {
        **os.environ,
        **environment,
        EVENTS_VARIABLE: str(events),
        "CLIPMILL_CACHE": str(folder / "cache"),
    }
    command = [sys.executable, "-m", "clipmill.pipelines", json.dumps(parameters), str(folder)]
    log = folder / "demo.log"
    with log.open("wb") as output, _group(command, environment, output) as process:
        failed = follow(events, process, console)
    if process.returncode:
        raise _failure(failed, log)
    record = read_json(join(STORE, "runs", run, "report.json"))
    page = folder / "report.html"
    page.write_bytes(read_bytes(join(record["output"], "report.html")))
    models = {
        task: read_json(join(STORE, "serving", task, "promotion.json"))["parents"][0]["uri"]
        for task in ("segmentation", "depth")
    }
    return DemoResult(
        page=page, results=read_json(join(record["output"], "report.json")), models=models
    )


@contextlib.contextmanager
def _group(
    command: Sequence[str], environment: Mapping[str, str], output: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a group of its own; on leaving, none of the group is left, whatever happens."""
    process = subprocess.Popen(
        command,
        env=environment,
        stdin=subprocess.PIPE,  # closed with us: that ends the group even after a kill -9
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_SECONDS)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if process.stdin:
            process.stdin.close()


def _failure(failed: dict[str, Any] | None, log: Path) -> ClipmillError:
    if failed is None:
        return PipelineError(f"the pipeline stopped; the end of {log} says why")
    if failed["user"]:
        what, expected, action = failed["user"]
        return UserError(f"{failed['stage']}: {what}", expected=expected, action=action)
    return PipelineError(f"{failed['stage']} failed: {failed['words']}\n  see {log}")


def show_demo(options: DemoOptions, *, as_json: bool) -> None:
    """Run the demo with live progress, then say where the page is, who won, and how to ask again.

    Raises:
        StorageError: the folder can't be written.
        SourceError: ``images`` is no folder.
        ServerError: the port is taken, or a server doesn't start.
    """
    from clipmill.serve.ports import free_port, require_free

    console = Console(stderr=as_json, highlight=False)
    port = options.port or free_port(_HOST)
    require_free(_HOST, port)
    _check(options)
    started = time.monotonic()
    store = SeaweedServer(options.folder / "store", detach=options.keep)
    with contextlib.ExitStack() as stack:
        store.start()
        if not options.keep:
            stack.callback(store.stop)
        os.environ.update(store.environment)
        result = run_demo(options, store.environment, console)
        lines = _endpoint_lines(result, port, options)
        pids = [store.process_id]
        if options.keep:
            server = ServerProcess(
                result.models, log_path=options.folder / "server.log", http_port=port, detach=True
            )
            pids.append(server.start().pid)
    if as_json:
        found = {"page": str(result.page), "models": result.models, **result.results}
        sys.stdout.write(json.dumps(found, indent=2) + "\n")
        return
    console.print(f"\n[bold]{result.results['verdict']}[/]")
    console.print(f"\nPage: {result.page.absolute()}  ({time.monotonic() - started:.0f} s)")
    if options.keep:
        console.print(f"Endpoints are up at http://{_HOST}:{port}; ask them again:")
        console.print("\n".join(lines), soft_wrap=True)
        console.print(f"Stop them and the store: kill {' '.join(map(str, pids))}")
    else:
        console.print("Ask the endpoints again: clipmill demo --keep, then")
        console.print("\n".join(lines), soft_wrap=True)


def _check(options: DemoOptions) -> None:
    """Find what would stop the run before anything starts."""
    if options.images is not None and not options.images.is_dir():
        raise SourceError(
            f"{options.images} is not a folder",
            expected="a folder of pictures, each with a .txt of the same name",
            action="check the path given as --images",
        )
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
        (options.folder / "demo.log").touch()
    except OSError as error:
        raise StorageError(
            f"{options.folder} can't be written: {error.strerror}",
            expected="a folder that this user may write in",
            action="give another one as --folder",
        ) from error


def _endpoint_lines(result: DemoResult, port: int, options: DemoOptions) -> list[str]:
    promoted = read_promotion(join(STORE, "serving", "segmentation"))
    picture = promoted.evaluation.picture(0, "image")
    url = f"http://{_HOST}:{port}"
    return curl_lines(url, result.models, picture, options.folder.absolute())

"""The demo: the end-to-end pipeline on this machine, with live progress, and the next commands.

Its artifacts lie in a plain folder, or in an embedded S3 server.
"""

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from rich.console import Console

from clipmill.errors import (
    ClipmillError,
    ConfigError,
    ServerError,
    SourceError,
    StorageError,
    UserError,
)
from clipmill.processes import (
    BackgroundProcess,
    exiting_on_sigterm,
    record_processes,
    require_free,
    running_processes,
    stop_processes,
)
from clipmill.progress import render_progress
from clipmill.serve.config import DEFAULT_PORT
from clipmill.serve.launch import ServerProcess
from clipmill.stage_records import EVENTS_VARIABLE, RUN_VARIABLE
from clipmill.storage import SeaweedServer, exists, join, read_bytes, read_json
from clipmill.tasks.evaluation import read_evaluation
from clipmill.tasks.promotion import read_promotion

_HOST = "127.0.0.1"
_BUCKET = "s3://clipmill"
_STOP_SECONDS = 5.0
_RUNNING = "running.json"
# Of a Unix socket's longest path, less what libraries append to TMPDIR.
_MAX_SCRATCH_CHARACTERS = 60
_TASKS = ("segmentation", "depth")
_RECAPTIONING = {
    "blip": "recaption-blip",
    "coca": "recaption-coca",
    "git": "recaption-git",
    "huggingface": "recaption-beam",
    "rewrite": "rewrite-laclip",
    "vlm": "recaption-vlm-vecap",
}
"""Recipe by kind of captioner."""


class PipelineError(ClipmillError):
    """A stage of the pipeline failed; its own message says why."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoOptions:
    """Settings of a demo."""

    folder: Path
    """Folder of artifacts, logs and the report."""
    images: Path | None = None
    """Folder of photographs with captions, in place of scenes; None for scenes."""
    captioner: str = ""
    """Address of a captioner for ``images``; empty for none."""
    captioner_overrides: Sequence[str] = ()
    """Changes of its recipe."""
    encoder: str = ""
    """Address of an encoder to compare with on ``images``; empty for none."""
    seed: int = 0
    """Seed of the encoders and of all that is trained on them."""
    keep: bool = False
    """Leave the endpoints up, and the S3 server."""
    port: int = DEFAULT_PORT
    """HTTP port of the endpoints."""
    s3: bool = False
    """Keep artifacts in an embedded S3 server rather than in a plain folder."""
    overrides: dict[str, Any] = field(default_factory=dict)
    """Values by the pipeline's parameter."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DemoResult:
    """Result shown after the demo."""

    page: Path
    """The report."""
    results: dict[str, Any]
    """The report's JSON."""
    store: str
    """URI that all artifacts lie under."""
    models: dict[str, str]
    """URI of the model to serve, by endpoint."""
    encoder: str
    """URI of an encoder to continue with."""
    image: Path
    """An image file to send to an endpoint."""


def show_demo(options: DemoOptions, *, as_json: bool) -> None:
    """Run the demo with live progress, then print the report's path and the next commands.

    Raises:
        StorageError: the folder can't be written, or holds a store of another kind.
        SourceError: ``images`` is no folder.
        ConfigError: the captioner doesn't know photographs.
        ServerError: the port is taken, a server doesn't start, or an earlier demo's still runs.
        PipelineError: a stage failed for a reason that isn't the user's.
        UserError: a stage named something that the user can correct.
    """
    console = Console(stderr=as_json, highlight=False)
    _check(options)
    started = time.monotonic()
    with contextlib.ExitStack() as stack:
        stack.enter_context(exiting_on_sigterm())
        store, server = stack.enter_context(_store(options))
        result = run_demo(options, store, server.environment if server else {}, console)
        if options.keep and result.models:
            _keep(options, result, server)
    if as_json:
        output = {
            "page": str(result.page),
            "store": result.store,
            "models": result.models,
            "encoder": result.encoder,
            **result.results,
        }
        sys.stdout.write(json.dumps(output, indent=2) + "\n")
        return
    console.print(f"\n[bold]{result.results['verdict']}[/]", soft_wrap=True)
    console.print(f"\nPage: {result.page}  ({time.monotonic() - started:.0f} s)", soft_wrap=True)
    console.print(f"Artifacts: {result.store}\n", soft_wrap=True)
    environment = server.environment if server else {}
    text = "\n".join(next_steps(options, result, environment))
    console.print(text, soft_wrap=True, markup=False)


def run_demo(
    options: DemoOptions, store: str, environment: Mapping[str, str], console: Console
) -> DemoResult:
    """Run the pipeline against ``store``, with ``environment`` added, and fetch the page.

    Raises:
        PipelineError: a stage failed for a reason that isn't the user's.
        UserError: a stage named something that the user can correct.
    """
    run = time.strftime("%Y%m%d-%H%M%S")
    folder = options.folder.absolute()
    events = folder / "events.jsonl"
    events.write_text("")
    name, parameters = _pipeline(options)
    parameters = {"store": store, **parameters, **options.overrides}
    log = folder / "demo.log"
    with _scratch(folder) as scratch:
        environment = {
            **os.environ,
            **environment,
            EVENTS_VARIABLE: str(events),
            RUN_VARIABLE: run,
            "CLIPMILL_CACHE": str(folder / "cache"),
            "TMPDIR": str(scratch),
            # Every stage is a process: bytecode that isn't kept costs each of them eight seconds.
            "PYTHONPYCACHEPREFIX": str(folder / "cache" / "bytecode"),
            "PYTHONDONTWRITEBYTECODE": "",
        }
        command = [
            *(sys.executable, "-m", "clipmill.pipelines"),
            *(name, json.dumps(parameters), str(scratch)),
        ]
        with log.open("wb") as output, _group(command, environment, output) as process:
            failed = render_progress(events, process, console)
    if process.returncode:
        raise _pipeline_error(failed, log)
    report = read_json(join(store, "runs", run, "report.json"))["output"]
    page = folder / "report.html"
    page.write_bytes(read_bytes(join(report, "report.html")))
    results = read_json(join(report, "report.json"))
    if options.images:
        return _photos_result(page, results, store)
    serving_uris = {task: join(store, "serving", task) for task in _TASKS}
    promotions = {
        task: read_promotion(uri)
        for task, uri in serving_uris.items()
        if exists(join(uri, "promotion.json"))
    }
    parents = {parent["role"]: parent["uri"] for parent in results["parents"]}
    encoder = [uri for role, uri in parents.items() if role.startswith("encoder ")][-1]
    evaluation = next(uri for role, uri in parents.items() if role.startswith("evaluation "))
    image = folder / "test-image.png"
    image.write_bytes(read_evaluation(evaluation).read_image(0, "image"))
    return DemoResult(
        page=page,
        results=results,
        store=store,
        models={task: promotion.evaluation.model.uri for task, promotion in promotions.items()},
        encoder=encoder,
        image=image,
    )


def stop_demo(folder: Path) -> list[str]:
    """Stop what ``--keep-running`` left running; return a line per process, or one if none ran.

    Raises StorageError where the folder's record is broken.
    """
    stopped = stop_processes(folder / _RUNNING)
    if not stopped:
        return [f"nothing runs that a demo in {folder} left"]
    return [f"stopped {p.name}: process {p.pid}, {p.url}" for p in stopped]


def program() -> list[str]:
    """Return the command that starts clipmill in the user's shell: its name where on PATH."""
    script = Path(sys.executable).parent / "clipmill"
    known = shutil.which("clipmill")
    if known and Path(known).absolute() == script:
        return ["clipmill"]
    if not os.access(script, os.X_OK):
        return [sys.executable, "-m", "clipmill"]
    with contextlib.suppress(ValueError):
        return [str(script.relative_to(Path.cwd()))]
    return [str(script)]


def next_steps(
    options: DemoOptions, result: DemoResult, environment: Mapping[str, str]
) -> list[str]:
    """Return commands to paste after a demo, each under a comment that says what it does."""
    if environment and not options.keep:
        again = shlex.join(
            [*program(), "demo", "--folder", str(options.folder), "--s3", "--keep-running"]
        )
        return [
            "# The artifacts are in an S3 server that has stopped; start it and the endpoints:",
            again,
        ]
    url = f"http://{_HOST}:{options.port}"
    finetune = _command("finetune", "--encoder", result.encoder, "--store", result.store)
    finetune += " --data YOUR_DATA --recipe upernet-tiny"
    onwards = [
        "# Fine-tune on your own data (formats: docs/tasks.md):",
        finetune,
        "",
        "# List the runs; show what an encoder was made from:",
        _command("runs", result.store),
        _command("lineage", result.encoder),
    ]
    if not result.models:
        return [
            "# No model is better than its gate, so none serves: the page has the figures.",
            "",
            *onwards,
        ]
    lines = []
    if environment:
        settings = shlex.join(f"{name}={value}" for name, value in environment.items())
        lines += ["# Let other commands use the S3 server that holds the artifacts:"]
        lines += [f"export {settings}", ""]
    if not options.keep:
        served = [f"{name}={uri}" for name, uri in result.models.items()]
        lines += ["# Serve the models; Ctrl-C stops them:"]
        lines += [_command("serve", *served, "--port", str(options.port)), ""]
    lines += ["# Playground, once they serve:" if not options.keep else "# Playground:"]
    lines += [f"{url}/", "", "# One request:"]
    name = next(iter(result.models))
    query = "labels=a photo,a drawing" if options.images else "output=png"
    answer = [] if options.images else ["--output", f"{name}.png"]
    kind = "png" if result.image.suffix == ".png" else "jpeg"
    request = f"{url}/v2/models/{name}/infer?{query.replace(' ', '%20')}"
    lines += [
        shlex.join(
            [
                *("curl", "--fail", "--data-binary", f"@{result.image}"),
                *("--header", f"Content-Type: image/{kind}", *answer, request),
            ]
        ),
        "",
        *onwards,
    ]
    if options.keep:
        stopping = ["demo", "--folder", str(options.folder.absolute()), "--stop"]
        lines += ["", "# Stop what is running:", _command(*stopping)]
    return lines


def _command(*arguments: str) -> str:
    return shlex.join([*program(), *arguments])


def _check(options: DemoOptions) -> None:
    """Raise for options that would stop the run, before anything starts."""
    if options.images is not None and not options.images.is_dir():
        raise SourceError(
            f"{options.images} is not a folder",
            expected="a folder of images, each with a .txt of the same name",
            action="check the path given as --images",
        )
    if options.images is None and (options.captioner or options.encoder):
        raise ConfigError(
            f"--{'captioner' if options.captioner else 'encoder'} was given without --images",
            expected="a folder of your own images to use it on",
            action="add --images DIR, or leave it out",
        )
    if options.captioner:
        check_captioner(options.captioner)
    try:
        options.folder.mkdir(parents=True, exist_ok=True)
        (options.folder / "demo.log").touch()
    except OSError as error:
        raise StorageError(
            f"{options.folder} can't be written: {error.strerror}",
            expected="a folder that this user may write in",
            action="give another one as --folder",
        ) from error
    if options.keep and (kept := running_processes(options.folder / _RUNNING)):
        processes = ", ".join(f"{p.name} (process {p.pid}, {p.url})" for p in kept)
        raise ServerError(
            f"an earlier demo is still up: {processes}",
            expected="one demo with --keep-running per folder",
            action=f"stop it first: {_command('demo', '--folder', str(options.folder), '--stop')}",
        )
    if options.keep:
        require_free(_HOST, options.port)


def check_captioner(captioner: str) -> None:
    """Raise ConfigError for a captioner that knows only procedural scenes."""
    from clipmill.data.captioners import (
        CaptionersConfig,
        GenerateConfig,
        knows_photos,
        open_captioner,
    )

    kind = _endpoint_kind(captioner)
    if kind in {"vlm", "rewrite"}:
        return  # an endpoint's settings come with its recipe
    shortest = CaptionersConfig(generate=GenerateConfig(max_tokens=6))  # which any CoCa can write
    if kind == "template" or not knows_photos(open_captioner(captioner, shortest)[1]):
        raise ConfigError(
            f"{captioner} can't caption photographs: it knows only "
            f"{'labels, not images' if kind == 'template' else 'drawn scenes'}",
            expected="a captioner that knows photographs: public weights or an endpoint",
            action="give --captioner hf:Salesforce/blip-image-captioning-base, file:FOLDER or "
            "vlm:URL, or leave it out",
        )


def _endpoint_kind(captioner: str) -> str:
    """``vlm``, ``rewrite`` or ``template``; empty for a captioner that is opened from weights."""
    from clipmill.data.captioners import captioner_kind

    scheme, _ = captioner_kind(captioner)
    return scheme if scheme in {"vlm", "rewrite", "template"} else ""


@contextlib.contextmanager
def _store(options: DemoOptions) -> Iterator[tuple[str, SeaweedServer | None]]:
    """Yield the store's URI and server, if any; it stops at the end unless it is kept."""
    if not options.s3:
        folder = options.folder.absolute() / "store"
        if (folder / "credentials.json").exists():
            old = folder.with_name("store-old")
            raise StorageError(
                f"{folder} holds the data files of an S3 server, left by an earlier version",
                expected="a folder of artifacts",
                action=f"move it away: mv {shlex.quote(str(folder))} {shlex.quote(str(old))}",
            )
        yield str(folder), None
        return
    server = SeaweedServer(options.folder / "s3", detach=options.keep)
    server.start()
    os.environ.update(server.environment)
    is_kept = False
    try:
        yield _BUCKET, server
        is_kept = options.keep
    finally:
        if not is_kept:
            server.stop()


def _keep(options: DemoOptions, result: DemoResult, store: SeaweedServer | None) -> None:
    """Start the endpoints, and record the processes that stay up."""
    folder = options.folder.absolute()
    log = folder / "server.log"
    server = ServerProcess(result.models, log_path=log, http_port=options.port, detach=True).start()
    kept = [BackgroundProcess.of("endpoints", server.pid, server.url)]
    if store is not None:
        url = store.environment["AWS_ENDPOINT_URL"]
        kept.append(BackgroundProcess.of("S3 server", store.pid, url))
    record_processes(folder / _RUNNING, kept)


@contextlib.contextmanager
def _scratch(folder: Path) -> Iterator[Path]:
    """Yield a folder for temporary files, removed afterwards; so are those of a killed run."""
    shutil.rmtree(folder / "tmp", ignore_errors=True)
    inside = folder / "tmp"
    if len(str(inside)) > _MAX_SCRATCH_CHARACTERS:
        with tempfile.TemporaryDirectory(prefix="clipmill-demo-") as name:
            yield Path(name)
        return
    inside.mkdir()
    try:
        yield inside
    finally:
        shutil.rmtree(inside, ignore_errors=True)


@contextlib.contextmanager
def _group(
    command: Sequence[str], environment: Mapping[str, str], output: IO[bytes]
) -> Iterator[subprocess.Popen[bytes]]:
    """Yield a process in a group of its own; on leaving, the whole group is ended."""
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


def _pipeline_error(failed: dict[str, Any] | None, log: Path) -> ClipmillError:
    if failed is None:
        return PipelineError(f"the pipeline stopped; the end of {log} says why")
    if failed["user"]:
        what, expected, action = failed["user"]
        return UserError(f"{failed['stage']}: {what}", expected=expected, action=action)
    return PipelineError(f"{failed['stage']} failed: {failed['words']}\n  see {log}")


def _pipeline(options: DemoOptions) -> tuple[str, dict[str, Any]]:
    """Return name and parameters of the pipeline for the options."""
    seed = f"train.seed={options.seed}"
    if options.images is None:
        return "end-to-end", {"clip_overrides": [seed], "finetune_overrides": [seed]}
    parameters: dict[str, Any] = {
        "pairs": str(options.images.absolute()),
        "clip_overrides": [seed],
        "encoder": options.encoder,
        "captioner": options.captioner,
    }
    if options.captioner:
        from clipmill.data.captioners import CaptionersConfig, GenerateConfig, open_captioner

        kind = _endpoint_kind(options.captioner)
        if not kind:
            shortest = CaptionersConfig(generate=GenerateConfig(max_tokens=6))
            kind, _ = open_captioner(options.captioner, shortest)
        parameters["recaption_recipe"] = _RECAPTIONING[kind]
        parameters["recaption_overrides"] = list(options.captioner_overrides)
    return "photos", parameters


def _photos_result(page: Path, results: dict[str, Any], store: str) -> DemoResult:
    """Return the result of ``photos``, with the encoder that was trained on all captions."""
    from clipmill.data.dataset import Dataset, cache_folder
    from clipmill.data.shards.read import read_shard

    parents = results["parents"]
    dataset = Dataset.open(next(p["uri"] for p in parents if p["role"] == "dataset"))
    index = next(i for i, shard in enumerate(dataset.shards) if shard.num_samples)
    image = page.with_name("test-image.jpg")
    with read_shard(dataset, index, cache_folder()) as reader:
        image.write_bytes(reader.image(0))
    encoder = list(results["results"]["trained"].values())[-1]
    return DemoResult(
        page=page,
        results=results,
        store=store,
        models={"clip": encoder},
        encoder=encoder,
        image=image,
    )

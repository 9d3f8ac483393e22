"""Experiment tracking: parameters, metrics and lineage in MLflow, TensorBoard or Weights & Biases.

``CLIPMILL_TRACKING``, or the option ``--tracking``, names the tracker: ``mlflow:URI``,
``tensorboard:FOLDER`` or ``wandb:PROJECT``. Each artifact that a stage writes is one run of the
tracker, known by its URI: a training that is resumed, or a command that is repeated, goes on with
the same run, and sends what the tracker hasn't got yet.

A thread sends everything. A tracker that is slow or away never delays or fails a stage.
"""

import atexit
import hashlib
import json
import logging
import os
import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Final, Literal, Self

from clipmill.config import flatten
from clipmill.cost import read_cost
from clipmill.errors import ArtifactError, ConfigError, StorageError
from clipmill.lineage import LOG_FILE
from clipmill.processes import is_first_rank
from clipmill.storage import absolute_uri, exists, join, read_bytes
from clipmill.version import clipmill_version

TRACKING_VARIABLE: Final = "CLIPMILL_TRACKING"
"""Environment variable that names the tracker."""
Status = Literal["finished", "failed", "stopped"]
"""How a run ended; the same command resumes one that failed or was stopped."""

_PACKAGES: Final = {"mlflow": "mlflow", "tensorboard": "tensorboard", "wandb": "wandb"}
_CLOSE_SECONDS: Final = {"finished": 20.0, "failed": 5.0, "stopped": 5.0}
_MAX_RETRY_SECONDS: Final = 30.0
_EXPERIMENT: Final = "clipmill"
# MLflow 3 opens an experiment without it on its page of traces of language models.
_EXPERIMENT_TAGS: Final = {"mlflow.experimentKind": "custom_model_development"}
_MAX_PARAMS: Final = 100  # that MLflow takes at once
_MAX_METRICS: Final = 1000
_MAX_TRIALS: Final = 1000
_MAX_TEXT: Final = 500  # characters of a parameter that all of MLflow's stores take
_logger = logging.getLogger(__name__)
_open_runs: "dict[str, TrackedRun]" = {}


class Tracker(ABC):
    """A run of a tracker. Any exception means that the call may be repeated later."""

    @property
    @abstractmethod
    def last_step(self) -> int:
        """Newest step of which it has metrics; -1 for none, or if it can't tell."""

    @abstractmethod
    def log_params(self, params: Mapping[str, str]) -> None:
        """Record parameters."""

    @abstractmethod
    def log_metrics(self, records: Sequence[Mapping[str, float]]) -> None:
        """Record metrics, each record with its ``step``."""

    @abstractmethod
    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record URIs, digests and lineage."""

    def nest_trials(self, sweep: str) -> None:  # noqa: B027  # optional
        """Put the runs with the tag ``clipmill.sweep`` of this value below this run."""

    def register(self, name: str, tags: Mapping[str, str]) -> None:  # noqa: B027  # optional
        """Make the run's artifact the promoted version of a registered model, if it has any."""

    @abstractmethod
    def set_status(self, status: Status) -> None:
        """Record how the run ended; no further call comes."""


class TrackedRun:
    """A run of the tracker; a thread sends what is logged."""

    def __init__(self, name: str, package: str, open_tracker: Callable[[], Tracker]) -> None:
        self._name = name
        self._package = package
        self._open = open_tracker
        self._calls: queue.SimpleQueue[Callable[[Tracker], None] | None] = queue.SimpleQueue()
        self._deadline = float("inf")
        self._is_closing = threading.Event()
        self._is_imported = threading.Event()
        self._thread = threading.Thread(target=self._send, name="tracking", daemon=True)
        self._thread.start()

    def log_params(self, params: Mapping[str, object]) -> None:
        """Record parameters."""
        texts = {key: str(value)[:_MAX_TEXT] for key, value in params.items()}
        self._calls.put(lambda tracker: tracker.log_params(texts))

    def log_metrics(self, records: Sequence[Mapping[str, float]]) -> None:
        """Record metrics of steps that the tracker hasn't got yet."""
        copies = [dict(record) for record in records]

        def send(tracker: Tracker) -> None:
            new = [record for record in copies if record["step"] > tracker.last_step]
            if new:
                tracker.log_metrics(new)

        self._calls.put(send)

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record URIs, digests and lineage."""
        texts = dict(tags)
        self._calls.put(lambda tracker: tracker.set_tags(texts))

    def nest_trials(self, sweep: str) -> None:
        """Put the runs of a sweep's trials below this run."""
        self._calls.put(lambda tracker: tracker.nest_trials(sweep))

    def register(self, name: str, tags: Mapping[str, str]) -> None:
        """Make the run's artifact the promoted version of a registered model."""
        texts = dict(tags)
        self._calls.put(lambda tracker: tracker.register(name, texts))

    def close(self, status: Status) -> None:
        """Record the run's state, and wait until all is sent, for a limited time."""
        self._calls.put(lambda tracker: tracker.set_status(status))
        self._calls.put(None)
        self._is_imported.wait()  # seconds on a busy machine, but it never hangs
        seconds = _CLOSE_SECONDS[status]
        self._deadline = time.monotonic() + seconds
        self._is_closing.set()
        self._thread.join(seconds + 1)
        if self._thread.is_alive() or not self._calls.empty():
            _logger.warning(
                "%s: the tracker was away, and hasn't all of this run; the same command sends the "
                "rest later",
                self._name,
            )

    def _send(self) -> None:
        try:
            import_module(self._package)
        finally:
            self._is_imported.set()
        tracker = self._repeat(self._open)
        while tracker is not None and (call := self._calls.get()) is not None:
            if self._repeat(lambda: (call(tracker), True)) is None:
                self._calls.put(call)  # so that it isn't empty
                return

    def _repeat(self, call: Callable[[], Any]) -> Any:
        """Return what ``call`` returns, sooner or later; None if it didn't in the end."""
        delay, was_said = 0.5, False
        while True:
            try:
                return call()
            except Exception as error:  # noqa: BLE001  # trackers raise whatever they like
                if not was_said:
                    _logger.warning("%s can't be tracked now: %s", self._name, _first_line(error))
                    was_said = True
            delay = min(2 * delay, _MAX_RETRY_SECONDS)
            left = self._deadline - time.monotonic()
            if left < 0:
                return None
            if not self._is_closing.wait(min(delay, left)):
                continue
            time.sleep(min(0.5, max(left, 0)))


def is_tracked() -> bool:
    """Return whether this process has a tracker: if one is configured, on rank 0."""
    return bool(os.environ.get(TRACKING_VARIABLE)) and is_first_rank()


def check_tracking() -> None:
    """Raise ConfigError if the environment names a tracker that can't be."""
    _parse(os.environ.get(TRACKING_VARIABLE, ""))


def open_run(uri: str, name: str) -> TrackedRun | None:
    """Return the run of the artifact at ``uri``; None without a tracker, or on another rank.

    A run that this process has open already is that run.

    Raises:
        ConfigError: the tracker is unknown, or its package isn't installed.
    """
    if not is_tracked():
        return None
    kind, address = _parse(os.environ[TRACKING_VARIABLE])
    openers: dict[str, Callable[[str, str], Tracker]] = {
        "mlflow": MlflowTracker.open,
        "tensorboard": TensorBoardTracker.open,
        "wandb": WandbTracker.open,
    }
    uri = absolute_uri(uri)
    if uri not in _open_runs:
        run = TrackedRun(name, _PACKAGES[kind], lambda: openers[kind](address, uri))
        run.set_tags({"clipmill.uri": uri, "clipmill.run": os.environ.get("CLIPMILL_RUN", "")})
        _open_runs[uri] = run
    return _open_runs[uri]


def close_run(uri: str, status: Status) -> None:
    """Close the run of the artifact at ``uri``, if it is open."""
    run = _open_runs.pop(absolute_uri(uri), None)
    if run is not None:
        run.close(status)


@atexit.register
def _close_all() -> None:
    """Close what a notebook's or script's trainings left open."""
    for uri in list(_open_runs):
        close_run(uri, "finished")


def track_artifact(
    uri: str,
    artifact: Mapping[str, Any],
    *,
    stage: str,
    seconds: float | None,
    tags: Mapping[str, str] | None = None,
) -> None:
    """Record a finished artifact: its recipe, metrics, digest and parents, and a training's log.

    ``seconds`` is None for one that existed already.
    """
    run = open_run(uri, stage)
    if run is None:
        return
    run.log_params(flatten(artifact.get("recipe") or artifact.get("config") or {}))
    parents = {
        f"clipmill.parent.{parent['role']}{number or ''}": f"{parent['uri']} {parent['digest']}"
        for number, parent in _numbered(artifact.get("parents", ()))
    }
    summary = {_tag(key): str(text) for key, text in artifact.get("summary", {}).items()}
    run.set_tags(
        {
            "clipmill.stage": stage,
            "clipmill.kind": str(artifact.get("kind", "")),
            "clipmill.digest": str(artifact.get("digest", "")),
            "clipmill.seconds": "" if seconds is None else f"{seconds:.1f}",
            **_cost_tags(uri),
            **summary,
            **parents,
            **(tags or {}),
        }
    )
    if artifact.get("kind") == "sweep":
        run.nest_trials(absolute_uri(uri))
    log = _training_log(uri)
    metrics = flatten(artifact.get("metrics") or {})
    numbers = {k: float(v) for k, v in metrics.items() if isinstance(v, int | float)}
    if not log and numbers:
        log = [{"step": 0, **numbers}]
    run.log_metrics(log)
    close_run(uri, "finished")


def register_promotion(artifact: Mapping[str, Any]) -> None:
    """Register a promotion's model, as a version of the model ``clipmill-TASK``."""
    parents = {parent["role"]: parent for parent in artifact["parents"]}
    model, task = parents["model"], str(artifact["gate"]["task"])
    run = open_run(model["uri"], f"promote {task}")
    if run is None:
        return
    tags = {
        "clipmill.uri": model["uri"],
        "clipmill.digest": model["digest"],
        "clipmill.evaluation": parents["evaluation"]["uri"],
        **{_tag(name): str(text) for name, text in artifact["summary"].items()},
    }
    run.register(f"clipmill-{task}", tags)
    close_run(model["uri"], "finished")


def mlflow_client(address: str) -> Any:
    """Return MLflow's client of a server or store; empty for ``MLFLOW_TRACKING_URI``."""
    # Its own 5 retries of 120 s would keep the end of a stage waiting.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    from mlflow import MlflowClient

    if address:
        # MLflow's file store opens clients of its own, which would make ./mlflow.db.
        os.environ.setdefault("MLFLOW_TRACKING_URI", address)
    return MlflowClient(address or None)


def _tag(name: str) -> str:
    """Return the tag of an entry of an artifact's summary, such as ``seen samples``."""
    return f"clipmill.{name.replace(' ', '_')}"


class MlflowTracker(Tracker):
    """A run in MLflow, of the experiment ``MLFLOW_EXPERIMENT_NAME`` (default: ``clipmill``)."""

    def __init__(
        self, client: Any, run_id: str, last_step: int, end_time: int | None = None
    ) -> None:
        self._client = client
        self._run_id = run_id
        self._last_step = last_step
        self._end_time = end_time

    @classmethod
    def open(cls, address: str, uri: str) -> Self:
        """Find the run of an artifact, or create it."""
        client = mlflow_client(address)
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", _EXPERIMENT)
        experiment = client.get_experiment_by_name(name)
        experiment_id = (
            experiment.experiment_id
            if experiment
            else client.create_experiment(name, tags=_EXPERIMENT_TAGS)
        )
        key = _key(uri)
        runs = client.search_runs([experiment_id], f"tags.`clipmill.key` = '{key}'", max_results=1)
        if not runs:
            tags = {"clipmill.key": key, "mlflow.source.name": f"clipmill {clipmill_version()}"}
            run = client.create_run(experiment_id, tags=tags, run_name=uri.rpartition("/")[2])
            return cls(client, run.info.run_id, -1)
        run = runs[0]
        client.update_run(run.info.run_id, status="RUNNING")
        metric = "loss" if "loss" in run.data.metrics else next(iter(run.data.metrics), None)
        history = client.get_metric_history(run.info.run_id, metric) if metric else []
        last_step = max((m.step for m in history), default=-1)
        # What is sent later of a finished run doesn't prolong it.
        end_time = run.info.end_time if run.info.status == "FINISHED" else None
        return cls(client, run.info.run_id, last_step, end_time)

    @property
    def last_step(self) -> int:
        """Newest step of which it has metrics."""
        return self._last_step

    def log_params(self, params: Mapping[str, str]) -> None:
        """Record parameters that it hasn't yet; MLflow refuses to change one."""
        from mlflow.entities import Param

        known = self._client.get_run(self._run_id).data.params
        new = [Param(_mlflow_name(k), v) for k, v in params.items() if _mlflow_name(k) not in known]
        for start in range(0, len(new), _MAX_PARAMS):
            self._client.log_batch(self._run_id, params=new[start : start + _MAX_PARAMS])

    def log_metrics(self, records: Sequence[Mapping[str, float]]) -> None:
        """Record metrics in batches of whole records."""
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        batch: list[Any] = []
        for record in records:
            step = int(record["step"])
            values = {_mlflow_name(key): value for key, value in record.items() if key != "step"}
            metrics = [Metric(name, value, now, step) for name, value in values.items()]
            if len(batch) + len(metrics) > _MAX_METRICS:
                self._client.log_batch(self._run_id, metrics=batch)
                self._last_step, batch = step - 1, []
            batch += metrics
        self._client.log_batch(self._run_id, metrics=batch)
        self._last_step = int(records[-1]["step"])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record tags."""
        from mlflow.entities import RunTag

        values = [RunTag(key, value) for key, value in tags.items() if value]
        self._client.log_batch(self._run_id, tags=values)

    def nest_trials(self, sweep: str) -> None:
        """Make this run the parent of the trials' runs, which the UI then shows below it."""
        experiment = self._client.get_run(self._run_id).info.experiment_id
        trials = self._client.search_runs(
            [experiment], f"tags.`clipmill.sweep` = '{sweep}'", max_results=_MAX_TRIALS
        )
        for trial in trials:
            self._client.set_tag(trial.info.run_id, "mlflow.parentRunId", self._run_id)

    def register(self, name: str, tags: Mapping[str, str]) -> None:
        """Create the model's version, known by its digest; the alias ``promoted`` points to it."""
        if not self._client.search_registered_models(f"name = '{name}'"):
            self._client.create_registered_model(name)
        versions = self._client.search_model_versions(f"name = '{name}'")
        digest = tags["clipmill.digest"]
        version = next((v for v in versions if v.tags.get("clipmill.digest") == digest), None)
        if version is None:
            uri = tags["clipmill.uri"]
            # A server takes no path of a client's machine.
            source = uri if "://" in uri else f"runs:/{self._run_id}/model"
            version = self._client.create_model_version(
                name, source, run_id=self._run_id, tags=dict(tags)
            )
        self._client.set_registered_model_alias(name, "promoted", version.version)

    def set_status(self, status: Status) -> None:
        """Record the run's state."""
        names = {"finished": "FINISHED", "failed": "FAILED", "stopped": "KILLED"}
        self._client.set_terminated(self._run_id, status=names[status], end_time=self._end_time)


class TensorBoardTracker(Tracker):
    """Event files in a folder of the run's name."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._writer: Any = None
        self._last_step = -1
        self._texts: dict[str, str] = {}

    @classmethod
    def open(cls, address: str, uri: str) -> Self:
        """Return the run whose folder is named like the artifact."""
        return cls(str(Path(address) / uri.rpartition("/")[2]))

    @property
    def last_step(self) -> int:
        """Newest step that this process wrote; event files are only appended to."""
        return self._last_step

    def log_params(self, params: Mapping[str, str]) -> None:
        """Keep parameters for the page of texts."""
        self._texts |= params

    def log_metrics(self, records: Sequence[Mapping[str, float]]) -> None:
        """Record scalars; those of later steps, from before a run was resumed, are hidden."""
        from torch.utils.tensorboard import SummaryWriter

        if self._writer is None:
            self._writer = SummaryWriter(self._folder, purge_step=int(records[0]["step"]))
        for record in records:
            for key, value in record.items():
                if key != "step":
                    self._writer.add_scalar(key, value, int(record["step"]))
            self._last_step = int(record["step"])

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Keep tags for the page of texts."""
        self._texts |= tags

    def set_status(self, status: Status) -> None:
        """Write the texts, and close the files."""
        if self._writer is None:
            return  # no metrics: nothing to show
        rows = "".join(f"| {key} | {value} |\n" for key, value in self._texts.items() if value)
        self._writer.add_text("clipmill", f"status: {status}\n\n| | |\n|---|---|\n{rows}")
        self._writer.close()


class WandbTracker(Tracker):
    """A run in Weights & Biases; ``WANDB_MODE=offline`` writes to ``WANDB_DIR`` alone."""

    def __init__(self, run: Any) -> None:
        self._run = run

    @classmethod
    def open(cls, address: str, uri: str) -> Self:
        """Begin or resume the run whose identity is made of the artifact's URI."""
        import wandb

        settings = wandb.Settings(silent=True, console="off")
        name = uri.rpartition("/")[2]
        project = address or _EXPERIMENT
        return cls(
            wandb.init(project=project, id=_key(uri), name=name, resume="allow", settings=settings)
        )

    @property
    def last_step(self) -> int:
        """Newest step of which it has metrics; -1 offline, where it can't tell."""
        return int(self._run.step) - 1

    def log_params(self, params: Mapping[str, str]) -> None:
        """Record parameters as the run's config."""
        self._run.config.update(dict(params), allow_val_change=True)

    def log_metrics(self, records: Sequence[Mapping[str, float]]) -> None:
        """Record metrics."""
        for record in records:
            values = {key: value for key, value in record.items() if key != "step"}
            self._run.log(values, step=int(record["step"]))

    def set_tags(self, tags: Mapping[str, str]) -> None:
        """Record URIs and lineage as the run's config: its tags have no values."""
        self._run.config.update({k: v for k, v in tags.items() if v}, allow_val_change=True)

    def set_status(self, status: Status) -> None:
        """End the run."""
        self._run.finish(exit_code=0 if status == "finished" else 1)


def _parse(text: str) -> tuple[str, str]:
    """Return kind and address of a tracker; two empty texts for none."""
    if not text:
        return "", ""
    kind, colon, address = text.partition(":")
    if not colon or kind not in _PACKAGES or (kind == "tensorboard" and not address):
        raise ConfigError(
            f"the tracker was {text!r}",
            expected="mlflow:URI, tensorboard:FOLDER or wandb:PROJECT",
            action=f"correct --tracking, or {TRACKING_VARIABLE}",
        )
    if find_spec(_PACKAGES[kind]) is None:
        raise ConfigError(
            f"the tracker was {text!r}, but {_PACKAGES[kind]} isn't installed",
            expected=f"clipmill with the extra {kind!r}",
            action=f"pip install 'clipmill[{kind}]'",
        )
    return kind, address


def _key(uri: str) -> str:
    """Return the identity of an artifact's run."""
    return hashlib.sha256(uri.encode()).hexdigest()[:16]


def _mlflow_name(name: str) -> str:
    """Return a name of the characters that MLflow takes."""
    return "".join(c if c.isalnum() or c in "_-. :/" else "_" for c in name)[:250]


def _numbered(parents: Sequence[Mapping[str, str]]) -> list[tuple[int, Mapping[str, str]]]:
    """Return each parent with the number of those of its role before it."""
    roles = [parent["role"] for parent in parents]
    return [(roles[:index].count(parent["role"]), parent) for index, parent in enumerate(parents)]


def _training_log(uri: str) -> list[dict[str, float]]:
    try:
        path = join(uri, LOG_FILE)
        if exists(path):
            return [json.loads(line) for line in read_bytes(path).decode().splitlines()]
    except StorageError:
        pass
    return []


def _cost_tags(uri: str) -> dict[str, str]:
    """Return what a training cost in all, and its devices; nothing of other artifacts."""
    try:
        cost = read_cost(uri)
    except (ArtifactError, StorageError):
        return {}
    if cost is None:
        return {}
    texts = {name: f"{value:.6g}" for name, value in cost.to_metrics().items()}
    texts["cost/device"] = ", ".join(cost.device_hours)
    return {f"clipmill.{name.replace('/', '.')}": text for name, text in texts.items()}


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:300]

"""Every Prometheus metric name, and the ``/metrics`` server of a job.

Metrics are registered by the first call of their section's function, so that a process exposes
only the sections that it uses.
"""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from enum import StrEnum
from functools import cache

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from clipmill.errors import ServerError

_FAST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_STEP_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_PIXELS = tuple(4**n for n in range(3, 13))
_BRIGHTNESS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
_METERS = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 20.0, 40.0, 80.0)


class SkipReason(StrEnum):
    """Values of the label ``reason`` of ``clipmill_train_skipped_updates_total``."""

    NOT_FINITE = "not_finite"
    SPIKE = "spike"


class Outcome(StrEnum):
    """Values of the label ``outcome`` of written checkpoints and of reloaded models."""

    SUCCESS = "success"
    FAILURE = "failure"


class SampleOutcome(StrEnum):
    """Values of the label ``outcome`` of ``clipmill_serve_samples_total``."""

    WRITTEN = "written"
    """The image is in the store."""
    DROPPED = "dropped"
    """Too many samples waited to be written."""
    FAILED = "failed"
    """The store refused it, or didn't answer."""


class CheckpointPhase(StrEnum):
    """Values of the label ``phase`` of ``clipmill_train_checkpoint_seconds``."""

    BLOCKING = "blocking"
    """Training waits."""
    BACKGROUND = "background"
    """The write, while training continues."""


class RequestOutcome(StrEnum):
    """Values of the label ``outcome`` of ``clipmill_caption_requests_total``."""

    SUCCESS = "success"
    RETRY = "retry"
    """It failed and is sent again."""
    FAILURE = "failure"
    """It failed, and isn't sent again."""


class ResponseFault(StrEnum):
    """Values of the label ``status`` of caption requests that aren't an HTTP status."""

    MALFORMED = "malformed"
    """The response isn't a chat completion."""
    INCOMPLETE = "incomplete"
    """No response, or not all of it."""


TOTAL_LOSS = "total"
"""Value of the label ``term`` of ``clipmill_train_loss`` for the sum of all terms."""

CAPTIONED = "captioned"
"""Value of the label ``outcome`` of ``clipmill_caption_samples_total`` for a sample with a caption;
the others are values of :class:`~clipmill.errors.BadSampleReason`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainMetrics:
    """Metrics of the training loop."""

    loss: Gauge
    """Last value; labels ``model``, ``term`` (``total``, or one term of it)."""
    samples: Counter
    """Samples seen."""
    step_seconds: Histogram
    """Wall time of an optimizer step."""
    learning_rate: Gauge
    """Largest of the parameter groups."""
    gradient_norm: Gauge
    """Before clipping."""
    step: Gauge
    """Optimizer steps done."""
    samples_per_second: Gauge
    """Samples of all ranks a second, since the last record of the log."""
    utilization: Gauge
    """Model FLOPs utilization, 0 to 1, since the last record; NaN where the peak isn't known."""
    logit_scale: Gauge
    """CLIP logit scale (inverse temperature); NaN without one."""
    data_wait_seconds: Counter
    """Time that a rank waited for its batches; label ``rank``. Rank 0 exports that of all ranks."""
    skipped_updates: Counter
    """Skipped updates; label ``reason``."""
    skipped_samples: Counter
    """Samples in skipped optimizer updates."""
    checkpoint_seconds: Histogram
    """Time to save a checkpoint; label ``phase``: a value of CheckpointPhase."""
    checkpoints: Counter
    """Checkpoints written; label ``outcome``: a value of Outcome."""
    watchdog_timeouts: Counter
    """Steps that exceeded the timeout, or ranks without heartbeat."""
    validation_metric: Gauge
    """Last value of a validation during training; labels ``validator`` and ``metric``."""
    source_loss: Gauge
    """Mean loss of a mixture's source since the last record; label ``source``, a name of one of
    the mixture's sources, as in the following three."""
    source_accuracy: Gauge
    """Share of a source's images whose own caption is the most similar of the batch."""
    source_samples: Gauge
    """Samples that a source has given, of the whole run."""
    source_epochs: Gauge
    """The same, over the source's samples."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataMetrics:
    """Metrics of reading and writing samples."""

    samples_processed: Counter
    """Samples written to a dataset."""
    samples_rejected: Counter
    """Rejected samples left out; label ``reason``: a value of BadSampleReason."""
    samples_replaced: Counter
    """Rejected samples that a data loader replaced by others; label ``reason``, as above."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionMetrics:
    """Metrics of recaptioning."""

    samples: Counter
    """Samples; label ``outcome``: CAPTIONED, or the BadSampleReason of a missing caption."""
    requests: Counter
    """Requests to an endpoint, retries included; labels ``outcome``: a value of RequestOutcome, and
    ``status``: the HTTP status, or a value of ResponseFault."""
    tokens: Counter
    """Tokens of prompts and completions, as the endpoint counts them."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingMetrics:
    """Metrics of a server. Each but those of the models file has the label ``model``."""

    request_seconds: Histogram
    """Time from a request's head until its response is encoded, for those not rejected."""
    queue_depth: Gauge
    """Images that wait for a batch."""
    queue_wait_seconds: Histogram
    """Time from an image's arrival to the start of its batch."""
    batch_size: Histogram
    """Images in a batch."""
    preprocess_seconds: Histogram
    """Time to decode and preprocess a request's images."""
    infer_seconds: Histogram
    """Time of the network's forward pass of a batch."""
    postprocess_seconds: Histogram
    """Time to encode a response."""
    requests: Counter
    """Requests answered; labels ``version``, and ``code``, the HTTP status."""
    requests_rejected: Counter
    """Requests rejected; label ``reason``: a value of ``serve.errors.RejectReason``."""
    samples: Counter
    """Images of requests that were chosen as samples; label ``outcome``: a value of
    SampleOutcome."""
    info: Gauge
    """1 for each model served; labels ``version``, ``task`` and ``digest``."""
    model_size_bytes: Gauge
    """Size of a model's tensors; label ``version``."""
    model_reloads: Counter
    """Changes of the models' file; label ``outcome``: a value of Outcome."""
    models_file_stale: Gauge
    """1 while the models' file lists other models than are served, and they can't be loaded."""
    image_pixels: Histogram
    """Input drift: size of an image."""
    image_brightness: Histogram
    """Input drift: mean of an image, 0 to 1."""
    embedding_drift: Gauge
    """Input drift: distance of recent images' mean embedding from the training mean, in units of
    the training RMS distance; label ``version``. NaN with too few images."""
    predicted_class_fraction: Counter
    """Prediction drift: fraction of an image that a class has, summed; label ``class``."""
    predicted_depth_meters: Histogram
    """Prediction drift: depth of a few pixels of each response."""


@cache
def train_metrics() -> TrainMetrics:
    """The training section, registered once."""
    return TrainMetrics(
        loss=Gauge("clipmill_train_loss", "Last loss, by term", ["model", "term"]),
        samples=Counter("clipmill_train_samples_total", "Samples seen"),
        step_seconds=Histogram(
            "clipmill_train_step_seconds", "Wall time of an optimizer step", buckets=_STEP_SECONDS
        ),
        learning_rate=Gauge("clipmill_train_learning_rate", "Largest learning rate of the groups"),
        gradient_norm=Gauge("clipmill_train_gradient_norm", "Gradient norm before clipping"),
        step=Gauge("clipmill_train_step", "Optimizer steps done"),
        samples_per_second=Gauge(
            "clipmill_train_samples_per_second", "Samples of all ranks a second"
        ),
        utilization=Gauge("clipmill_train_mfu_ratio", "Model FLOPs utilization, 0 to 1"),
        logit_scale=Gauge("clipmill_train_logit_scale", "CLIP logit scale (inverse temperature)"),
        data_wait_seconds=Counter(
            "clipmill_train_data_wait_seconds_total", "Wait for batches, by rank", ["rank"]
        ),
        skipped_updates=Counter(
            "clipmill_train_skipped_updates_total",
            "Skipped optimizer updates, by reason",
            ["reason"],
        ),
        skipped_samples=Counter(
            "clipmill_train_skipped_samples_total", "Samples in skipped optimizer updates"
        ),
        checkpoint_seconds=Histogram(
            "clipmill_train_checkpoint_seconds",
            "Time to save a checkpoint, blocking training or in the background",
            ["phase"],
            buckets=_STEP_SECONDS,
        ),
        checkpoints=Counter(
            "clipmill_train_checkpoints_total", "Checkpoints written, by outcome", ["outcome"]
        ),
        watchdog_timeouts=Counter(
            "clipmill_train_watchdog_timeouts_total",
            "Steps that exceeded the timeout, or ranks without heartbeat",
        ),
        validation_metric=Gauge(
            "clipmill_train_validation_metric",
            "Last value of a validation during training",
            ["validator", "metric"],
        ),
        source_loss=Gauge(
            "clipmill_train_source_loss", "Mean loss of a source of a mixture", ["source"]
        ),
        source_accuracy=Gauge(
            "clipmill_train_source_accuracy_ratio",
            "Share of a source's images whose own caption is the most similar of the batch",
            ["source"],
        ),
        source_samples=Gauge(
            "clipmill_train_source_samples", "Samples that a source of a mixture gave", ["source"]
        ),
        source_epochs=Gauge(
            "clipmill_train_source_epochs", "Epochs of a source of a mixture", ["source"]
        ),
    )


@cache
def data_metrics() -> DataMetrics:
    """The data section, registered once."""
    return DataMetrics(
        samples_processed=Counter(
            "clipmill_data_samples_processed_total", "Samples written to a dataset"
        ),
        samples_rejected=Counter(
            "clipmill_data_samples_rejected_total",
            "Rejected samples left out, by reason",
            ["reason"],
        ),
        samples_replaced=Counter(
            "clipmill_data_samples_replaced_total",
            "Rejected samples that a data loader replaced, by reason",
            ["reason"],
        ),
    )


@cache
def caption_metrics() -> CaptionMetrics:
    """The captioning section, registered once."""
    return CaptionMetrics(
        samples=Counter(
            "clipmill_caption_samples_total", "Captioned samples, by outcome", ["outcome"]
        ),
        requests=Counter(
            "clipmill_caption_requests_total",
            "Requests to a captioning endpoint, by outcome",
            ["outcome", "status"],
        ),
        tokens=Counter("clipmill_caption_tokens_total", "Tokens of prompts and completions"),
    )


@cache
def serving_metrics() -> ServingMetrics:
    """The serving section, registered once."""

    def seconds(name: str, meaning: str) -> Histogram:
        return Histogram(
            f"clipmill_serve_{name}_seconds", meaning, ["model"], buckets=_FAST_SECONDS
        )

    return ServingMetrics(
        request_seconds=seconds("request", "Time of a request that wasn't rejected"),
        queue_depth=Gauge("clipmill_serve_queue_depth", "Images that wait for a batch", ["model"]),
        queue_wait_seconds=seconds("queue_wait", "Wait of an image for its batch"),
        batch_size=Histogram(
            "clipmill_serve_batch_size", "Images in a batch", ["model"], buckets=_BATCH_SIZES
        ),
        preprocess_seconds=seconds(
            "preprocess", "Time to decode and preprocess a request's images"
        ),
        infer_seconds=seconds("infer", "Time of the network's forward pass of a batch"),
        postprocess_seconds=seconds("postprocess", "Time to encode a response"),
        requests=Counter(
            "clipmill_serve_requests_total",
            "Requests answered, by HTTP status",
            ["model", "version", "code"],
        ),
        requests_rejected=Counter(
            "clipmill_serve_requests_rejected_total",
            "Requests rejected, by reason",
            ["model", "reason"],
        ),
        samples=Counter(
            "clipmill_serve_samples_total",
            "Images chosen as samples, by outcome",
            ["model", "outcome"],
        ),
        info=Gauge(
            "clipmill_serve_model_info",
            "Models that are served",
            ["model", "version", "task", "digest"],
        ),
        model_size_bytes=Gauge(
            "clipmill_serve_model_size_bytes", "Size of a model's tensors", ["model", "version"]
        ),
        model_reloads=Counter(
            "clipmill_serve_model_reloads_total",
            "Changes of the models' file, by outcome",
            ["outcome"],
        ),
        models_file_stale=Gauge(
            "clipmill_serve_models_file_stale",
            "1 while a change of the models' file can't be applied",
        ),
        image_pixels=Histogram(
            "clipmill_serve_image_pixels", "Pixels of an image", ["model"], buckets=_PIXELS
        ),
        image_brightness=Histogram(
            "clipmill_serve_image_brightness",
            "Mean pixel intensity of an image, 0 to 1",
            ["model"],
            buckets=_BRIGHTNESS,
        ),
        embedding_drift=Gauge(
            "clipmill_serve_embedding_drift",
            "Distance of recent images' mean embedding from the training mean, in units of the "
            "training RMS distance",
            ["model", "version"],
        ),
        predicted_class_fraction=Counter(
            "clipmill_serve_predicted_class_fraction_total",
            "Fraction of images that a class has, summed",
            ["model", "class"],
        ),
        predicted_depth_meters=Histogram(
            "clipmill_serve_predicted_depth_meters",
            "Depth of a few pixels of each response",
            ["model"],
            buckets=_METERS,
        ),
    )


def remove_series(labels: Mapping[str, str]) -> None:
    """Remove the serving section's series with these labels, of each metric that has them all."""
    metrics = serving_metrics()
    for field in fields(metrics):
        metric: Counter | Gauge | Histogram = getattr(metrics, field.name)
        if labels.keys() <= set(metric._labelnames):  # noqa: SLF001  # it has no other name
            metric.remove_by_labels(dict(labels))


def serve_metrics(port: int, *, host: str = "127.0.0.1") -> int:
    """Serve ``/metrics`` from a daemon thread and return its port (a free one where 0 is given).

    Raises:
        ServerError: the port is taken.
    """
    try:
        server, _ = start_http_server(port, addr=host)
    except OSError as error:
        raise ServerError(
            f"metrics can't be served at {host}:{port}: {error.strerror}",
            expected="a free port",
            action="give another port, or stop what listens there",
        ) from error
    bound: int = server.server_port
    return bound


@cache
def serve_metrics_once(port: int, host: str) -> int:
    """Serve ``/metrics`` at an address on the first call of a process, and return the port."""
    return serve_metrics(port, host=host)

"""Every Prometheus metric name, and the ``/metrics`` server of a job.

Metrics are registered by the first call of their section's function, so that a process exposes
only the sections that it uses.
"""

from dataclasses import dataclass
from enum import StrEnum
from functools import cache

from prometheus_client import Counter, Gauge, Histogram, start_http_server

from clipmill.errors import ServerError

_FAST_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_STEP_SECONDS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
_PIXELS = tuple(4**n for n in range(3, 13))
_BRIGHTNESS = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0)
_METRES = (0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0, 10.0, 20.0, 40.0, 80.0)


class SkipReason(StrEnum):
    """Values of the label ``reason`` of ``clipmill_train_skipped_updates_total``."""

    NOT_FINITE = "not-finite"
    SPIKE = "spike"


class CheckpointResult(StrEnum):
    """Values of the label ``result`` of ``clipmill_train_checkpoints_total``."""

    SAVED = "saved"
    FAILED = "failed"


class ReloadOutcome(StrEnum):
    """Values of the label ``outcome`` of ``clipmill_serve_reloads_total``."""

    SWAPPED = "swapped"
    FAILED = "failed"


TOTAL_LOSS = "total"
"""Value of the label ``kind`` of ``clipmill_train_loss`` for the sum of all terms."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainMetrics:
    """Metrics of the training loop."""

    loss: Gauge
    """Last value; labels ``objective``, ``kind`` (``total``, or one term of it)."""
    samples: Counter
    """Samples seen."""
    step_seconds: Histogram
    """Wall time of an optimizer step."""
    learning_rate: Gauge
    """Largest of the parameter groups."""
    gradient_norm: Gauge
    """Before clipping."""
    step: Gauge
    """Optimiser steps done."""
    samples_per_second: Gauge
    """Samples of all ranks a second, since the last record of the log."""
    utilization: Gauge
    """Model FLOPs utilization, 0 to 1, since the last record; NaN where the peak isn't known."""
    logit_scale: Gauge
    """CLIP logit scale (inverse temperature); NaN without one."""
    data_wait_seconds: Counter
    """Time that this rank waited for its batches."""
    rank_data_wait_seconds: Gauge
    """The same of every rank, exported by the first one; label ``rank``."""
    skipped_updates: Counter
    """Skipped updates; label ``reason``."""
    skipped_samples: Counter
    """Samples of those updates."""
    checkpoint_seconds: Histogram
    """Time to save a checkpoint; label ``part``: ``stall`` of training, or background ``write``."""
    checkpoints: Counter
    """States written; label ``result``: ``saved`` or ``failed``."""
    hangs: Counter
    """Steps that exceeded the timeout, or ranks without heartbeat."""
    evaluation: Gauge
    """Last value of an evaluation during training; labels ``evaluation`` and ``metric``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DataMetrics:
    """Metrics of reading and writing samples."""

    samples: Counter
    """Samples processed."""
    quarantined: Counter
    """Samples rejected; label ``reason``."""
    skipped: Counter
    """Bad samples that a loader met and replaced; label ``reason``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CaptionMetrics:
    """Metrics of recaptioning."""

    samples: Counter
    """Samples that were captioned; label ``outcome``: ``captioned``, or why not."""
    requests: Counter
    """Attempts at an endpoint; label ``outcome``: ``answered``, a status, or what went wrong."""
    tokens: Counter
    """Tokens that an endpoint counted, of prompts and answers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingMetrics:
    """Metrics of a server. Each but ``reloads`` has the label ``model``."""

    request_seconds: Histogram
    """Time from a request's head to the end of its answer, for those that were answered."""
    queue_depth: Gauge
    """Images that wait for a batch."""
    queue_wait_seconds: Histogram
    """Time from an image's arrival to the start of its batch."""
    batch_size: Histogram
    """Images in a batch."""
    preprocess_seconds: Histogram
    """Decoding of a request's images."""
    infer_seconds: Histogram
    """The network's time for a batch."""
    postprocess_seconds: Histogram
    """Encoding of a request's answer."""
    requests: Counter
    """Requests answered; labels ``version``, and ``code``, the HTTP status."""
    rejected: Counter
    """Requests refused; label ``reason``."""
    info: Gauge
    """1 for each model served; labels ``version``, ``task`` and ``digest``."""
    loaded_bytes: Gauge
    """Size of a model's tensors; label ``version``."""
    reloads: Counter
    """Changes of the file of models; label ``outcome``: ``swapped`` or ``failed``."""
    image_pixels: Histogram
    """Input drift: size of an image."""
    image_brightness: Histogram
    """Input drift: mean of an image, 0 to 1."""
    embedding_distance: Gauge
    """Input drift: how far the mean embedding of the last images is from the training images',
    as a multiple of single ones' usual distance from theirs; label ``version``."""
    predicted_share: Counter
    """Prediction drift: share of an image that a class has, summed; label ``class``."""
    predicted_metres: Histogram
    """Prediction drift: depth of a few pixels of each answer."""


@cache
def train_metrics() -> TrainMetrics:
    """The training section, registered once."""
    return TrainMetrics(
        loss=Gauge("clipmill_train_loss", "Last loss", ["objective", "kind"]),
        samples=Counter("clipmill_train_samples_total", "Samples seen"),
        step_seconds=Histogram(
            "clipmill_train_step_seconds", "Wall time of an optimizer step", buckets=_STEP_SECONDS
        ),
        learning_rate=Gauge("clipmill_train_learning_rate", "Largest learning rate of the groups"),
        gradient_norm=Gauge("clipmill_train_gradient_norm", "Gradient norm before clipping"),
        step=Gauge("clipmill_train_step", "Optimiser steps done"),
        samples_per_second=Gauge(
            "clipmill_train_samples_per_second", "Samples of all ranks a second"
        ),
        utilization=Gauge("clipmill_train_mfu_ratio", "Model FLOPs utilization, 0 to 1"),
        logit_scale=Gauge("clipmill_train_logit_scale", "CLIP logit scale (inverse temperature)"),
        data_wait_seconds=Counter(
            "clipmill_train_data_wait_seconds_total", "Time that this rank waited for batches"
        ),
        rank_data_wait_seconds=Gauge(
            "clipmill_train_rank_data_wait_seconds", "Wait for batches, by rank", ["rank"]
        ),
        skipped_updates=Counter(
            "clipmill_train_skipped_updates_total", "Skipped updates, by reason", ["reason"]
        ),
        skipped_samples=Counter(
            "clipmill_train_skipped_samples_total", "Samples in skipped updates"
        ),
        checkpoint_seconds=Histogram(
            "clipmill_train_checkpoint_seconds",
            "Time to save a checkpoint: stall of training, or write in the background",
            ["part"],
            buckets=_STEP_SECONDS,
        ),
        checkpoints=Counter(
            "clipmill_train_checkpoints_total", "States written, by result", ["result"]
        ),
        hangs=Counter(
            "clipmill_train_hangs_total",
            "Steps that exceeded the timeout, or ranks without heartbeat",
        ),
        evaluation=Gauge(
            "clipmill_train_evaluation",
            "Last value of an evaluation during training",
            ["evaluation", "metric"],
        ),
    )


@cache
def data_metrics() -> DataMetrics:
    """The data section, registered once."""
    return DataMetrics(
        samples=Counter("clipmill_data_samples_total", "Samples processed"),
        quarantined=Counter("clipmill_data_quarantined_total", "Samples rejected", ["reason"]),
        skipped=Counter(
            "clipmill_data_skipped_total", "Bad samples that a loader replaced", ["reason"]
        ),
    )


@cache
def caption_metrics() -> CaptionMetrics:
    """The captioning section, registered once."""
    return CaptionMetrics(
        samples=Counter("clipmill_caption_samples_total", "Samples, by outcome", ["outcome"]),
        requests=Counter(
            "clipmill_caption_requests_total", "Attempts at an endpoint, by outcome", ["outcome"]
        ),
        tokens=Counter("clipmill_caption_tokens_total", "Tokens that an endpoint counted"),
    )


@cache
def serving_metrics() -> ServingMetrics:
    """The serving section, registered once."""

    def seconds(name: str, meaning: str) -> Histogram:
        return Histogram(
            f"clipmill_serve_{name}_seconds", meaning, ["model"], buckets=_FAST_SECONDS
        )

    return ServingMetrics(
        request_seconds=seconds("request", "Total time of a request that was answered"),
        queue_depth=Gauge("clipmill_serve_queue_depth", "Images that wait for a batch", ["model"]),
        queue_wait_seconds=seconds("queue_wait", "Wait of an image for its batch"),
        batch_size=Histogram(
            "clipmill_serve_batch_size", "Images in a batch", ["model"], buckets=_BATCH_SIZES
        ),
        preprocess_seconds=seconds(
            "preprocess", "Time to decode and preprocess a request's images"
        ),
        infer_seconds=seconds("infer", "Network time of a batch"),
        postprocess_seconds=seconds("postprocess", "Encoding of an answer"),
        requests=Counter(
            "clipmill_serve_requests_total",
            "Requests answered, by HTTP status",
            ["model", "version", "code"],
        ),
        rejected=Counter(
            "clipmill_serve_rejected_total", "Requests refused, by reason", ["model", "reason"]
        ),
        info=Gauge(
            "clipmill_serve_model_info",
            "Models that are served",
            ["model", "version", "task", "digest"],
        ),
        loaded_bytes=Gauge(
            "clipmill_serve_loaded_bytes", "Size of a model's tensors", ["model", "version"]
        ),
        reloads=Counter(
            "clipmill_serve_reloads_total", "Changes of the file of models", ["outcome"]
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
        embedding_distance=Gauge(
            "clipmill_serve_embedding_distance",
            "Distance of recent images' mean embedding from the training's, in its RMS distances",
            ["model", "version"],
        ),
        predicted_share=Counter(
            "clipmill_serve_predicted_share_total",
            "Share of images that a class has, summed",
            ["model", "class"],
        ),
        predicted_metres=Histogram(
            "clipmill_serve_predicted_metres",
            "Depth of a few pixels of each answer",
            ["model"],
            buckets=_METRES,
        ),
    )


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

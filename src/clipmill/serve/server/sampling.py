"""Samples of requests' images in a store, for relabeling: off by default, and never in the way.

A request only offers its images to a bounded queue; a thread of low priority encodes and writes
them. What the queue can't hold, or the store refuses, is counted and dropped.
"""

import io
import json
import logging
import queue
import random
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final, Self
from uuid import uuid4

import numpy as np
from PIL import Image

from clipmill.errors import ClipmillError, ConfigError
from clipmill.images import image_format
from clipmill.processes import lower_thread_priority
from clipmill.serve.config import SamplingConfig, ServingConfig
from clipmill.serve.protocol.images import Source, decode_image
from clipmill.storage import open_store, require_writable
from clipmill.telemetry import SampleOutcome, serving_metrics

_NICENESS: Final = 19
_JPEG_QUALITY: Final = 95
_CLOSE_SECONDS: Final = 5.0
_WARNING_SECONDS: Final = 60.0
# Images come from answered requests, so they are within the server's limits.
_NO_LIMITS: Final = ServingConfig(
    max_image_bytes=2**40, max_pixels=2**40, max_network_pixels=2**40, max_aspect_ratio=1e9
)
_logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Sample:
    source: Source
    num_bytes: int
    model: str
    version: str
    digest: str


class PayloadSampler:
    """Writes a fraction of the images that models answered to a store."""

    @classmethod
    def open(cls, config: SamplingConfig) -> Self | None:
        """Return a sampler, or None for a rate of 0.

        Raises:
            ConfigError: there is a rate, and no store.
            StorageError: the store can't be used at all.
        """
        if not config.rate:
            return None
        if not config.store:
            raise ConfigError(
                f"sampling.rate is {config.rate:g}, and there is no sampling.store",
                expected="the URI of a folder or bucket to write samples to",
                action="give one, e.g. `--set sampling.store=s3://bucket/samples`",
            )
        return cls(config)

    def __init__(self, config: SamplingConfig) -> None:
        require_writable(config.store)
        self._config = config
        self._store = open_store(config.store)
        self._queue: queue.SimpleQueue[_Sample | None] = queue.SimpleQueue()
        self._num_bytes = 0
        self._lock = threading.Lock()
        self._warned = -_WARNING_SECONDS
        self._thread = threading.Thread(target=self._run, name="samples", daemon=True)
        self._thread.start()

    def offer(self, sources: Sequence[Source], *, model: str, version: str, digest: str) -> None:
        """Take some of the images of an answered request; returns at once."""
        for source in sources:
            if random.random() >= self._config.rate:  # noqa: S311  # a sample, not a secret
                continue
            num_bytes = _num_bytes(source)
            with self._lock:
                fits = self._num_bytes + num_bytes <= self._config.max_queue_bytes
                self._num_bytes += num_bytes if fits else 0
            if not fits:
                _count(model, SampleOutcome.DROPPED)
                continue
            self._queue.put(
                _Sample(
                    source=source,
                    num_bytes=num_bytes,
                    model=model,
                    version=version,
                    digest=digest,
                )
            )

    def close(self) -> None:
        """Write what waits, for a few seconds at most."""
        self._queue.put(None)
        self._thread.join(_CLOSE_SECONDS)

    def _run(self) -> None:
        lower_thread_priority(_NICENESS)
        while (sample := self._queue.get()) is not None:
            try:
                self._write(sample)
                _count(sample.model, SampleOutcome.WRITTEN)
            except Exception as error:  # noqa: BLE001  # a sample must never end the thread
                _count(sample.model, SampleOutcome.FAILED)
                self._warn(error)
            finally:
                with self._lock:
                    self._num_bytes -= sample.num_bytes

    def _write(self, sample: _Sample) -> None:
        now = datetime.now(UTC)
        data, suffix = self._encode(sample.source)
        key = f"{now:%Y-%m-%d}/{sample.model}/{uuid4().hex}"
        record = {
            "model": sample.model,
            "version": sample.version,
            "digest": sample.digest,
            "time": now.isoformat(timespec="seconds"),
        }
        self._store.put(f"{key}{suffix}", data)
        self._store.put(f"{key}.json", json.dumps(record).encode())

    def _encode(self, source: Source) -> tuple[bytes, str]:
        """Return an image file as the redaction leaves it, and its suffix."""
        if isinstance(source, bytes) and self._config.redaction == "none":
            return source, f".{image_format(source) or 'JPEG'}".lower().replace("jpeg", "jpg")
        image = Image.fromarray(decode_image(source, _NO_LIMITS).pixels_HW3)
        if self._config.redaction == "downscale":
            side = self._config.max_side
            image.thumbnail((side, side), Image.Resampling.LANCZOS)
        file = io.BytesIO()
        # A new file of the pixels alone: no EXIF, location, thumbnail or comment.
        image.save(file, "JPEG", quality=_JPEG_QUALITY)
        return file.getvalue(), ".jpg"

    def _warn(self, error: Exception) -> None:
        if time.monotonic() - self._warned >= _WARNING_SECONDS:
            self._warned = time.monotonic()
            is_known = isinstance(error, ClipmillError)
            _logger.warning("a sample wasn't written: %s", error, exc_info=not is_known)


def _num_bytes(source: Source) -> int:
    """Return the bytes that a source keeps in memory: pixels may be a part of a request's."""
    if isinstance(source, bytes):
        return len(source)
    return source.base.nbytes if isinstance(source.base, np.ndarray) else source.nbytes


def _count(model: str, outcome: SampleOutcome) -> None:
    serving_metrics().samples.labels(model, outcome).inc()

"""OpenTelemetry traces: a span for each inference request, with its steps as children.

Configured by the standard ``OTEL_*`` variables; without an exporter in them nothing is imported and
the functions below do nothing. Spans are exported by a thread of the SDK, which drops what its
bounded queue (``OTEL_BSP_MAX_QUEUE_SIZE``) can't hold.
"""

import logging
import os
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from http import HTTPStatus
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any, Final

from clipmill.version import clipmill_version

if TYPE_CHECKING:
    from opentelemetry.trace import Span, Tracer

_SERVICE: Final = "clipmill"
_MAX_NAME: Final = 100
_FLUSH_SECONDS: Final = 5.0
_ENABLING: Final = (
    "OTEL_TRACES_EXPORTER",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
)
_logger = logging.getLogger(__name__)
_tracer: "Tracer | None" = None
_provider: Any = None
_request: "ContextVar[Span | None]" = ContextVar("request", default=None)


def configure_tracing() -> None:
    """Export spans as the environment says; a missing or failing exporter is a logged warning."""
    global _provider, _tracer  # one per process, as OpenTelemetry's own
    variable = next((name for name in _ENABLING if os.environ.get(name)), "")
    exporter = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    is_disabled = os.environ.get("OTEL_SDK_DISABLED", "").lower() == "true"
    if not variable or exporter == "none" or is_disabled:
        return
    os.environ.setdefault("OTEL_SERVICE_NAME", _SERVICE)
    try:
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor

        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(_load_exporter(exporter)))
    except Exception as error:  # noqa: BLE001  # a server without traces is better than none
        _logger.warning(
            "%s is set, but there will be no traces: %s; pip install 'clipmill[tracing]'",
            variable,
            error,
        )
        return
    _provider, _tracer = provider, provider.get_tracer("clipmill.serve", clipmill_version())


def _load_exporter(name: str) -> Any:
    """Return the exporter of that name, of the protocol that the environment names."""
    if name == "otlp":
        protocol = (
            os.environ.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
            or os.environ.get("OTEL_EXPORTER_OTLP_PROTOCOL")
            or "http/protobuf"
        )
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    exporters = list(entry_points(group="opentelemetry_traces_exporter", name=name))
    if not exporters:
        raise ModuleNotFoundError(f"there is no exporter {name!r}")
    return exporters[0].load()()


def flush_traces() -> None:
    """Export the spans that wait, for a few seconds at most; for the end of a server."""
    if _provider is not None:
        # The exporter retries for longer than a stopping server may take.
        flushing = threading.Thread(target=_provider.shutdown, daemon=True)
        flushing.start()
        flushing.join(_FLUSH_SECONDS)


class RequestSpan:
    """The span of a request, or nothing where traces aren't exported."""

    def __init__(self, span: "Span | None") -> None:
        self._span = span

    def end_with(self, status: int) -> None:
        """Record the HTTP status of the response; 5xx marks the span as failed."""
        if self._span is None:
            return
        from opentelemetry.trace import Status, StatusCode

        self._span.set_attribute("http.response.status_code", status)
        if status >= HTTPStatus.INTERNAL_SERVER_ERROR:
            self._span.set_status(Status(StatusCode.ERROR))


@contextmanager
def trace_request(model: str, protocol: str, headers: Mapping[str, str]) -> Iterator[RequestSpan]:
    """Trace a request to ``model``, as a child of the span that its ``traceparent`` names."""
    if _tracer is None:
        yield RequestSpan(None)
        return
    from opentelemetry.propagate import extract
    from opentelemetry.trace import SpanKind

    span = _tracer.start_span(
        "infer",
        context=extract(headers),
        kind=SpanKind.SERVER,
        attributes={"clipmill.model": model[:_MAX_NAME], "clipmill.protocol": protocol},
    )
    token = _request.set(span)
    try:
        yield RequestSpan(span)
    finally:
        _request.reset(token)
        span.end()


@contextmanager
def trace_step(name: str) -> Iterator[None]:
    """Trace a step of the current request."""
    if _request.get() is None:
        yield
        return
    started = time.monotonic()
    try:
        yield
    finally:
        add_step(name, started, time.monotonic())


def add_step(name: str, started: float, ended: float, **attributes: int) -> None:
    """Add a step of the current request that has ended; times are those of the event loop."""
    span = _request.get()
    if span is None or _tracer is None:
        return
    from opentelemetry.trace import set_span_in_context

    now_ns, now = time.time_ns(), time.monotonic()
    start_ns, end_ns = (now_ns - int((now - at) * 1e9) for at in (started, max(started, ended)))
    step = _tracer.start_span(
        name,
        context=set_span_in_context(span),
        start_time=start_ns,
        attributes={f"clipmill.{key}": value for key, value in attributes.items()},
    )
    step.end(end_ns)

"""Traces of a real server, at a local receiver of OTLP over HTTP."""

import os
import sys
import threading
import urllib.error
import urllib.request
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import grpc
import numpy as np
import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from clipmill.processes import free_port
from clipmill.serve.kserve_compat import InferInput, InferRequest
from clipmill.serve.launch import ServerProcess
from clipmill.serve.server import tracing
from clipmill.tasks.visualization import encode_png
from helpers.small_models import save_model

STEPS = {"parse", "decode", "queue", "forward", "encode"}


@pytest.fixture
def no_otel(monkeypatch):
    for name in list(os.environ):
        if name.startswith("OTEL_"):
            monkeypatch.delenv(name)
    monkeypatch.setattr(tracing, "_tracer", None)
    monkeypatch.setattr(tracing, "_provider", None)


@pytest.fixture
def receiver():
    """URL of the receiver, and the requests that it got."""
    exports = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            data = self.rfile.read(int(self.headers["Content-Length"]))
            exports.append((self.path, ExportTraceServiceRequest.FromString(data)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *args):
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", exports
        server.shutdown()
        thread.join()


def traceparent(number):
    return f"00-{number:032x}-{number + 7:016x}-01"


def query(server, data, **headers):
    request = urllib.request.Request(
        f"{server.url}/v2/models/seg/infer?output=png",
        data,
        {"Content-Type": "image/png", **headers},
    )
    with urllib.request.urlopen(request, timeout=60) as response:
        return response.status


def query_grpc(server, data, metadata):
    from kserve.protocol.grpc.grpc_predict_v2_pb2_grpc import GRPCInferenceServiceStub

    tensor = InferInput("image", [1], "BYTES")
    tensor.set_data_from_numpy(np.array([data], object), binary_data=True)
    with grpc.insecure_channel(f"{server.host}:{server.grpc_port}") as channel:
        stub = GRPCInferenceServiceStub(channel)
        stub.ModelInfer(InferRequest("seg", [tensor]).to_grpc(), timeout=60, metadata=metadata)


def attributes(span):
    return {
        a.key: a.value.string_value if a.value.HasField("string_value") else a.value.int_value
        for a in span.attributes
    }


def test_each_request_is_a_span_with_its_steps(no_otel, receiver, tmp_path, monkeypatch, picture):
    url, exports = receiver
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", url)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment=test")
    image = encode_png(picture)
    models = {"seg": save_model(str(tmp_path / "model"), "segmentation")}
    with ServerProcess(
        models, log_path=tmp_path / "log", grpc_port=free_port("127.0.0.1")
    ) as server:
        query(server, image, traceparent=traceparent(1), tracestate="vendor=x")
        query(server, image)
        with pytest.raises(urllib.error.HTTPError):
            query(server, b"no image", traceparent=traceparent(2))
        with pytest.raises(urllib.error.HTTPError):
            query(server, image[:100], traceparent=f"00-{3:032x}-{4:016x}-00")
        query_grpc(server, image, [("traceparent", traceparent(5))])
        urllib.request.urlopen(f"{server.url}/v2/health/ready").close()
    # The server has exported what it had when it stopped.
    assert {path for path, _ in exports} == {"/v1/traces"}
    resources = [r for _, request in exports for r in request.resource_spans]
    names = attributes(resources[0].resource)
    assert (names["service.name"], names["deployment.environment"]) == ("clipmill", "test")
    spans = [s for r in resources for scope in r.scope_spans for s in scope.spans]
    requests = [s for s in spans if s.kind == s.SPAN_KIND_SERVER]
    by_trace = {int.from_bytes(s.trace_id): s for s in requests}
    # A parent that isn't sampled (its flags end in 00) has no child either.
    assert len(requests) == len(by_trace) == 4
    assert {1, 2, 5} < by_trace.keys()
    for number in (1, 2, 5):
        assert int.from_bytes(by_trace[number].parent_span_id) == number + 7
    assert by_trace[1].trace_state == "vendor=x"
    (root,) = [s for s in requests if not s.parent_span_id]
    codes = {n: attributes(by_trace[n])["http.response.status_code"] for n in (1, 2, 5)}
    assert codes == {1: 200, 2: 400, 5: 200}
    assert attributes(by_trace[5])["clipmill.protocol"] == "grpc"
    assert attributes(root) | {"clipmill.model": "seg", "clipmill.protocol": "v2"} == attributes(
        root
    )
    for request in (root, by_trace[1], by_trace[5]):
        steps = [s for s in spans if s.parent_span_id == request.span_id]
        assert {s.name for s in steps} == STEPS
        assert len(steps) == len(STEPS)
        slack = 2_000_000  # the event loop's clock, in ns
        for step in steps:
            assert step.trace_id == request.trace_id
            assert request.start_time_unix_nano - slack <= step.start_time_unix_nano
            assert step.start_time_unix_nano <= step.end_time_unix_nano
            assert step.end_time_unix_nano <= request.end_time_unix_nano + slack
        (forward,) = [s for s in steps if s.name == "forward"]
        assert attributes(forward) == {"clipmill.batch_size": 1}


@pytest.mark.parametrize(
    "variables",
    [
        {},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:1"},
    ],
)
def test_without_an_exporter_nothing_is_traced(no_otel, monkeypatch, variables):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    tracing.configure_tracing()
    assert tracing._tracer is None
    with tracing.trace_request("m", "v2", {"traceparent": traceparent(1)}) as span:
        span.end_with(200)
        with tracing.trace_step("parse"):
            tracing.add_step("queue", 0, 1)


@pytest.mark.parametrize("missing", ["sdk", "exporter"])
def test_a_server_without_the_extra_says_so_and_serves(no_otel, monkeypatch, caplog, missing):
    monkeypatch.setenv("OTEL_TRACES_EXPORTER", "otlp")
    if missing == "sdk":
        monkeypatch.setitem(sys.modules, "opentelemetry.sdk.trace", None)
    else:
        monkeypatch.setattr(tracing, "entry_points", lambda **kwargs: [])
    tracing.configure_tracing()
    assert tracing._tracer is None
    assert "OTEL_TRACES_EXPORTER is set, but there will be no traces" in caplog.text
    assert "pip install 'clipmill[tracing]'" in caplog.text


def test_the_protocol_is_that_of_the_environment(no_otel, monkeypatch):
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    assert "grpc" in type(tracing._load_exporter("otlp")).__module__
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")
    assert "http" in type(tracing._load_exporter("otlp")).__module__

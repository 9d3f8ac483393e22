"""A canary's errors, asked of a server that speaks Prometheus' HTTP API."""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from urllib.parse import parse_qs, urlsplit

import pytest

from clipmill.cluster.canary_checks import Prometheus
from clipmill.cluster.kserve import InferenceServiceConfig
from clipmill.errors import ClusterError

ENDPOINT = InferenceServiceConfig(name="depth", namespace="ml")


@pytest.fixture
def asked():
    """A server's URL, the queries it got, and what it answers: a value, none, or not JSON."""
    queries, answers = [], []

    class Handler(BaseHTTPRequestHandler):
        def log_message(self, *args):
            pass

        def do_GET(self):
            queries.append(parse_qs(urlsplit(self.path).query)["query"][0])
            self.send_response(200)
            self.end_headers()
            self.wfile.write(answers[0].encode())

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}", queries, answers
    server.shutdown()
    server.server_close()


def answer(*values):
    return json.dumps({"data": {"result": [{"value": [0, value]} for value in values]}})


@pytest.mark.parametrize(
    ("text", "ratio"), [(answer("0.25"), 0.25), (answer(), None), (answer("NaN"), None)]
)
def test_the_ratio_of_one_track(asked, text, ratio):
    url, queries, answers = asked
    answers.append(text)
    assert Prometheus(url + "/").error_ratio(ENDPOINT, "canary") == ratio
    assert 'model="depth",namespace="ml",clipmill_io_track="canary",code=~"5.."' in queries[0]


def test_what_isnt_prometheus_is_said(asked):
    url, _, answers = asked
    answers.append("<html>")
    with pytest.raises(ClusterError, match="can't be queried"):
        Prometheus(url).value("up")
    with pytest.raises(ClusterError, match="can't be queried"):
        Prometheus("http://127.0.0.1:1").value("up")

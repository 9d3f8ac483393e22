"""What is particular to S3: credentials, retries, broken connections, crashes in an upload."""

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from minio.error import S3Error

from clipmill.errors import NotFoundError, StorageError, StoreUnavailableError
from clipmill.storage import open_store, read_bytes, require_writable, write_bytes
from clipmill.storage.s3 import RetryPolicy, S3Settings, S3Store, client_for

QUICK = RetryPolicy(attempts=4, base_seconds=0.01, max_seconds=0.05)

MIB = 1 << 20

SLOW_DOWN = (
    503,
    {"Content-Type": "application/xml"},
    b"<Error><Code>SlowDown</Code><Message>Please reduce your request rate.</Message></Error>",
)

Answer = tuple[int, dict[str, str], bytes]


class ScriptedServer:
    """A real HTTP server that gives prepared answers in turn, and keeps what it was asked."""

    def __init__(self, answers: list[Answer]) -> None:
        self.requests: list[tuple[str, str, dict[str, str], bytes]] = []
        script = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def answer(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                headers = {name.lower(): value for name, value in self.headers.items()}
                script.requests.append((self.command, self.path, headers, body))
                status, fields, data = answers[min(len(script.requests), len(answers)) - 1]
                self.send_response(status)
                for name, value in {"Content-Length": str(len(data)), **fields}.items():
                    self.send_header(name, value)
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)
                self.close_connection = len(data) != int(fields.get("Content-Length", len(data)))

            do_GET = do_PUT = do_HEAD = answer

            def log_message(self, *_: object) -> None:
                """Keep the tests' output clean."""

        self.http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.settings = S3Settings(
            endpoint=f"http://127.0.0.1:{self.http.server_port}",
            access_key="key",
            secret_key="secret",
        )


@pytest.fixture
def serve() -> Iterator[Callable[..., ScriptedServer]]:
    servers = []

    def start(*answers: Answer) -> ScriptedServer:
        server = ScriptedServer(list(answers))
        threading.Thread(target=server.http.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.http.shutdown()
        server.http.server_close()


@pytest.fixture
def closed_port() -> Iterator[int]:
    with socket.socket() as bound:
        # Bound but not listening: nobody answers there, and nobody else can take it.
        bound.bind(("127.0.0.1", 0))
        yield bound.getsockname()[1]


@pytest.fixture
def real(s3: dict[str, str]) -> S3Settings:
    return S3Settings.from_environment()


def test_the_secret_is_in_no_text(real: S3Settings) -> None:
    with_token = replace(real, session_token="a-token")
    assert real.access_key in repr(with_token)
    assert real.secret_key not in repr(with_token)
    assert "a-token" not in repr(with_token)


@pytest.mark.parametrize("missing", ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"])
def test_missing_credentials_are_named(
    s3: dict[str, str], monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    monkeypatch.delenv(missing)
    with pytest.raises(StorageError, match=f"{missing} isn't set"):
        open_store("s3://bucket/prefix")


def test_without_an_endpoint_it_is_amazon(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = S3Settings.from_environment(
        {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_REGION": "eu-west-1"}
    )
    assert settings.endpoint == "https://s3.eu-west-1.amazonaws.com"
    assert settings.session_token is None


@pytest.mark.parametrize("endpoint", ["localhost:9000", "ftp://host", "http://", "http://h/path"])
def test_a_malformed_endpoint_is_refused(
    s3: dict[str, str], monkeypatch: pytest.MonkeyPatch, endpoint: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    with pytest.raises(StorageError, match="AWS_ENDPOINT_URL"):
        open_store("s3://bucket/prefix")


def test_a_malformed_region_is_refused(real: S3Settings) -> None:
    with pytest.raises(StorageError, match="no such region"):
        S3Store("bucket", "", replace(real, region="no such region")).exists("a")


@pytest.mark.parametrize(
    ("field", "code"),
    [("secret_key", "SignatureDoesNotMatch"), ("access_key", "InvalidAccessKeyId")],
)
def test_wrong_credentials_are_told_at_once(
    real: S3Settings, caplog: pytest.LogCaptureFixture, field: str, code: str
) -> None:
    caplog.set_level(logging.DEBUG, "urllib3")
    store = S3Store("tests", "", replace(real, **{field: "wrong"}))
    for use in (lambda: store.get("a"), lambda: store.put("a", b"x"), lambda: list(store.list())):
        caplog.clear()
        with pytest.raises(StorageError, match=code) as caught:
            use()
        assert not isinstance(caught.value, NotFoundError)
        assert "AWS_SECRET_ACCESS_KEY" in caught.value.action
        assert real.secret_key not in str(caught.value)
        assert sum('HTTP/1.1" 403' in record.getMessage() for record in caplog.records) == 1
    with pytest.raises(StorageError, match="AccessDenied"):
        store.exists("a")


def test_a_session_token_is_sent(serve: Callable[..., ScriptedServer]) -> None:
    server = serve((200, {"ETag": '"1"'}, b"data"))
    S3Store("bucket", "", replace(server.settings, session_token="the-token")).get("a")
    assert server.requests[0][2]["x-amz-security-token"] == "the-token"


def test_the_first_put_makes_the_bucket(s3: dict[str, str]) -> None:
    bucket = f"new-{uuid.uuid4().hex[:12]}"
    assert list(open_store(f"s3://{bucket}").list()) == []
    write_bytes(f"s3://{bucket}/a", b"x")
    assert read_bytes(f"s3://{bucket}/a") == b"x"


def test_a_server_that_does_not_make_buckets_is_asked_to(
    serve: Callable[..., ScriptedServer],
) -> None:
    xml = {"Content-Type": "application/xml"}
    server = serve(
        (404, xml, b"<Error><Code>NoSuchBucket</Code></Error>"),
        (409, xml, b"<Error><Code>BucketAlreadyOwnedByYou</Code></Error>"),
        (200, {"ETag": '"1"'}, b""),
    )
    S3Store("bucket", "", server.settings).put("a/b", b"the bytes")
    assert [(method, path, body) for method, path, _, body in server.requests] == [
        ("PUT", "/bucket/a/b", b"the bytes"),
        ("PUT", "/bucket", b""),
        ("PUT", "/bucket/a/b", b"the bytes"),
    ]


@pytest.mark.parametrize("bad", [SLOW_DOWN, (500, {}, b""), (502, {}, b"<html>"), (429, {}, b"")])
def test_transient_failures_are_repeated(serve: Callable[..., ScriptedServer], bad: Answer) -> None:
    server = serve(bad, bad, (200, {"ETag": '"1"'}, b"data"))
    assert S3Store("bucket", "", server.settings, QUICK).get("a") == b"data"
    assert len(server.requests) == 3


def test_a_repeated_put_sends_the_same_bytes(
    serve: Callable[..., ScriptedServer], tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(bytes(range(256)) * 40)
    server = serve(SLOW_DOWN, SLOW_DOWN, (200, {"ETag": '"1"'}, b""))
    S3Store("bucket", "", server.settings, QUICK).put_file("a", tmp_path / "file")
    assert [body for *_, body in server.requests] == [bytes(range(256)) * 40] * 3


def test_retries_are_bounded_and_the_reason_is_told(serve: Callable[..., ScriptedServer]) -> None:
    server = serve(SLOW_DOWN)
    store = S3Store("bucket", "", server.settings, QUICK)
    with pytest.raises(StoreUnavailableError, match="SlowDown: Please reduce your request rate"):
        store.get("a")
    assert len(server.requests) == QUICK.attempts
    with pytest.raises(StoreUnavailableError, match="503"):
        store.exists("a")
    assert len(server.requests) == 2 * QUICK.attempts


@pytest.mark.parametrize("status", [400, 403, 404, 412])
def test_what_the_server_refuses_is_not_repeated(
    serve: Callable[..., ScriptedServer], status: int
) -> None:
    xml = {"Content-Type": "application/xml"}
    server = serve((status, xml, b"<Error><Code>Refused</Code><Message>no</Message></Error>"))
    with pytest.raises(StorageError):
        S3Store("bucket", "", server.settings, QUICK).get("a")
    assert len(server.requests) == 1


def test_nobody_at_the_endpoint_is_an_error_after_bounded_retries(
    closed_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    settings = S3Settings(
        endpoint=f"http://127.0.0.1:{closed_port}", access_key="key", secret_key="secret"
    )
    store = S3Store("bucket", "", settings, QUICK)
    for use in (lambda: store.get("a"), lambda: store.put("a", b""), lambda: list(store.list())):
        caplog.clear()
        with pytest.raises(StoreUnavailableError, match=f"can't reach .*:{closed_port}") as caught:
            use()
        assert "AWS_ENDPOINT_URL" in caught.value.action
        repeats = [record for record in caplog.records if "Retrying" in record.getMessage()]
        assert len(repeats) == QUICK.attempts - 1


def test_the_default_policy_gives_up_within_fifteen_seconds() -> None:
    policy = RetryPolicy()
    # The formula of RetryPolicy.base_seconds, with all of its random part.
    waits_seconds = sum(
        min(policy.max_seconds, policy.base_seconds * (2 ** (repetition - 1) + 1))
        for repetition in range(2, policy.attempts)
    )
    assert policy.attempts * policy.connect_timeout_seconds + waits_seconds < 15


def test_a_body_that_breaks_off_is_resumed(
    serve: Callable[..., ScriptedServer], tmp_path: Path
) -> None:
    # What comes after the last whole mebibyte is asked for again.
    data = os.urandom(3 * MIB)
    server = serve(
        (200, {"ETag": '"v1"', "Content-Length": f"{3 * MIB}"}, data[: MIB + 400]),
        SLOW_DOWN,
        (206, {"ETag": '"v1"', "Content-Length": f"{2 * MIB}"}, data[MIB : 2 * MIB + 700]),
        (206, {"ETag": '"v1"'}, data[2 * MIB :]),
    )
    S3Store("bucket", "", server.settings, QUICK).get_file("a", tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == data
    asked = [(h.get("range"), h.get("if-match")) for _, _, h, _ in server.requests]
    resumed = (f"bytes={MIB}-", '"v1"')
    assert asked == [("bytes=0-", None), resumed, resumed, (f"bytes={2 * MIB}-", '"v1"')]


def test_a_range_that_breaks_off_is_resumed(serve: Callable[..., ScriptedServer]) -> None:
    data = os.urandom(2 * MIB)
    server = serve(
        (206, {"ETag": '"v1"', "Content-Length": f"{2 * MIB}"}, data[: MIB + 1]),
        (206, {"ETag": '"v1"'}, data[MIB:]),
    )
    store = S3Store("bucket", "", server.settings, QUICK)
    assert store.get_range("a", 5, 2 * MIB) == data
    end = 5 + 2 * MIB - 1
    asked = [h["range"] for _, _, h, _ in server.requests]
    assert asked == [f"bytes=5-{end}", f"bytes={5 + MIB}-{end}"]


@pytest.mark.parametrize(
    "answer",
    [
        (412, {"Content-Type": "application/xml"}, b"<Error><Code>Changed</Code></Error>"),
        (200, {"ETag": '"v2"'}, b"all of another version"),
    ],
    ids=["changed", "not a part"],
)
def test_two_versions_are_never_spliced(
    serve: Callable[..., ScriptedServer], tmp_path: Path, answer: Answer
) -> None:
    first = (200, {"ETag": '"v1"', "Content-Length": f"{2 * MIB}"}, bytes(MIB + 1))
    server = serve(first, answer)
    with pytest.raises(StoreUnavailableError, match="failed on s3://bucket/a"):
        S3Store("bucket", "", server.settings, QUICK).get_file("a", tmp_path / "copy")
    assert list(tmp_path.iterdir()) == []


def test_a_version_that_changes_while_it_is_read_is_an_error(real: S3Settings) -> None:
    # SeaweedFS itself must answer If-Match, on which the test above relies.
    store = S3Store("tests", uuid.uuid4().hex, real)
    store.put("a", b"first version")
    client = client_for(real, QUICK)
    etag = client.stat_object("tests", f"{store.prefix}a").etag or ""
    store.put("a", b"second version")
    with pytest.raises(S3Error, match="PreconditionFailed"):
        client.get_object("tests", f"{store.prefix}a", 6, 0, {"If-Match": f'"{etag}"'})


def test_a_body_that_never_comes_is_an_error(serve: Callable[..., ScriptedServer]) -> None:
    server = serve((200, {"ETag": '"v1"', "Content-Length": "1024"}, b""))
    with pytest.raises(StoreUnavailableError, match="failed on s3://bucket/a"):
        S3Store("bucket", "", server.settings, QUICK).get("a")
    assert len(server.requests) == QUICK.attempts


@contextmanager
def _stalling_proxy(target: int, limit_bytes: int) -> Iterator[tuple[int, threading.Event]]:
    """Pass connections on to ``target`` until so many bytes went up; then set the event."""
    stalled = threading.Event()
    lock, passed = threading.Lock(), 0
    sockets: list[socket.socket] = []

    def up(source: socket.socket, sink: socket.socket) -> None:
        nonlocal passed
        with suppress(OSError):
            while data := source.recv(1 << 16):
                with lock:
                    passed += len(data)
                    if passed > limit_bytes:
                        stalled.set()
                        return
                sink.sendall(data)

    def down(source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(1 << 16):
                sink.sendall(data)

    def accept() -> None:
        with suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", target))
                sockets.extend([near, far])
                for work, ends in ((up, (near, far)), (down, (far, near))):
                    threading.Thread(target=work, args=ends, daemon=True).start()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield listener.getsockname()[1], stalled
        listener.shutdown(socket.SHUT_RDWR)
        for end in sockets:
            with suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


@pytest.mark.parametrize(
    ("num_bytes", "limit_bytes"),
    [(8_000_000, 4_000_000), (50_000_000, 40_000_000)],
    ids=["one request", "parts, some of them in"],
)
def test_a_killed_upload_leaves_the_object_absent(
    real: S3Settings, tmp_path: Path, num_bytes: int, limit_bytes: int
) -> None:
    key = uuid.uuid4().hex
    (tmp_path / "file").write_bytes(os.urandom(num_bytes))
    port = urlsplit(real.endpoint).port
    assert port
    upload = (
        "import sys; from pathlib import Path; from clipmill.storage import open_store; "
        "open_store('s3://tests').put_file(sys.argv[1], Path(sys.argv[2]))"
    )
    with _stalling_proxy(port, limit_bytes) as (proxy_port, stalled):
        environment = {**os.environ, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{proxy_port}"}
        command = [sys.executable, "-c", upload, key, str(tmp_path / "file")]
        with subprocess.Popen(command, env=environment) as uploader:
            assert stalled.wait(60)
            uploader.send_signal(signal.SIGKILL)
        assert uploader.returncode == -signal.SIGKILL
    store = S3Store("tests", "", real)
    assert not store.exists(key)
    assert key not in list(store.list())
    store.put_file(key, tmp_path / "file")
    assert store.size(key) == num_bytes


def test_a_missing_bucket_is_warned_of_before_the_first_write(
    s3: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    require_writable("s3://a-mistyped-bucket/x")
    assert "the bucket a-mistyped-bucket doesn't exist" in caplog.text
    caplog.clear()
    write_bytes("s3://a-mistyped-bucket/y", b"1")
    require_writable("s3://a-mistyped-bucket/x")
    assert not caplog.text


def test_a_wrong_clock_is_told_from_a_wrong_key(
    serve: Callable[..., ScriptedServer],
) -> None:
    body = b"<Error><Code>RequestTimeTooSkewed</Code><Message>too large</Message></Error>"
    server = serve((403, {"Content-Type": "application/xml"}, body))
    with pytest.raises(StorageError, match="set this machine's clock"):
        S3Store("bucket", "", server.settings, QUICK).put("a", b"1")

"""HTTP as clients of all kinds speak it: upgrades, headers, encodings, methods, forms, prefixes."""

import gzip
import json
import re
import socket
import time
import zlib
from collections.abc import Iterator
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPResponse
from pathlib import Path

import numpy as np
import pytest

from clipmill.serve.config import ServingConfig
from clipmill.serve.launch import ServerProcess
from clipmill.tasks.visualization import encode_png

INFER = "/v2/models/seg/infer"


@pytest.fixture(scope="module")
def strict_server(
    models: dict[str, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[ServerProcess]:
    """A server of small limits, behind a path prefix, that pages of an origin may query."""
    config = ServingConfig(
        max_header_bytes=4096,
        read_timeout_seconds=1,
        write_timeout_seconds=1,
        max_response_bytes=20_000_000,
        root_path="/ai/models",
        cors_origins=("https://example.org",),
    )
    log_path = tmp_path_factory.mktemp("strict") / "server.log"
    with ServerProcess({"seg": models["seg"]}, log_path=log_path, config=config) as process:
        yield process


@pytest.fixture(scope="module")
def png(picture: np.ndarray) -> bytes:
    return encode_png(picture)


def exchange(
    server: ServerProcess,
    method: str,
    path: str,
    body: bytes | None = None,
    headers: dict[str, str] | None = None,
) -> tuple[HTTPResponse, bytes]:
    with closing(HTTPConnection(server.host, server.http_port, timeout=30)) as connection:
        connection.request(method, path, body, headers or {})
        response = connection.getresponse()
        return response, response.read()


def send_raw(server: ServerProcess, *parts: bytes) -> bytes:
    """All that the server sends until it closes."""
    with socket.create_connection((server.host, server.http_port), timeout=30) as connection:
        for part in parts:
            connection.sendall(part)
        return b"".join(iter(lambda: connection.recv(65536), b""))


@pytest.mark.parametrize("protocol", ["h2c", "websocket"])
@pytest.mark.parametrize("is_split", [False, True])
def test_a_wish_to_upgrade_is_ignored(
    server: ServerProcess, png: bytes, protocol: str, is_split: bool
) -> None:
    head = (
        f"POST {INFER}?output=png HTTP/1.1\r\nHost: x\r\nContent-Type: image/png\r\n"
        f"Connection: Upgrade, HTTP2-Settings, close\r\nUpgrade: {protocol}\r\n"
        f"HTTP2-Settings: AAEAAEAA\r\nContent-Length: {len(png)}\r\n\r\n"
    ).encode()
    parts = (head[:70], head[70:], png) if is_split else (head + png,)
    answer = send_raw(server, *parts)
    assert answer.startswith(b"HTTP/1.1 200")
    expected = exchange(server, "POST", f"{INFER}?output=png", png, {"Content-Type": "image/png"})
    assert answer.partition(b"\r\n\r\n")[2] == expected[1]


def test_a_connection_serves_further_requests_after_an_upgrade_it_ignored(
    server: ServerProcess,
) -> None:
    first = (
        b"GET /v2/health/live HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n"
    )
    second = b"GET /v2/health/ready HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
    answer = send_raw(server, first + second)
    assert b'{"live":true}' in answer
    assert b'{"ready":true}' in answer


@pytest.mark.parametrize(
    "headers",
    [
        b"X: " + b"a" * 5000 + b"\r\n",
        b"".join(b"X-%d: aaaaaaaaaaaaaaaa\r\n" % n for n in range(300)),
    ],
)
def test_large_headers_are_refused(strict_server: ServerProcess, headers: bytes) -> None:
    answer = send_raw(strict_server, b"GET / HTTP/1.1\r\nHost: x\r\n" + headers + b"\r\n")
    assert answer.startswith(b"HTTP/1.1 431")
    assert b"4096 bytes (max_header_bytes)" in answer


def test_a_header_without_an_end_is_refused_and_takes_no_memory(
    strict_server: ServerProcess,
) -> None:
    before = resident_bytes(strict_server)
    answer = send_raw(strict_server, b"GET / HTTP/1.1\r\nX: ", *[b"a" * 2**20] * 50)
    assert answer.startswith(b"HTTP/1.1 431")
    assert resident_bytes(strict_server) < before + 10 * 2**20


def test_headers_that_come_too_slowly_are_refused(strict_server: ServerProcess) -> None:
    assert send_raw(strict_server, b"GET / HTTP/1.1\r\nHo").startswith(b"HTTP/1.1 408")
    assert send_raw(strict_server) == b""  # it asked for nothing


def test_a_client_that_reads_nothing_is_cut_off(strict_server: ServerProcess) -> None:
    body = encode_png(np.zeros((4000, 4000, 3), np.uint8))
    head = f"POST {INFER}?binary_data_output=true HTTP/1.1\r\nHost: x\r\n"
    with socket.socket() as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        connection.connect((strict_server.host, strict_server.http_port))
        connection.settimeout(60)
        connection.sendall(head.encode() + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        assert connection.recv(12) == b"HTTP/1.1 200"
        time.sleep(3)
        received = 0
        with suppress(ConnectionResetError):
            while part := connection.recv(2**20):
                received += len(part)
    assert received < 16_000_000  # the answer's size


def test_a_response_beyond_the_limit_is_refused_by_name(strict_server: ServerProcess) -> None:
    image = encode_png(np.zeros((3200, 3200, 3), np.uint8))
    response, data = exchange(strict_server, "POST", INFER, image)
    assert response.status == 400
    error = json.loads(data)["error"]
    assert all(name in error for name in ("max_response_bytes", "output=rle", "threshold", "top_k"))
    response, data = exchange(strict_server, "POST", f"{INFER}?output=png", image)
    assert response.status == 200
    assert response.headers["Clipmill-Network-Size"] == "2048x2048"


@pytest.mark.parametrize(
    ("encoding", "compress"),
    [
        ("gzip", gzip.compress),
        ("GZIP", gzip.compress),
        ("deflate", zlib.compress),
        ("deflate", lambda data: zlib.compress(data, wbits=-15)),
        ("identity", bytes),
    ],
)
def test_a_compressed_body_is_read(
    server: ServerProcess, png: bytes, encoding: str, compress
) -> None:
    headers = {"Content-Type": "image/png", "Content-Encoding": encoding}
    response, data = exchange(server, "POST", f"{INFER}?output=png", compress(png), headers)
    assert response.status == 200
    assert data == exchange(server, "POST", f"{INFER}?output=png", png)[1]


@pytest.mark.parametrize(
    ("encoding", "body", "status"),
    [
        ("br", b"x", 415),
        ("gzip, gzip", gzip.compress(b"x", mtime=0), 415),
        ("gzip", b"no gzip", 400),
        ("gzip", gzip.compress(b"{}" * 100, mtime=0)[:-9], 400),
        ("gzip", gzip.compress(b"{}", mtime=0) + b"x", 400),
        ("deflate", b"", 400),
        ("gzip", gzip.compress(bytes(100_000_000), mtime=0), 413),
    ],
    ids=["unknown", "twice", "no gzip", "cut off", "trailing", "empty", "bomb"],
)
def test_other_encodings_are_refused(
    server: ServerProcess, encoding: str, body: bytes, status: int
) -> None:
    response, data = exchange(server, "POST", INFER, body, {"Content-Encoding": encoding})
    assert response.status == status
    assert json.loads(data)["error"]
    if status == 415:
        assert response.headers["Accept-Encoding"] == "gzip, deflate"


@pytest.mark.parametrize(
    "content_type", [None, "Image/PNG", "application/octet-stream", "application/json", "image/x"]
)
def test_an_image_is_known_by_its_first_bytes(
    server: ServerProcess, png: bytes, content_type: str | None
) -> None:
    headers = {} if content_type is None else {"Content-Type": content_type}
    response, data = exchange(server, "POST", f"{INFER}?output=png", png, headers)
    assert (response.status, response.headers["Content-Type"]) == (200, "image/png")
    expected = exchange(server, "POST", f"{INFER}?output=png", png, {"Content-Type": "image/png"})
    assert data == expected[1]


def form(*fields: tuple[str, bytes]) -> tuple[bytes, dict[str, str]]:
    parts = [
        f"--b\r\nContent-Disposition: form-data; {head}\r\n\r\n".encode() + data + b"\r\n"
        for head, data in fields
    ]
    headers = {"Content-Type": 'Multipart/Form-Data; boundary="b"'}
    return b"".join([*parts, b"--b--\r\n"]), headers


def test_a_form_with_a_file_is_read_with_its_fields(server: ServerProcess, png: bytes) -> None:
    body, headers = form(('name="output"', b"png"), ('name="image"; filename="a b.png"', png))
    response, data = exchange(server, "POST", INFER, body, headers)
    assert (response.status, response.headers["Content-Type"]) == (200, "image/png")
    assert data == exchange(server, "POST", f"{INFER}?output=png", png)[1]


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (form(('name="output"', b"png"))[0], "the form has no file"),
        (form(('name="image"; filename="a"', b"x"))[0], "of an unknown format"),
        (b"--b\r\nContent", "isn't a whole multipart/form-data"),
        (b"", "isn't a whole multipart/form-data"),
    ],
)
def test_other_forms_are_refused(server: ServerProcess, body: bytes, message: str) -> None:
    response, data = exchange(server, "POST", INFER, body, form()[1])
    assert response.status == 400
    assert message in json.loads(data)["error"]


@pytest.mark.parametrize("path", ["/", "/v2/health/live", "/v2/models", "/metrics"])
def test_head_is_get_without_a_body(server: ServerProcess, path: str) -> None:
    response, data = exchange(server, "HEAD", path)
    assert (response.status, data) == (200, b"")
    expected = exchange(server, "GET", path)[0].headers["Content-Type"]
    assert response.headers["Content-Type"] == expected


@pytest.mark.parametrize(
    ("path", "allow"),
    [(INFER, "OPTIONS, POST"), ("/v2/models", "GET, HEAD, OPTIONS"), ("/", "GET, HEAD, OPTIONS")],
)
def test_options_names_a_routes_methods(server: ServerProcess, path: str, allow: str) -> None:
    response, _ = exchange(server, "OPTIONS", path)
    assert (response.status, response.headers["Allow"]) == (204, allow)
    assert exchange(server, "OPTIONS", "/nope")[0].status == 404


def test_pages_of_other_origins_are_let_in_only_where_configured(
    server: ServerProcess, strict_server: ServerProcess
) -> None:
    headers = {
        "Origin": "https://example.org",
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "content-type",
    }
    preflight, _ = exchange(strict_server, "OPTIONS", INFER, headers=headers)
    assert preflight.status == 200
    assert preflight.headers["Access-Control-Allow-Origin"] == "https://example.org"
    assert preflight.headers["Access-Control-Allow-Headers"] == "content-type"
    answer, _ = exchange(strict_server, "POST", INFER, b"{}", {"Origin": "https://example.org"})
    assert answer.headers["Access-Control-Allow-Origin"] == "https://example.org"
    assert "Retry-After" in answer.headers["Access-Control-Expose-Headers"]
    other, _ = exchange(strict_server, "GET", "/v2", headers={"Origin": "https://other.org"})
    assert "Access-Control-Allow-Origin" not in other.headers
    closed, _ = exchange(server, "GET", "/v2", headers={"Origin": "https://example.org"})
    assert "Access-Control-Allow-Origin" not in closed.headers


@pytest.mark.parametrize("prefix", ["", "/ai/models"])
def test_it_answers_behind_a_prefix_that_a_proxy_strips_or_not(
    strict_server: ServerProcess, png: bytes, prefix: str
) -> None:
    assert exchange(strict_server, "GET", f"{prefix}/v2/models")[1] == b'{"models":["seg"]}'
    assert exchange(strict_server, "GET", f"{prefix}/")[0].headers["Content-Type"] == (
        "text/html; charset=utf-8"
    )
    assert exchange(strict_server, "POST", prefix + INFER, png)[0].status == 200
    assert exchange(strict_server, "GET", f"{prefix}/metrics")[0].status == 200
    document = json.loads(exchange(strict_server, "GET", f"{prefix}/openapi.json")[1])
    assert document["servers"] == [{"url": "/ai/models"}]


def test_the_prefix_without_a_slash_leads_to_the_page(strict_server: ServerProcess) -> None:
    response, _ = exchange(strict_server, "GET", "/ai/models")
    assert (response.status, response.headers["Location"]) == (307, "/ai/models/")
    assert exchange(strict_server, "GET", "/ai/modelsx")[0].status == 404


def test_it_listens_on_ipv6(models: dict[str, str], log_path: Path, png: bytes) -> None:
    with ServerProcess({"seg": models["seg"]}, log_path=log_path, host="::1") as server:
        assert server.url == f"http://[::1]:{server.http_port}"
        assert exchange(server, "POST", INFER, png)[0].status == 200


def test_unknown_routes_and_methods_get_the_same_errors_as_all_others(
    server: ServerProcess,
) -> None:
    for method, path, status in (("GET", "/nope", 404), ("GET", INFER, 405)):
        response, data = exchange(server, method, path)
        assert response.status == status
        assert set(json.loads(data)) == {"error"}


def test_mistakes_of_clients_arent_logged(server: ServerProcess, png: bytes) -> None:
    before = server.log_path.read_bytes()
    for path in ("/v1/models/nope", "/v2/models/nope/ready", "/v2/nope"):
        assert exchange(server, "GET", path)[0].status == 404
    assert exchange(server, "POST", "/v2/repository/models/seg/load", b"{}")[0].status == 501
    assert exchange(server, "POST", INFER, b"\xff\xd8\xff no image")[0].status == 400
    assert send_raw(server, b"\x16\x03\x01\r\n\r\n").startswith(b"HTTP/1.1 400")
    assert send_raw(server, b"CONNECT a:1 HTTP/1.1\r\nHost: a\r\n\r\n").startswith(b"HTTP/1.1 405")
    assert server.log_path.read_bytes() == before


def test_the_openapi_document_names_each_path_once_with_its_errors(server: ServerProcess) -> None:
    document = json.loads(exchange(server, "GET", "/openapi.json")[1])
    templates = [re.sub(r"{[^}]*}", "{}", path) for path in document["paths"]]
    assert len(templates) == len(set(templates))
    operations = [
        (path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    ids = [operation["operationId"] for _, _, operation in operations]
    assert len(ids) == len(set(ids))
    for path, method, operation in operations:
        assert "422" not in operation["responses"]
        assert ("404" in operation["responses"]) == ("{" in path)
        assert operation["responses"]["200"]["content"], path
        if method == "post":
            assert {"400", "413", "415", "503"} <= set(operation["responses"])
    assert "{name}" in next(iter(document["paths"]))
    text = json.dumps(document)
    used = set(re.findall(r"#/components/schemas/(\w+)", text))
    assert used == set(document["components"]["schemas"])


def resident_bytes(server: ServerProcess) -> int:
    pages = int(Path(f"/proc/{server.pid}/statm").read_text().split()[1])
    return pages * 4096

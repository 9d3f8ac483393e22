"""Tables of URLs: every row is a sample or is counted, and nothing is fetched that mustn't be."""

import csv
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipmill.data.dataset import RETRY_LIST, Dataset
from clipmill.data.shards.plan import ShardConfig, plan_shards
from clipmill.data.shards.read import read_records
from clipmill.data.shards.write import write_dataset, write_shards
from clipmill.data.sources import open_source
from clipmill.data.sources.fetch import Fetcher
from clipmill.data.sources.fetch_config import FetchConfig
from clipmill.data.sources.network import is_public
from clipmill.data.sources.robots import RobotsRules, opt_out
from clipmill.data.verify import verify
from clipmill.errors import BadSampleError, ConfigError, SourceError
from helpers.sources import jpeg, read_all
from helpers.web import Web, serve

ALLOW = "allow_private=true"


@pytest.fixture
def web() -> Iterator[Web]:
    with serve() as server:
        yield server


def fetcher(**settings: Any) -> Fetcher:
    return Fetcher(FetchConfig(**{"allow_private": True, "attempts": 1, **settings}))


def reason(url: str, **settings: Any) -> str:
    with pytest.raises(BadSampleError) as caught:
        fetcher(**settings).read(url)
    return caught.value.reason


def image(body: bytes = jpeg(0), **headers: str) -> tuple[int, dict[str, str], bytes]:
    return 200, {name.replace("_", "-"): value for name, value in headers.items()}, body


def write_table(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows as the format of the path's suffix has them."""
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif path.suffix == ".jsonl":
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    else:
        with path.open("w", newline="") as file:
            dialect = "excel-tab" if path.suffix == ".tsv" else "excel"
            writer = csv.DictWriter(file, list(rows[0]), dialect=dialect)
            writer.writeheader()
            writer.writerows(rows)
    return path


def rows_of(web: Web, count: int) -> list[dict[str, Any]]:
    """Rows of images that the server has."""
    for i in range(count):
        web.answers[f"/{i}.jpg"] = image(jpeg(i, (48, 32)))
    return [
        {"url": f"{web.root}/{i}.jpg", "caption": f"picture {i}", "key": f"{i:05d}", "score": i / 2}
        for i in range(count)
    ]


def quarantine(dataset: Dataset) -> Counter[str]:
    return Counter(dataset.quarantine)


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_every_row_is_a_sample_or_counted_and_the_retry_list_has_the_others(
    tmp_path: Path, web: Web, suffix: str
) -> None:
    rows = rows_of(web, 12)
    web.answers["/3.jpg"] = (503, {}, b"")
    web.answers["/5.jpg"] = (404, {}, b"")
    web.answers["/7.jpg"] = image(b"<html>")
    web.answers["/9.jpg"] = image(X_Robots_Tag="noai")
    table = write_table(tmp_path / f"t{suffix}", rows)
    spec = f"urls:{table}?{ALLOW}&attempts=1"
    config = ShardConfig(samples_per_shard=5, resize_shorter_side=16, jpeg_quality=90)
    dataset = Dataset.open(write_dataset(config, spec, str(tmp_path / "out")))
    assert dataset.num_samples == 8
    assert quarantine(dataset) == {"http_error": 2, "unreadable_image": 1, "opted_out": 1}
    records = [r for index in range(3) for r in read_records(dataset, index, tmp_path / "cache")]
    assert [(r.width, r.height) for r in records] == [(24, 16)] * 8
    assert dict(records[0].metadata) == {
        "key": "00000",
        "original_height": 32,
        "original_width": 48,
        "url": f"{web.root}/0.jpg",
    }
    listed = json.loads((Path(dataset.uri) / "dataset.json").read_text())["quarantined"]
    assert all(set(bad) == {"origin", "reason", "detail"} for bad in listed)
    assert verify(dataset.uri).faults == ()

    retry = Path(dataset.uri) / RETRY_LIST
    text = [row for i, row in enumerate(rows) if i in (3, 5)]
    if suffix in (".csv", ".tsv"):
        text = [{name: str(value) for name, value in row.items()} for row in text]
    assert [json.loads(line) for line in retry.read_text().splitlines()] == text

    web.requests.clear()
    for i in (3, 5):
        web.answers[f"/{i}.jpg"] = image(jpeg(i, (48, 32)))
    again = Dataset.open(write_dataset(config, f"urls:{retry}?{ALLOW}", str(tmp_path / "out")))
    assert web.counts == {"/robots.txt": 1, "/3.jpg": 1, "/5.jpg": 1}
    assert again.num_samples == 2
    assert not (Path(again.uri) / RETRY_LIST).exists()
    assert not set(again.uids(0)) & {uid for i in range(3) for uid in dataset.uids(i)}


def test_columns_by_option_and_lists_of_captions(tmp_path: Path, web: Web) -> None:
    web.answers["/a"] = image()
    row = {"address": f"{web.root}/a", "texts": ["one", "two"], "n": 4}
    table = write_table(tmp_path / "t.parquet", [row])
    source = open_source(f"urls:{table}?url=address&caption=texts&id=n&{ALLOW}")
    (entry,) = read_all(source)
    pair = entry.load()
    assert (entry.origin, pair.image_bytes, pair.caption) == ("4", jpeg(0), b"one")
    assert pair.rows == {
        "captions/source": {"captions": [b"one".decode(), "two"], "fallback": False}
    }
    assert pair.metadata == {"url": f"{web.root}/a"}
    reopened = open_source(source.uri)
    assert (reopened.uri, reopened.digest("content")) == (source.uri, source.digest("content"))


def test_bad_options(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv", [{"url": "http://a/", "caption": "x"}])
    with pytest.raises(SourceError, match="no column for the image's URL") as caught:
        open_source(f"urls:{write_table(tmp_path / 'u.csv', [{'path': 'a', 'caption': 'x'}])}")
    assert "?url=COLUMN" in str(caught.value)
    with pytest.raises(ConfigError, match="concurrency was 0"):
        open_source(f"urls:{table}?concurrency=0")
    write_table(tmp_path / "t.jsonl", [{"url": "http://a/", "caption": "x"}])
    with pytest.raises(SourceError, match="several formats"):
        open_source(f"urls:{tmp_path}")


def test_pace_leaves_the_digest_alone_and_manners_do_not(tmp_path: Path) -> None:
    table = write_table(tmp_path / "t.csv", [{"url": "http://a/", "caption": "x"}])

    def digest(options: str) -> str:
        return open_source(f"urls:{table}?{options}").digest("content")

    plain = digest("concurrency=64")
    assert plain == digest("concurrency=2&per_host=1&attempts=9&total_timeout=1")
    assert plain != digest("respect_robots=false")
    assert plain != digest("max_bytes=1000")


@pytest.mark.parametrize(
    "url",
    [
        "file:///etc/passwd",
        "/etc/passwd",
        "ftp://example.org/a.jpg",
        "http://",
        "http:///a.jpg",
        "http://user:secret@example.org/a.jpg",
        "http://user@example.org/a.jpg",
        "javascript:alert(1)",
        "http://exa\x00mple.org/",
        "http://[::1/",
        "data:image/png;base64,AAAA",
        "",
    ],
)
def test_what_is_no_url_of_the_web_is_counted(url: str) -> None:
    assert reason(url) == "invalid_url"


def test_a_row_with_a_local_path_reads_no_file(tmp_path: Path) -> None:
    secret = tmp_path / "0.jpg"
    secret.write_bytes(jpeg(0))
    table = write_table(tmp_path / "t.csv", [{"url": str(secret), "caption": "x"}])
    (entry,) = read_all(open_source(f"urls:{table}"))
    with pytest.raises(BadSampleError, match="invalid_url"):
        entry.load()


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "10.0.0.1", "172.16.3.4", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "0.0.0.0", "224.0.0.1", "239.1.1.1", "240.0.0.1", "255.255.255.255",
        "192.0.2.1", "198.18.0.1", "::", "::1", "::ffff:127.0.0.1", "::ffff:10.0.0.1",
        "::127.0.0.1", "fe80::1", "fe80::1%eth0", "fc00::1", "fd12::1", "fec0::1", "ff02::1",
        "ff0e::1", "2002:7f00:1::", "2002:a00:1::1", "64:ff9b::7f00:1", "64:ff9b::a9fe:a9fe",
        "64:ff9b:1::a00:1", "2001:db8::1", "2001:0:4136:e378:8000:63bf:3fff:fdd2",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


@pytest.mark.parametrize(
    "address", ["8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses(address: str) -> None:
    assert is_public(address)


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "2130706433", "0x7f.1", "127.1", "[::1]"]
)
def test_spellings_of_this_machine_are_refused(web: Web, host: str) -> None:
    port = web.root.rpartition(":")[2]
    assert reason(f"http://{host}:{port}/0.jpg", allow_private=False) == "private_address"
    assert not web.requests


def names(monkeypatch: pytest.MonkeyPatch, table: dict[str, list[str]]) -> list[str]:
    """Resolve names by a table; return the list of those that are resolved."""
    resolved = []
    system = socket.getaddrinfo

    def resolve(host: str, port: Any, *args: Any, **kwargs: Any) -> Any:
        if host not in table:
            return system(host, port, *args, **kwargs)
        resolved.append(host)
        addresses = table[host]
        address = addresses.pop(0) if len(addresses) > 1 else addresses[0]
        return system(address, port, *args, **kwargs)

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    return resolved


def public(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    """Take addresses of this machine for public ones."""
    module = "clipmill.data.sources.network.is_public"
    monkeypatch.setattr(module, lambda address: address in addresses or is_public(address))


def test_a_name_that_changes_its_address_leads_nowhere_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The second answer is what a rebinding name server gives to whoever asks again.
    public(monkeypatch, "127.0.0.2")
    with serve("127.0.0.2") as outside:
        port = outside.root.rpartition(":")[2]
        resolved = names(monkeypatch, {"rebind.test": ["127.0.0.2", "127.0.0.1"]})
        outside.answers["/0.jpg"] = image(Connection="close")
        fetch = fetcher(allow_private=False)
        for _ in range(3):
            assert fetch.read(f"http://rebind.test:{port}/0.jpg") == jpeg(0)
        assert resolved == ["rebind.test"]
        assert {headers["Host"] for _, headers in outside.requests} == {f"rebind.test:{port}"}


def test_a_redirect_to_this_machine_is_refused(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    public(monkeypatch, "127.0.0.2")
    with serve("127.0.0.2") as outside:
        outside.answers["/0.jpg"] = (302, {"Location": f"{web.root}/0.jpg"}, b"")
        outside.answers["/f"] = (302, {"Location": "file:///etc/passwd"}, b"")
        assert reason(f"{outside.root}/0.jpg", allow_private=False) == "private_address"
        assert reason(f"{outside.root}/f", allow_private=False) == "invalid_url"
    assert not web.requests


def test_redirects(web: Web) -> None:
    web.answers["/image.jpg"] = image()
    web.answers["/a"] = (301, {"Location": "/b"}, b"moved")
    web.answers["/b"] = (307, {"Location": "image.jpg", "Set-Cookie": "id=1"}, b"")
    web.answers["/loop"] = (302, {"Location": "/loop"}, b"")
    web.answers["/secret"] = (302, {"Location": web.root.replace("//", "//me:pw@")}, b"")
    assert fetcher().read(f"{web.root}/a") == jpeg(0)
    assert reason(f"{web.root}/a", max_redirects=1) == "too_many_redirects"
    assert reason(f"{web.root}/loop") == "too_many_redirects"
    assert web.counts["/loop"] == 6
    assert reason(f"{web.root}/secret") == "invalid_url"
    for _, headers in web.requests:
        assert not {"Cookie", "Authorization", "Referer"} & headers.keys()


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504])
def test_statuses_that_are_retried(web: Web, status: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipmill.data.sources.fetch._FIRST_BACKOFF_SECONDS", 0.01)
    web.answers["/0.jpg"] = [(status, {}, b""), (status, {}, b""), image()]
    assert fetcher(attempts=3).read(f"{web.root}/0.jpg") == jpeg(0)
    web.answers["/0.jpg"] = (status, {}, b"")
    web.requests.clear()
    assert reason(f"{web.root}/0.jpg", attempts=3) == "http_error"
    assert web.counts["/0.jpg"] == 3


@pytest.mark.parametrize("status", [204, 400, 401, 403, 404, 410, 451])
def test_statuses_that_are_final(web: Web, status: int) -> None:
    web.answers["/0.jpg"] = (status, {}, b"")
    assert reason(f"{web.root}/0.jpg", attempts=3) == "http_error"
    assert web.counts["/0.jpg"] == 1


@pytest.mark.parametrize("is_date", [False, True])
def test_retry_after(web: Web, is_date: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipmill.data.sources.fetch._FIRST_BACKOFF_SECONDS", 0.0)
    date = format_datetime(datetime.now(UTC) + timedelta(seconds=2.5), usegmt=True)
    web.answers["/0.jpg"] = [(429, {"Retry-After": date if is_date else "1"}, b""), image()]
    started = time.monotonic()
    assert fetcher(attempts=2).read(f"{web.root}/0.jpg") == jpeg(0)
    assert time.monotonic() - started >= 1.0


def test_a_longer_retry_after_than_the_cap_ends_the_row(web: Web) -> None:
    web.answers["/0.jpg"] = (503, {"Retry-After": "86400"}, b"")
    started = time.monotonic()
    assert reason(f"{web.root}/0.jpg", attempts=5, max_wait=0.5) == "http_error"
    assert web.counts["/0.jpg"] == 1
    assert time.monotonic() - started < 5


def test_connections_that_fail(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipmill.data.sources.fetch._FIRST_BACKOFF_SECONDS", 0.01)
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    assert reason(f"http://127.0.0.1:{port}/0.jpg") == "unreachable"
    assert reason("http://no-such-host.invalid/0.jpg") == "unreachable"
    web.answers["/cut"] = image(jpeg(0)[:100], Content_Length=str(len(jpeg(0))))
    web.answers["/0.jpg"] = image()

    def close(handler: Any) -> None:
        handler.close_connection = True
        handler.connection.shutdown(socket.SHUT_RDWR)

    web.answers["/closed"] = close
    assert reason(f"{web.root}/closed", attempts=2) == "unreachable"
    assert web.counts["/closed"] == 2

    def cut(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", "1000")
        handler.end_headers()
        handler.wfile.write(b"x" * 100)
        handler.close_connection = True

    web.answers["/cut"] = cut
    assert reason(f"{web.root}/cut") == "unreachable"


def drip(handler: Any, *, of_headers: bool) -> None:
    if not of_headers:
        handler.send_response(200)
        handler.end_headers()
    try:
        for _ in range(100):
            handler.wfile.write(b"x")
            time.sleep(0.05)
    except OSError:
        pass
    handler.close_connection = True


@pytest.mark.parametrize("of_headers", [False, True])
def test_a_server_that_drips_is_bounded(web: Web, of_headers: bool) -> None:
    web.answers["/0.jpg"] = lambda handler: drip(handler, of_headers=of_headers)
    started = time.monotonic()
    settings = {"read_timeout": 2.0, "total_timeout": 0.5, "respect_robots": False}
    assert reason(f"{web.root}/0.jpg", **settings) == "timed_out"
    assert time.monotonic() - started < 2


def test_a_server_that_hangs_is_bounded(web: Web) -> None:
    web.answers["/0.jpg"] = lambda handler: time.sleep(3)
    assert reason(f"{web.root}/0.jpg", read_timeout=0.2) == "timed_out"


def test_long_bodies_are_not_read(web: Web) -> None:
    def endless(handler: Any) -> None:
        handler.send_response(200)
        handler.send_header("Connection", "close")
        handler.end_headers()
        try:
            while True:
                handler.wfile.write(bytes(1 << 16))
        except OSError:
            handler.close_connection = True

    web.answers["/endless"] = endless
    web.answers["/said"] = image(Content_Length=str(1 << 40))
    assert reason(f"{web.root}/endless", max_bytes=1_000_000) == "body_too_large"
    assert reason(f"{web.root}/said") == "body_too_large"
    web.answers["/gzip"] = image(Content_Encoding="gzip")
    assert reason(f"{web.root}/gzip") == "unreadable_image"


def test_robots_txt_is_asked_once_and_kept(web: Web) -> None:
    text = b"User-agent: *\nDisallow: /private/\nAllow: /private/open.jpg\n"
    web.answers["/robots.txt"] = (200, {}, text)
    for path in ("/0.jpg", "/private/0.jpg", "/private/open.jpg"):
        web.answers[path] = image()
    web.answers["/to"] = (302, {"Location": "/private/0.jpg"}, b"")
    fetch = fetcher()
    assert fetch.read(f"{web.root}/0.jpg") == fetch.read(f"{web.root}/private/open.jpg")
    for path in ("/private/0.jpg", "/to"):
        with pytest.raises(BadSampleError, match="disallowed_by_robots"):
            fetch.read(web.root + path)
    assert web.counts["/robots.txt"] == 1
    assert web.counts["/private/0.jpg"] == 0
    assert fetcher(respect_robots=False).read(f"{web.root}/private/0.jpg") == jpeg(0)


def test_while_robots_txt_cannot_be_had_nothing_is_fetched(web: Web) -> None:
    web.answers["/robots.txt"] = (500, {}, b"")
    web.answers["/0.jpg"] = image()
    fetch = fetcher()
    for _ in range(3):
        with pytest.raises(BadSampleError, match=r"http_error: robots\.txt: status 500"):
            fetch.read(f"{web.root}/0.jpg")
    assert web.counts == {"/robots.txt": 1}


ROBOTS = """
# comment
User-agent: other
Disallow: /

User-Agent: CLIPMILL/2.0
User-agent: third
Disallow: /a
Allow: /a/b
Disallow: /*.png$
Disallow: /q?id=*&x
Disallow: /%7Euser/
Disallow: /ü

User-agent: *
Disallow: /general
"""


@pytest.mark.parametrize(
    ("token", "target", "is_allowed"),
    [
        ("clipmill", "/", True),
        ("clipmill", "/a", False),
        ("clipmill", "/abc", False),
        ("clipmill", "/a/b/c", True),
        ("clipmill", "/x/y.png", False),
        ("clipmill", "/x/y.png?z", True),
        ("clipmill", "/q?id=5&x=1", False),
        ("clipmill", "/~user/0.jpg", False),
        ("clipmill", "/%C3%BC.jpg", False),
        ("clipmill", "/general", True),
        ("unknown", "/general/0.jpg", False),
        ("unknown", "/a", True),
        ("other", "/x", False),
        ("third", "/a", False),
    ],
)
def test_robots_rules(token: str, target: str, is_allowed: bool) -> None:
    assert RobotsRules(ROBOTS, token).allows(target) is is_allowed


def test_a_robots_txt_of_wildcards_takes_no_time() -> None:
    rules = RobotsRules("User-agent: *\nDisallow: /" + "*" * 5000 + "$\n", "clipmill")
    started = time.monotonic()
    assert not rules.allows("/" + "a" * 5000)
    rules = RobotsRules("User-agent: *\nDisallow: /" + "*a" * 30 + "b$\n", "clipmill")
    assert rules.allows("/" + "a" * 2000)
    assert time.monotonic() - started < 1


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (["noai"], "noai"),
        (["all, NoImageAI"], "noimageai"),
        (["noindex, nofollow"], "noindex"),
        (["nofollow", "noimageindex"], "noimageindex"),
        (["none"], "none"),
        (["clipmill: noai"], "noai"),
        (["googlebot: noindex"], ""),
        (["googlebot: noindex, noai"], ""),
        (["googlebot: noindex, clipmill: noai"], "noai"),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST, noai"], "noai"),
        (["max-snippet: 5, noindex"], "noindex"),
        (["nofollow, noarchive", "all"], ""),
        ([], ""),
    ],
)
def test_opt_outs(values: list[str], expected: str) -> None:
    assert opt_out(values, "clipmill") == expected


def test_an_opt_out_can_be_ignored_by_an_explicit_option(web: Web) -> None:
    web.answers["/0.jpg"] = image(X_Robots_Tag="noimageai")
    assert reason(f"{web.root}/0.jpg") == "opted_out"
    assert fetcher(respect_opt_out=False).read(f"{web.root}/0.jpg") == jpeg(0)
    web.answers["/0.jpg"] = image(X_Robots_Tag="mybot: noai")
    assert fetcher().read(f"{web.root}/0.jpg") == jpeg(0)
    assert reason(f"{web.root}/0.jpg", user_agent="MyBot/1.0") == "opted_out"
    assert web.requests[-1][1]["User-Agent"] == "MyBot/1.0"


@pytest.mark.parametrize(("total", "per_host", "expected"), [(8, 3, 3), (2, 8, 2)])
def test_requests_at_once(
    tmp_path: Path, web: Web, total: int, per_host: int, expected: int
) -> None:
    web.delay = 0.05
    table = write_table(tmp_path / "t.csv", rows_of(web, 24))
    spec = f"urls:{table}?{ALLOW}&concurrency={total}&per_host={per_host}"
    for entry in read_all(open_source(spec)):
        entry.load()
    assert web.most_at_once == expected


def test_redirects_to_one_host_keep_its_limit(tmp_path: Path, web: Web) -> None:
    rows = rows_of(web, 12)
    web.delay = 0.05
    with serve("127.0.0.2") as other:
        for i in range(12):
            other.answers[f"/{i}.jpg"] = (302, {"Location": f"{web.root}/{i}.jpg"}, b"")
        rows = [{**row, "url": row["url"].replace(web.root, other.root)} for row in rows]
        table = write_table(tmp_path / "t.csv", [*rows_of(web, 12), *rows])
        entries = read_all(open_source(f"urls:{table}?{ALLOW}&per_host=2"))
        assert [e.load().image_bytes for e in entries] == 2 * [jpeg(i, (48, 32)) for i in range(12)]
    assert web.most_at_once == 2


def test_a_slow_host_holds_up_no_other(tmp_path: Path, web: Web) -> None:
    with serve("127.0.0.2") as slow:
        slow.delay = 0.4
        rows = rows_of(web, 20)
        for i in range(4):
            slow.answers[f"/{i}.jpg"] = image()
            rows.insert(0, {**rows[0], "url": f"{slow.root}/{i}.jpg"})
        table = write_table(tmp_path / "t.csv", rows)
        spec = f"urls:{table}?{ALLOW}&concurrency=4&per_host=1&respect_robots=false"
        entries = read_all(open_source(spec))
        time.sleep(1.0)
        assert len(web.requests) == 20
        assert len(slow.requests) < 4
        assert len([entry.load() for entry in entries]) == 24


def test_results_that_wait_are_bounded(
    tmp_path: Path, web: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = len(jpeg(0, (48, 32)))
    monkeypatch.setattr("clipmill.data.sources.urls._MAX_BUFFERED_BYTES", 5 * size)
    rows = rows_of(web, 40)
    table = write_table(tmp_path / "t.csv", rows)
    spec = f"urls:{table}?{ALLOW}&concurrency=2&respect_robots=false"
    entries = read_all(open_source(spec))
    time.sleep(0.5)
    assert 4 <= len(web.requests) <= 9
    # Whatever is waited for is fetched, in any order of reading.
    for entry in reversed(entries):
        assert entry.load().image_bytes
    assert web.counts == {f"/{i}.jpg": 1 for i in range(40)}


def test_equal_rows_and_rows_of_one_url(tmp_path: Path, web: Web) -> None:
    (row,) = rows_of(web, 1)
    table = write_table(tmp_path / "t.csv", [row, row, {**row, "caption": "another"}])
    uri = write_dataset(ShardConfig(samples_per_shard=2), f"urls:{table}?{ALLOW}", str(tmp_path))
    dataset = Dataset.open(uri)
    assert dataset.num_samples == 2
    assert dataset.quarantine == {"duplicate_id": 1}


def test_when_all_fails_the_error_names_the_retry_list(tmp_path: Path, web: Web) -> None:
    table = write_table(tmp_path / "t.csv", [{"url": f"{web.root}/none.jpg", "caption": "x"}])
    with pytest.raises(SourceError, match="1 http_error") as caught:
        write_dataset(ShardConfig(), f"urls:{table}?{ALLOW}", str(tmp_path / "out"))
    (retry,) = (tmp_path / "out").rglob(RETRY_LIST)
    assert f"urls:{retry}?allow_private=true" in str(caught.value)


def test_workers_fetch_their_own_parts_alone(tmp_path: Path, web: Web) -> None:
    table = write_table(tmp_path / "t.parquet", rows_of(web, 20))
    spec = f"urls:{table}?{ALLOW}&respect_robots=false"
    plan = plan_shards(ShardConfig(samples_per_shard=5), spec, str(tmp_path / "out"))
    assert not web.requests
    write_shards(plan, 1, 2)
    assert web.counts == {f"/{i}.jpg": 1 for i in range(5, 10)}
    write_shards(plan, 0, 4)
    assert web.counts == {f"/{i}.jpg": 1 for i in range(20)}


def test_a_table_in_s3(tmp_path: Path, web: Web, s3: dict[str, str]) -> None:
    from clipmill.storage import write_bytes

    table = write_table(tmp_path / "t.parquet", rows_of(web, 3))
    write_bytes("s3://tests/tables/t.parquet", table.read_bytes())
    source = open_source(f"urls:s3://tests/tables/t.parquet?{ALLOW}")
    assert [e.load().caption for e in read_all(source)] == [
        b"picture 0",
        b"picture 1",
        b"picture 2",
    ]
    assert open_source(source.uri).digest("content") == source.digest("content")


def test_a_killed_run_resumes_without_fetching_finished_parts_again(
    tmp_path: Path, web: Web
) -> None:
    rows = rows_of(web, 60)
    web.answers["/17.jpg"] = (404, {}, b"")
    table = write_table(tmp_path / "t.csv", rows)
    store = tmp_path / "out"
    command = [
        sys.executable, "-m", "clipmill", "data", "shard",
        f"urls:{table}?{ALLOW}&concurrency=2&respect_robots=false&attempts=1",
        "--store", str(store), "--set", "samples_per_shard=10",
    ]  # fmt: skip
    web.delay = 0.05
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    while len(list(store.rglob("shards/*.json"))) < 2:
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    web.delay = 0.0
    finished = {path.stem for path in store.rglob("shards/*.json")}
    web.requests.clear()
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    dataset = Dataset.open(result.stdout.strip())
    again = {int(path[1:].removesuffix(".jpg")) // 10 for path in web.counts}
    assert again == {i for i in range(6) if f"{i:05d}" not in finished}
    assert set(web.counts.values()) == {1}
    assert dataset.num_samples == 59
    assert dataset.quarantine == {"http_error": 1}
    assert len({uid for i in range(6) for uid in dataset.uids(i)}) == 59
    assert re.search(r"60/60 samples, \d+/s", result.stderr)


def test_interrupted_by_a_person_it_ends_at_once(tmp_path: Path, web: Web) -> None:
    web.answers["/0.jpg"] = lambda handler: time.sleep(20)
    table = write_table(tmp_path / "t.csv", [{"url": f"{web.root}/0.jpg", "caption": "x"}] * 40)
    spec = f"urls:{table}?{ALLOW}&respect_robots=false&read_timeout=15"
    command = [sys.executable, "-m", "clipmill", "data", "shard", spec, "--store", str(tmp_path)]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE)
    while not web.requests:
        assert process.poll() is None
        time.sleep(0.05)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert time.monotonic() - started < 8


def test_no_proxy_of_the_environment_is_used(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.setenv("ALL_PROXY", "http://127.0.0.1:9")
    web.answers["/0.jpg"] = image()
    assert fetcher().read(f"{web.root}/0.jpg") == jpeg(0)

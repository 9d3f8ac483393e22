"""What every store promises, on a local folder and on a real SeaweedFS."""

import multiprocessing
import os
import pickle
import signal
import threading
import uuid
from pathlib import Path

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from clipmill.errors import NotFoundError, StorageError
from clipmill.storage import (
    Store,
    absolute_uri,
    artifact_uri,
    exists,
    join,
    open_store,
    read_bytes,
    read_json,
    split_uri,
    write_bytes,
    write_json,
)
from clipmill.storage.store import TEMPORARY_PREFIX

MANY_PARTS = 40_000_000  # bytes: past the size at which S3 uploads go in parts

real_store = settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
names = st.text(
    st.characters(exclude_categories=("Cc", "Cs"), exclude_characters="/\\"),
    min_size=1,
    max_size=30,
).filter(lambda name: name.strip() not in {"", ".", ".."} and not name.startswith(TEMPORARY_PREFIX))
keys = st.lists(names, min_size=1, max_size=3).map("/".join)


@pytest.mark.parametrize("data", [b"", b"x", bytes(range(256)) * 10], ids=len)
def test_get_returns_what_put_wrote(store: Store, data: bytes) -> None:
    store.put("a/b.bin", data)
    assert store.get("a/b.bin") == data
    assert store.size("a/b.bin") == len(data)
    assert store.exists("a/b.bin")


def test_put_replaces(store: Store) -> None:
    store.put("a", b"a longer first version")
    store.put("a", b"second")
    assert store.get("a") == b"second"
    assert list(store.list()) == ["a"]


@pytest.mark.parametrize("num_bytes", [0, 1000, MANY_PARTS])
def test_files_travel_both_ways(store: Store, tmp_path: Path, num_bytes: int) -> None:
    source, copy = tmp_path / "source", tmp_path / "new" / "copy"
    source.write_bytes(os.urandom(num_bytes))
    store.put_file("folder/file", source)
    store.get_file("folder/file", copy)
    assert copy.read_bytes() == source.read_bytes()
    assert [path.name for path in copy.parent.iterdir()] == ["copy"]


@pytest.mark.parametrize("key", ["absent", "folder", "folder/file/below"])
def test_what_is_absent_or_a_folder_is_not_found(store: Store, tmp_path: Path, key: str) -> None:
    store.put("folder/file", b"x")
    assert not store.exists(key)
    (tmp_path / "copy").write_bytes(b"as it was")
    for read in (
        lambda: store.get(key),
        lambda: store.get_range(key, 0, 1),
        lambda: store.get_range(key, 0, 0),
        lambda: store.size(key),
        lambda: store.get_file(key, tmp_path / "copy"),
    ):
        with pytest.raises(NotFoundError):
            read()
    assert (tmp_path / "copy").read_bytes() == b"as it was"
    store.delete(key)
    assert store.get("folder/file") == b"x"


def test_a_store_that_was_never_written_is_empty(store: Store) -> None:
    assert list(store.list()) == []
    assert not store.exists("a")
    store.delete("a")


def test_delete(store: Store) -> None:
    store.put("a/b", b"x")
    store.put("a/c", b"y")
    store.delete("a/b")
    store.delete("a/b")
    assert list(store.list()) == ["a/c"]


def test_put_file_says_which_file_it_cannot_read(store: Store, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="no-such-file"):
        store.put_file("a", tmp_path / "no-such-file")
    assert not store.exists("a")


def test_list_is_sorted_by_code_point_and_takes_any_prefix(store: Store) -> None:
    # A server that lists folder by folder would bring a/c before a-b.
    written = ["a-b", "a/c", "a/d/e", "ab", "B", "z", "é"]
    for key in reversed(written):
        store.put(key, b"")
    assert list(store.list()) == ["B", "a-b", "a/c", "a/d/e", "ab", "z", "é"]
    assert list(store.list("a")) == ["a-b", "a/c", "a/d/e", "ab"]
    assert list(store.list("a/")) == ["a/c", "a/d/e"]
    assert list(store.list("a/d")) == ["a/d/e"]
    assert list(store.list("a/d/e")) == ["a/d/e"]
    assert list(store.list("q")) == []
    assert list(store.list("z/")) == []


def test_list_reaches_past_a_page(store: Store) -> None:
    # An S3 server answers 1000 names at a time.
    written = [f"{number:05}" for number in range(1003 if store.uri.startswith("s3:") else 3)]
    for key in written:
        store.put(key, b"")
    assert list(store.list()) == written


@real_store
@given(objects=st.dictionaries(keys, st.binary(max_size=50), min_size=1, max_size=4))
def test_any_key_works(root_uri: str, objects: dict[str, bytes]) -> None:
    assume(not any(other.startswith(f"{key}/") for key in objects for other in objects))
    store = open_store(join(root_uri, uuid.uuid4().hex))
    for key, data in objects.items():
        store.put(key, data)
    assert list(store.list()) == sorted(objects)
    assert {key: store.get(key) for key in objects} == objects


@real_store
@given(
    data=st.binary(max_size=200),
    start=st.integers(0, 250),
    length=st.integers(0, 250),
)
def test_get_range_is_a_slice(root_uri: str, data: bytes, start: int, length: int) -> None:
    store = open_store(root_uri)
    store.put("range", data)
    assert store.get_range("range", start, length) == data[start : start + length]


NOT_KEYS = (
    *("", "/", "/etc/x", "..", "../x", "a/../x", "a/..", "./a", "a//b", "a/", " "),
    *("a\0b", "a\nb", "a\\b", "\ud800", ".clipmill-tmp-1", "x" * 256, "é" * 128),
)


@pytest.mark.parametrize("key", NOT_KEYS, ids=ascii)
def test_keys_that_escape_or_cannot_be_named_are_refused(
    store: Store, tmp_path: Path, key: str
) -> None:
    for use in (
        lambda: store.put(key, b"x"),
        lambda: store.get(key),
        lambda: store.exists(key),
        lambda: store.delete(key),
        lambda: store.size(key),
        lambda: store.get_range(key, 0, 1),
        lambda: store.get_file(key, tmp_path / "copy"),
    ):
        with pytest.raises(StorageError, match="doesn't name an object"):
            use()
    assert list(store.list()) == []


def test_a_store_can_be_sent_to_another_process(store: Store) -> None:
    store.put("a", b"x")
    assert pickle.loads(pickle.dumps(store)).get("a") == b"x"


def test_threads_share_a_store(store: Store) -> None:
    failures = []

    def work(number: int) -> None:
        for turn in range(10):
            data = f"{number} {turn}".encode()
            store.put(f"{number}/{turn}", data)
            if store.get(f"{number}/{turn}") != data:
                failures.append((number, turn))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert len(list(store.list())) == 60


def _read_all(store: Store, num_keys: int) -> bool:
    return all(store.get(f"{i}") == f"{i}".encode() * 1000 for i in range(num_keys))


def test_a_forked_child_and_its_parent_read_at_once(store: Store) -> None:
    # On one connection, the child's answers and the parent's would get mixed.
    for i in range(100):
        store.put(f"{i}", f"{i}".encode() * 1000)
    # What earlier tests in this process have SIGTERM do, the pool's end would wait for in vain.
    default = (signal.SIGTERM, signal.SIG_DFL)
    with multiprocessing.get_context("fork").Pool(2, signal.signal, default) as pool:
        results = [pool.apply_async(_read_all, (store, 100)) for _ in range(2)]
        assert _read_all(store, 100)
        assert all(result.get(30) for result in results)


def test_functions_take_whole_uris(root_uri: str) -> None:
    uri = join(root_uri, "some", "value.json")
    assert not exists(uri)
    write_json(uri, {"b": [1, None], "a": "é"})
    assert exists(uri)
    assert read_bytes(uri).decode() == ('{\n  "a": "é",\n  "b": [\n    1,\n    null\n  ]\n}\n')
    assert read_json(uri) == {"a": "é", "b": [1, None]}
    store, key = split_uri(uri)
    assert (store.uri, key) == (join(root_uri, "some"), "value.json")
    with pytest.raises(ValueError, match="JSON"):
        write_json(uri, float("nan"))
    write_bytes(uri, b"{")
    with pytest.raises(StorageError, match=r"value\.json isn't JSON"):
        read_json(uri)


def test_a_file_uri_is_a_local_folder(tmp_path: Path) -> None:
    (tmp_path / "with space").mkdir()
    (tmp_path / "with space" / "50%").write_bytes(b"x")
    uri = f"{tmp_path.as_uri()}/with%20space/50%25"
    assert read_bytes(uri) == b"x"
    assert open_store(f"{tmp_path.as_uri()}/with%20space").uri == str(tmp_path / "with space")


def test_a_relative_folder_is_taken_from_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_bytes("plain", b"1")
    write_bytes("folder/plain", b"2")
    store = open_store("folder")
    monkeypatch.chdir("/")
    assert (tmp_path / "plain").read_bytes() == b"1"
    assert store.get("plain") == b"2"
    assert store.uri == str(tmp_path / "folder")


@pytest.mark.parametrize("uri", ["gs://b/x", "https://host/x", "file://host/x", "file://", ""])
def test_an_unknown_scheme_is_refused(uri: str) -> None:
    with pytest.raises(StorageError, match="s3://bucket/prefix"):
        open_store(uri)


def test_a_bucket_alone_is_no_object(s3: dict[str, str]) -> None:
    for uri in ("s3://bucket", "s3://bucket/", "s3://"):
        with pytest.raises(StorageError, match="not an object"):
            split_uri(uri)


@pytest.mark.parametrize("bucket", ["", "ab", "UPPER", "under_score", "-x-", "192.168.0.1", "a..b"])
def test_names_that_no_bucket_has_are_refused(s3: dict[str, str], bucket: str) -> None:
    with pytest.raises(StorageError, match="isn't the name of an S3 bucket"):
        open_store(f"s3://{bucket}/prefix")


@pytest.mark.parametrize(
    ("uri", "absolute"),
    [
        ("out", "/base/out"),
        ("./out/", "/base/out"),
        ("../x/a:b", "/x/a:b"),
        ("file:w.pt#open_clip/ViT-B-16", "file:/base/w.pt#open_clip/ViT-B-16"),
        *(
            (uri, uri)
            for uri in (
                *("", "/x", "~/x", "s3://b/x", "file:///x", "file:/w.pt", "https://host/x"),
                *("csv:/a.csv?image=x", "timm:resnet18", "hf:org/name", "open_clip:ViT-B-16/tag"),
                *("random:timm/test_resnet", "vlm:http://localhost:8000/v1"),
            )
        ),
    ],
)
def test_absolute_uris(
    uri: str, absolute: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "base").mkdir()
    monkeypatch.chdir(tmp_path / "base")
    assert absolute_uri(uri) == (
        absolute if absolute == uri else absolute.replace("/", f"{tmp_path}/", 1)
    )


def test_artifacts_uris_are_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert artifact_uri("out/", "models", "x") == f"{tmp_path}/out/models/x"
    assert artifact_uri("s3://b/out", "models", "x") == "s3://b/out/models/x"

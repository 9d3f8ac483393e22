"""Temporary files of killed processes, names without their slashes, and buckets made on the way."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from clipmill.errors import StorageError
from clipmill.storage import open_store
from clipmill.storage.local import temporary_path
from clipmill.storage.store import TEMPORARY_PREFIX

WRITE = """
import sys, time
from pathlib import Path
from clipmill.storage import atomic_write
with atomic_write(Path(sys.argv[1])) as path:
    path.write_bytes(b"half")
    print(flush=True)
    time.sleep(60)
"""


def temporaries(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob(f"{TEMPORARY_PREFIX}*")]


def test_a_killed_process_file_is_removed_and_no_other(tmp_path: Path) -> None:
    own = temporary_path(tmp_path / "shards" / "own.tar")
    own.parent.mkdir()
    own.touch()
    elsewhere = own.with_name(f"{TEMPORARY_PREFIX}01234567-1-abc")
    elsewhere.touch()
    target = tmp_path / "shards" / "0.tar"
    process = subprocess.Popen([sys.executable, "-c", WRITE, target], stdout=subprocess.PIPE)
    assert process.stdout
    process.stdout.readline()
    store = open_store(str(tmp_path))
    store.remove_abandoned()
    assert len(temporaries(tmp_path)) == 3
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    store.remove_abandoned()
    assert sorted(temporaries(tmp_path)) == sorted([own.name, elsewhere.name])
    # An hour after the last write of a process that can't be asked for.
    old = time.time() - 3700
    os.utime(elsewhere, (old, old))
    os.utime(own, (old, old))
    store.remove_abandoned()
    assert temporaries(tmp_path) == [own.name]


@pytest.mark.parametrize("uri", ["s3:/bucket/x", "s3:bucket/x", "S3:/b", "https:/host/x"])
def test_a_scheme_without_its_slashes_is_refused(uri: str, tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="without its two slashes") as caught:
        open_store(uri)
    rest = uri.partition(":")[2].lstrip("/")
    assert f"{uri.partition(':')[0]}://{rest}" in str(caught.value)
    open_store(str(tmp_path / "s3:" / "x"))

"""Keys and files of a dataset while it is written: tars, sidecars, staged layer rows.

``shards/00000.tar`` lies next to its sidecar ``shards/00000.json``. With ``duplicates=drop`` a
shard that holds duplicates is rewritten without them as ``00000-dedup.tar``, and the rows of the
source's layers wait under ``plan/rows`` until the duplicates are known.
"""

import io
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipmill.data.dataset import ShardInfo
from clipmill.data.shards.plan import ShardPlan
from clipmill.errors import StorageError
from clipmill.storage import Store, atomic_write, open_store
from clipmill.storage.local import LocalStore


def tar_key(index: int, suffix: str = "") -> str:
    """Return the key of a shard's tar in its dataset."""
    return f"shards/{index:05d}{suffix}.tar"


def sidecar_key(index: int, suffix: str = "") -> str:
    """Return the key of a shard's sidecar in its dataset."""
    return f"shards/{index:05d}{suffix}.json"


def shard_info(index: int, sidecar: dict[str, Any], suffix: str = "") -> ShardInfo:
    """Return the entry in ``dataset.json`` of a shard with this sidecar."""
    return ShardInfo(
        name=f"{index:05d}{suffix}.tar",
        num_samples=sidecar["num_samples"],
        num_bytes=sidecar["num_bytes"],
        sha256=sidecar["sha256"],
    )


@contextmanager
def staged_file(store: Store, key: str) -> Iterator[Path]:
    """Yield a local path to write to; the file is put at ``key`` when the block succeeds."""
    if isinstance(store, LocalStore):
        with atomic_write(store.path(key)) as path:
            yield path
        return
    with TemporaryDirectory(prefix="clipmill-shard-") as folder:
        path = Path(folder) / "shard.tar"
        try:
            yield path
        except OSError as error:
            raise StorageError(
                f"can't write a shard to {folder}: {error.strerror}",
                expected="space for a shard in the folder for temporary files",
                action="free some, or set TMPDIR to a folder on a larger disk",
            ) from error
        store.put_file(key, path)


def delete_original(store: Store, index: int) -> None:
    """Delete the version of a shard that has duplicates; its sidecar first, which lists it."""
    store.delete(sidecar_key(index))
    store.delete(tar_key(index))


def staged_rows_key(layer: str, index: int) -> str:
    """Return the key of a layer's rows that wait for duplicates to be dropped."""
    return f"plan/rows/{layer}/{index:05d}.parquet"


def write_staged_rows(plan: ShardPlan, layer: str, index: int, table: pa.Table) -> None:
    """Write a layer's rows, to wait for duplicates to be dropped."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    open_store(plan.uri).put(staged_rows_key(layer, index), buffer.getvalue())


def read_staged_rows(plan: ShardPlan, layer: str, index: int) -> pa.Table:
    """Read the rows of :func:`write_staged_rows`."""
    data = open_store(plan.uri).get(staged_rows_key(layer, index))
    return pq.read_table(io.BytesIO(data), use_threads=False)

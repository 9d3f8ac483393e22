"""Keys and files of a dataset that is being written: tars, sidecars, staged layer rows.

``shards/00000.tar`` lies next to its sidecar ``shards/00000.json``. With ``duplicates=drop`` a
shard that holds duplicates is rewritten without them as ``00000-unique.tar``, and the rows of the
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
from clipmill.storage import Store, open_store, replacing
from clipmill.storage.local import LocalStore



def tar_key(index: int, mark: str = "") -> str:
    """Where the tar of a shard lies in its dataset."""
    return f"shards/{index:05d}{mark}.tar"


def shard_info(index: int, sidecar: dict[str, Any], mark: str = "") -> ShardInfo:
    """The entry of a dataset's list for a shard with this sidecar."""
    return ShardInfo(
        name=f"{index:05d}{mark}.tar",
        num_samples=sidecar["num_samples"],
        num_bytes=sidecar["num_bytes"],
        sha256=sidecar["sha256"],
    )


@contextmanager
def staged(store: Store, key: str) -> Iterator[Path]:
    """Yield a path to write a file at, which is put at ``key`` when the block ends well."""
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
    """Delete the version of a shard that has doubles; the record first, which says "whole"."""
    store.delete(f"shards/{index:05d}.json")
    store.delete(tar_key(index))


def staged_rows_key(layer: str, index: int) -> str:
    """Where a layer's rows wait until the doubles are known, if these are to be dropped."""
    return f"plan/rows/{layer}/{index:05d}.parquet"


def read_staged_rows(plan: ShardPlan, layer: str, index: int) -> pa.Table:
    """A layer's rows as they wait (see ``staged_rows_key``)."""
    data = open_store(plan.uri).get(staged_rows_key(layer, index))
    return pq.read_table(io.BytesIO(data), set_num_threads=False)

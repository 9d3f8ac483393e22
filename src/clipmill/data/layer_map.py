"""Rows of a layer without holding them in memory, for layers as large as teachers' embeddings."""

from pathlib import Path

import pyarrow as pa

from clipmill.data.cache import owned
from clipmill.data.dataset import Dataset
from clipmill.data.layers import read_layer
from clipmill.digest import sha256_bytes
from clipmill.storage import replacing


def map_layer(dataset: Dataset, layer: str, shard_index: int, cache: Path) -> pa.Table:
    """The rows of a layer that the dataset lists, for one shard, as ``read_layer`` gives them.

    They lie uncompressed in ``cache``, where all processes of a machine share them, and only the
    pages that are looked at are read. Raises ArtifactError as ``read_layer`` does.
    """
    digest = dataset.layers[layer].digest
    entry = cache / sha256_bytes(f"{digest} {shard_index}".encode())
    path = entry / "rows.arrow"
    with owned(entry):
        if not path.is_file():
            table = read_layer(dataset, layer, shard_index, cache).combine_chunks()
            with (
                replacing(path) as temporary,
                pa.OSFile(str(temporary), "wb") as file,
                pa.ipc.new_file(file, table.schema) as writer,
            ):
                writer.write_table(table)
        file = pa.memory_map(str(path))
    return pa.ipc.open_file(file).read_all()

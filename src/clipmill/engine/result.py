"""Where a run's result lies: an address made of its config and its parents."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from clipmill.config import Config
from clipmill.config import digest_json
from clipmill.models.checkpoint import CheckpointMetadata, save_checkpoint
from clipmill.storage import join, read_bytes, write_bytes
from clipmill.lineage import Parent

if TYPE_CHECKING:
    from torch import Tensor

    from clipmill.engine.trainer import Trained
    from clipmill.models.embedding_stats import EmbeddingStatistics

LOG_FILE = "log.jsonl"
"""A run's records; of an unfinished one, in its folder ``state``."""
RUN_FILE = "run.json"
"""How an unfinished run stands, in the same folder."""


def result_uri(store: str, kind: str, name: str, config: Config, parents: Sequence[Parent]) -> str:
    """``store/kind/name-key``: the same config on the same parents always has the same key."""
    key = digest_json([config.digest, sorted([p.role, p.digest] for p in parents)])
    return join(store, kind, f"{name}-{key[:12]}")


def save_result(
    uri: str,
    metadata: CheckpointMetadata,
    tensors: Mapping[str, "Tensor"],
    trained: "Trained",
    *,
    embed: "Callable[[], EmbeddingStatistics | None]" = lambda: None,
) -> None:
    """Write log and checkpoint, then drop the state that resuming needed; the first rank does.

    ``embed`` says what the model makes of its training images; it is asked there alone.
    """
    from clipmill.engine.checkpoint import drop_state

    if trained.rank:
        return
    write_bytes(join(uri, LOG_FILE), log_lines(trained.log))
    save_checkpoint(uri, metadata, tensors, embed())
    drop_state(join(uri, "state"))


def read_log(uri: str) -> list[dict[str, float]]:
    """The log of the run that wrote the checkpoint at ``uri``."""
    return [json.loads(line) for line in read_bytes(join(uri, LOG_FILE)).decode().splitlines()]


def log_lines(log: Sequence[Mapping[str, float]]) -> bytes:
    """Records as JSON lines."""
    return "".join(json.dumps(record) + "\n" for record in log).encode()

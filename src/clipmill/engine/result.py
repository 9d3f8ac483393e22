"""Results of training runs: their address, made of config and parents, and their files."""

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from clipmill.config import Config, digest_json
from clipmill.cost import COST_FILE, cost_json, read_sessions
from clipmill.errors import ArtifactError, ClipmillError
from clipmill.lineage import LOG_FILE, Parent
from clipmill.models.checkpoint import CheckpointMetadata, save_checkpoint, save_embedding
from clipmill.models.embedding_stats import EmbeddingStatistics
from clipmill.storage import artifact_uri, join, open_store, read_bytes, write_bytes, write_json

if TYPE_CHECKING:
    from torch import Tensor

_LOG = logging.getLogger(__name__)

STATE_FOLDER = "state"
"""Folder of an unfinished run, in that of its result."""
RUN_FILE = "run.json"
"""Status of an unfinished run, in that folder."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainResult:
    """Result of a training run."""

    tensors: "dict[str, Tensor]"
    """Weights by name in the objective: the moving average if there is one."""
    log: tuple[dict[str, float], ...]
    """Records: step, losses, learning rate, gradient norm, samples per second."""
    rank: int = 0
    """Rank of this process; all ranks hold the same weights, and rank 0 saves them."""


def result_uri(store: str, kind: str, name: str, config: Config, parents: Sequence[Parent]) -> str:
    """Return ``store/kind/name-key``; the same config and parents always have the same key."""
    key = digest_json([config.digest, sorted([p.role, p.digest] for p in parents)])
    return artifact_uri(store, kind, f"{name}-{key[:12]}")


def state_uri(uri: str) -> str:
    """Return the folder of an unfinished run's training checkpoints."""
    return join(uri, STATE_FOLDER)


def finished_uri(state: str) -> str:
    """Return the address of the result whose unfinished run lies in a folder of ``state_uri``."""
    return state.removesuffix(f"/{STATE_FOLDER}")


def save_run(
    uri: str,
    result: TrainResult,
    *,
    kind: str,
    architecture: dict[str, Any],
    config: Config,
    parents: tuple[Parent, ...],
    summary: dict[str, str],
    tensors: "Mapping[str, Tensor]",
    embed: "Callable[[CheckpointMetadata], EmbeddingStatistics | None] | None" = None,
) -> str:
    """Save a finished run as a checkpoint at ``uri``, on rank 0, and return ``uri``.

    Log and checkpoint are written before the training checkpoints are deleted. ``tensors`` are
    those of the result to keep, under their final names. ``embed`` computes the statistics of the
    model's embeddings of its training images.
    """
    if result.rank:
        return uri
    metadata = CheckpointMetadata(
        kind=kind,
        architecture=architecture,
        recipe=config.to_json(),
        parents=parents,
        metrics={k: v for k, v in result.log[-1].items() if k.startswith("loss")},
        summary=summary,
    )
    write_bytes(join(uri, LOG_FILE), log_lines(result.log))
    _keep_cost(uri)
    saved = save_checkpoint(uri, metadata, tensors)
    if embed:
        _save_embedding(uri, saved, embed)
    delete_state(state_uri(uri))
    return uri


def _keep_cost(uri: str) -> None:
    """Copy what the run has cost from the folder of its state, which is deleted."""
    try:
        write_json(join(uri, COST_FILE), cost_json(read_sessions(state_uri(uri))))
    except ArtifactError as error:
        _LOG.warning("the cost of this run isn't known: %s", error.what)


def _save_embedding(
    uri: str,
    metadata: CheckpointMetadata,
    embed: "Callable[[CheckpointMetadata], EmbeddingStatistics | None]",
) -> None:
    """Save the statistics of a saved model; a run that is finished never fails for them."""
    try:
        embedding = embed(metadata)
        if embedding is not None:
            save_embedding(uri, metadata, embedding)
    except (ClipmillError, OSError) as error:
        _LOG.warning(
            "%s is saved without statistics of its embeddings, so a shift of the images that it "
            "serves isn't measured: %s",
            uri,
            error,
        )


def delete_state(uri: str) -> None:
    """Delete all training checkpoints at a URI, with the unfinished log."""
    store = open_store(uri)
    for key in list(store.list()):
        store.delete(key)


def under_prefix(tensors: "Mapping[str, Tensor]", prefix: str) -> "dict[str, Tensor]":
    """Return the tensors whose names begin with ``prefix``, without it."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


def read_log(uri: str) -> list[dict[str, float]]:
    """Read the log of the run that wrote the checkpoint at ``uri``."""
    return [json.loads(line) for line in read_bytes(join(uri, LOG_FILE)).decode().splitlines()]


def log_lines(log: Sequence[Mapping[str, float]]) -> bytes:
    """Return records as JSON lines."""
    return "".join(json.dumps(record) + "\n" for record in log).encode()

"""Scoring: write score layers of a dataset, with all scorers in one pass over its shards.

A task owns a range of shards, and skips those that are scored, so any number of tasks may share a
dataset, be killed, and be run again.
"""

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
from PIL import Image

from clipmill.config import Config, digest_json
from clipmill.data.cache import evict_lru, is_remote
from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.layers import (
    REAL,
    commit_layer,
    has_layer_shard,
    read_layer,
    resolve_layer,
    write_layer_shard,
)
from clipmill.data.retries import (
    REASON_COLUMN,
    RETRIED,
    delete_partial,
    describe_failures,
    num_failed,
    read_partial,
    read_rows,
    retry_layer,
    save_partial,
)
from clipmill.data.scoring.embeddings import EmbeddingScorer, HeadScoreConfig, HeadScorer
from clipmill.data.scoring.relevance import (
    Judgment,
    RelevanceScoreConfig,
    RelevanceScorer,
)
from clipmill.data.scoring.scorers import (
    Captions,
    ClipScoreConfig,
    ClipScorer,
    ConceptScoreConfig,
    ConceptScorer,
    ImageScoreConfig,
    ImageScorer,
    RowBatch,
    Scorer,
    TextScoreConfig,
    TextScorer,
)
from clipmill.data.shards.read import ShardReader, read_records, read_shard
from clipmill.data.sources.base import original_size
from clipmill.errors import BadSampleError, ConfigError
from clipmill.images import decode_rgb
from clipmill.stage_records import ProgressCallback
from clipmill.telemetry import data_metrics

SCORERS: Mapping[str, Callable[[Any, Dataset], Scorer]] = {
    "image": lambda config, _: ImageScorer(config),
    "text": lambda config, _: TextScorer(config),
    "concepts": lambda config, _: ConceptScorer(config),
    "clip": lambda config, _: ClipScorer(config),
    "embedding": lambda config, _: EmbeddingScorer(config),
    "head": HeadScorer,
    "relevance": lambda config, _: RelevanceScorer(config),
}
"""By the field of ScoreConfig that asks for it; its layer is ``score/<field>-<digest>``, for a head
``score/<its name>-<digest>``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoreConfig(Config):
    """Scorers and their settings."""

    captions: tuple[str, ...] = ()
    """Caption kinds: ``real`` and captions layers; empty for all that the dataset has."""
    image: ImageScoreConfig | None = None
    """Size, aspect and hashes of the image."""
    text: TextScoreConfig | None = None
    """Length and language of the captions."""
    concepts: ConceptScoreConfig | None = None
    """Concepts of a list that the captions name."""
    clip: ClipScoreConfig | None = None
    """Similarity of image and captions."""
    embedding: ClipScoreConfig | None = None
    """Embeddings of the images, for heads and semantic deduplication."""
    head: HeadScoreConfig | None = None
    """A public head on the embeddings: aesthetic, NSFW, watermark."""
    relevance: RelevanceScoreConfig | None = None
    """Relevance of captions by a vision-language model."""
    batch_size: int = 256
    """RowBatch read together."""
    num_threads: int = 4
    """Threads that decode images."""
    cache_bytes: int = 100_000_000_000
    """Most bytes of local disk that copies of remote shards and layers take."""

    def __post_init__(self) -> None:
        """Refuse values out of range (ConfigError)."""
        for name in ("batch_size", "num_threads", "cache_bytes"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"{name} was {getattr(self, name)}",
                    expected="at least 1",
                    action=f"give {name} such a value",
                )


def score(
    config: ScoreConfig,
    dataset: str,
    *,
    report: ProgressCallback,
    start: int = 0,
    stop: int | None = None,
    retry: bool = False,
) -> tuple[str, ...]:
    """Measure shards ``start`` to ``stop`` (exclusive) of the dataset at that URI.

    The names of the layers, in the order of SCORERS. A layer is part of the dataset once all of
    its shards are scored, whoever did that. With ``retry``, samples whose judgment failed are
    judged again, as :func:`clipmill.data.recaption.recaption` captions them. Raises ConfigError if
    nothing is asked for, a caption kind isn't known, or the range isn't one; BudgetError and
    ServerError if an endpoint fails: run it again to resume.
    """
    opened = Dataset.open(dataset)
    kinds = _caption_kinds(config, opened)
    scorers = {_layer(opened, n, config, s, kinds): s for n, s in _scorers(config, opened).items()}
    previous: dict[str, str] = {}
    if retry:
        scorers, previous = _retried(opened, scorers)
    missing = {name: s for name, s in scorers.items() if name not in opened.layers}
    part = opened.shard_range(start, stop)
    if missing:
        total = sum(opened.shards[index].num_samples for index in part)
        report(0, total, "scoring")
        done = num_failed_rows = 0
        with ExitStack() as stack:
            pool = stack.enter_context(ThreadPoolExecutor(config.num_threads))
            for judge in _judges(missing).values():
                stack.callback(judge.close)
            for index in part:
                pending = {
                    name: scorer
                    for name, scorer in missing.items()
                    if not has_layer_shard(opened, name, index)
                    or (retry and not previous[name] and num_failed(opened, name, index))
                }
                if pending:
                    _score_shard(config, opened, index, pending, kinds, pool, previous)
                    if is_remote(opened.uri):
                        evict_lru(cache_folder(), config.cache_bytes)
                for judge in _judges(pending).values():
                    num_failed_rows += sum(bool(j.reason) for j in judge.judgments.values())
                done += opened.shards[index].num_samples
                words = f"scored, {num_failed_rows} failed" if num_failed_rows else "scored"
                report(done, total, words)
    others = [index for index in range(len(opened.shards)) if index not in part]
    for name, scorer in missing.items():
        if all(has_layer_shard(opened, name, index) for index in others):
            detail = scorer.detail
            if name in _judges(missing):
                detail = {**detail, "failed": describe_failures(opened, name)}
            commit_layer(opened, name, parents=scorer.parents, detail=detail)
    return tuple(scorers)


def _judges(scorers: Mapping[str, Scorer]) -> dict[str, RelevanceScorer]:
    return {n: scorer for n, scorer in scorers.items() if isinstance(scorer, RelevanceScorer)}


def _retried(
    dataset: Dataset, scorers: Mapping[str, Scorer]
) -> tuple[dict[str, Scorer], dict[str, str]]:
    """Return the judges by the layers that a retry writes, and the layers whose rows it keeps."""
    judges = _judges(scorers)
    if not judges:
        raise ConfigError(
            "--retry was given, and the recipe asks no endpoint",
            expected="scores that may fail: relevance",
            action="leave out --retry, or add --recipe score-relevance",
        )
    layers = {name: retry_layer(dataset, name) for name in judges}
    return (
        {layers[name][0]: judge for name, judge in judges.items()},
        dict(layers.values()),
    )


def _scorers(config: ScoreConfig, dataset: Dataset) -> dict[str, Scorer]:
    configs = {name: getattr(config, name) for name in SCORERS}
    scorers = {name: SCORERS[name](c, dataset) for name, c in configs.items() if c is not None}
    if not scorers:
        raise ConfigError(
            "the recipe asks for no score",
            expected=f"one of {', '.join(SCORERS)}",
            action="choose a recipe that does",
        )
    return scorers


def _caption_kinds(config: ScoreConfig, dataset: Dataset) -> tuple[str, ...]:
    layers = sorted(name for name in dataset.layers if name.startswith("captions/"))
    if not config.captions:
        return (REAL, *layers)
    named = {kind if kind == REAL else resolve_layer(layers, kind) for kind in config.captions}
    return tuple(kind for kind in (REAL, *layers) if kind in named)


def _layer(
    dataset: Dataset, name: str, config: ScoreConfig, scorer: Scorer, kinds: Sequence[str]
) -> str:
    """The layer's name: what it depends on gives its digest."""
    captions = [[k, _digest(dataset, k)] for k in kinds] if scorer.needs_captions else []
    parents = [parent.digest for parent in scorer.parents]
    settings = _settings(name, getattr(config, name))
    label = config.head.name if name == "head" and config.head else name
    return f"score/{label}-{digest_json([settings, captions, parents])[:8]}"


def _settings(name: str, config: Config) -> dict[str, Any]:
    """The config's fields that change what is measured, those that name a place left out."""
    irrelevant = {
        "clip": {"model", "weights", "seed", "batch_size", "num_threads"},
        "embedding": {"model", "weights", "seed", "batch_size", "num_threads"},
        "concepts": {"concepts"},
        "head": {"file", "embeddings"},
        "relevance": {"url", "endpoint"},
    }
    value = config.to_json()
    return {k: v for k, v in value.items() if k not in irrelevant.get(name, set())}


def _digest(dataset: Dataset, kind: str) -> str:
    return "" if kind == REAL else dataset.layers[kind].digest


def _score_shard(
    config: ScoreConfig,
    dataset: Dataset,
    index: int,
    scorers: Mapping[str, Scorer],
    kinds: Sequence[str],
    pool: Executor,
    previous: Mapping[str, str],
) -> None:
    judges = _judges(scorers)
    for name, judge in judges.items():
        judge.judgments = _read_judgments(dataset, name, index, previous.get(name, ""))
    parts: dict[str, list[dict[str, pa.Array]]] = {name: [] for name in scorers}
    needs_images = any(scorer.needs_images for scorer in scorers.values())
    needs_captions = any(scorer.needs_captions for scorer in scorers.values())
    records = read_records(dataset, index, cache_folder()) if needs_images else ()
    sizes = [original_size(record.metadata) for record in records]
    layers = {
        layer: read_layer(dataset, layer, index, cache_folder())
        for scorer in scorers.values()
        for layer in scorer.layers
    }
    with ExitStack() as stack:
        uids = dataset.uids(index)
        reader, captions = None, {}
        if needs_images or needs_captions:
            reader = stack.enter_context(read_shard(dataset, index, cache_folder()))
            read_kinds = kinds if needs_captions else ()
            captions = {kind: _captions(dataset, index, kind, reader) for kind in read_kinds}
        # An empty shard is scored as well: its file needs the columns.
        for start in range(0, len(uids) or 1, config.batch_size):
            span = range(start, min(start + config.batch_size, len(uids)))
            data = images = None
            if needs_images:
                assert reader is not None
                data = [reader.image(row) for row in span]
                images = list(pool.map(_decode, data))
            rows = RowBatch(
                num_rows=len(span),
                data=data,
                images=images,
                captions={kind: c.slice(span.start, span.stop) for kind, c in captions.items()},
                original_sizes=sizes[span.start : span.stop],
                uids=uids[span.start : span.stop],
                layers={name: table.slice(start, len(span)) for name, table in layers.items()},
            )
            try:
                for name, scorer in scorers.items():
                    parts[name].append(scorer.score(rows))
            finally:
                for name, judge in judges.items():
                    _save_judgments(dataset, name, index, judge.judgments)
    for name, batches in parts.items():
        columns = {c: pa.chunked_array([batch[c] for batch in batches]) for c in batches[0]}
        table = pa.table({"uid": pa.array(uids, pa.string()), **columns})
        write_layer_shard(dataset, name, index, table)
    for name in judges:
        delete_partial(dataset, name, index)


def _read_judgments(dataset: Dataset, layer: str, index: int, previous: str) -> dict[str, Judgment]:
    """Return what needn't be judged again: of an unfinished run, or of a layer that is retried."""
    judgments = {}
    kept = previous or (layer if has_layer_shard(dataset, layer, index) else "")
    if kept:
        for row in read_rows(dataset, kept, index).to_pylist():
            uid, reason = row.pop("uid"), row.pop(REASON_COLUMN)
            if reason not in RETRIED:
                scores = {k: v if isinstance(v, list) else [v] for k, v in row.items()}
                judgments[uid] = Judgment(scores, reason)
    stored = read_partial(dataset, layer, index)
    return judgments | {uid: Judgment(scores) for uid, scores in stored.items()}


def _save_judgments(
    dataset: Dataset, layer: str, index: int, judgments: Mapping[str, Judgment]
) -> None:
    """Save the judgments of a shard that isn't complete; failed ones are judged again."""
    stored = {uid: dict(j.scores) for uid, j in judgments.items() if not j.reason}
    save_partial(dataset, layer, index, stored)


def _captions(dataset: Dataset, index: int, kind: str, reader: ShardReader) -> Captions:
    if kind == REAL:
        return Captions([reader.caption(row) for row in range(len(reader))], None)
    column = read_layer(dataset, kind, index, cache_folder(), columns=["captions"])["captions"]
    lists = column.to_pylist()
    return Captions([text for texts in lists for text in texts], [len(texts) for texts in lists])


def _decode(data: bytes) -> Image.Image | None:
    try:
        return decode_rgb(data)
    except BadSampleError as bad:
        data_metrics().samples_rejected.labels(bad.reason).inc()
        return None

"""Recaptioning: write a layer of synthetic captions for a dataset.

Any number of workers may caption ranges of one dataset's shards; the one that finds no shard
missing commits the layer. Progress is saved per shard, and per batch for expensive captioners:
their outputs are stored next to the layer's shards until their shard is complete.
"""

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing

import pyarrow as pa

from clipmill.data.captioners import (
    Captioner,
    CaptionersConfig,
    CaptionInput,
    CaptionOutput,
    open_captioner,
)
from clipmill.data.dataset import Dataset, cache_folder
from clipmill.data.layers import commit_layer, has_layer_shard, write_layer_shard
from clipmill.data.retries import (
    RETRIED,
    delete_partial,
    describe_failures,
    num_failed,
    read_partial,
    read_rows,
    retry_layer,
    save_partial,
)
from clipmill.data.shards.read import ShardReader, read_shard
from clipmill.errors import BadSampleError, BadSampleReason, ClipmillError
from clipmill.images import decode_rgb
from clipmill.stage_records import ProgressCallback
from clipmill.telemetry import CAPTIONED, caption_metrics

_log = logging.getLogger(__name__)

SCHEMA = pa.schema(
    [
        ("uid", pa.string()),
        ("captions", pa.list_(pa.string())),
        ("scores", pa.list_(pa.float32())),
        ("fallback", pa.bool_()),
        ("reason", pa.string()),
    ]
)
"""Columns of the layer: captions of each sample with their scores (null if unknown); whether the
real caption is used as a fallback, and the reason among ``captioners.REASONS``, else empty."""

# Decoding runs concurrently with the captioner, which uses other cores or waits for the network.
_NUM_DECODERS = 4


def recaption(
    config: CaptionersConfig,
    dataset: str,
    captioner: str,
    *,
    report: ProgressCallback,
    start: int = 0,
    stop: int | None = None,
    retry: bool = False,
) -> str:
    """Caption the samples of shards ``start`` to ``stop`` (exclusive); return the layer's name.

    ``captioner`` is an address (see :mod:`clipmill.data.captioners`). Complete shards are skipped.
    The layer is committed once all of its shards are captioned, by any worker. A sample that the
    captioner can't caption keeps its real caption, with the reason.

    With ``retry`` the samples with a reason among RETRIED are captioned again: in the same layer
    while it isn't committed, and else in a new one, ``captions/NAME-retryN``, which has the other
    rows of the last. Raises ConfigError for an
    invalid range, BudgetError and ServerError if an endpoint fails: run it again to resume.
    """
    opened = Dataset.open(dataset)
    kind, model = open_captioner(captioner, config)
    layer = f"captions/{kind}-{model.identity[:8]}"
    previous = ""
    if retry:
        layer, previous = retry_layer(opened, layer)
    if layer in opened.layers:
        return layer
    shards = opened.shard_range(start, stop)
    total, done = sum(opened.shards[index].num_samples for index in shards), 0
    report(done, total, "loading the captioner")
    counts: Counter[str] = Counter()
    with closing(model), ThreadPoolExecutor(_NUM_DECODERS) as decoders:
        worker = _ShardCaptioner(opened, layer, model, config.batch_size, decoders, previous)
        for index in shards:
            is_complete = has_layer_shard(opened, layer, index)
            if not is_complete or (retry and not previous and num_failed(opened, layer, index)):
                counts.update(worker.caption_shard(index))
            done += opened.shards[index].num_samples
            failed = sum(count for reason, count in counts.items() if reason)
            report(done, total, f"captioned, {failed} left as they were" if failed else "captioned")
    others = (index for index in range(len(opened.shards)) if index not in shards)
    if all(has_layer_shard(opened, layer, index) for index in others):
        detail = {**model.detail, "left as they were": describe_failures(opened, layer)}
        commit_layer(opened, layer, parents=model.parents, detail=detail)
    return layer


def _kept_outputs(dataset: Dataset, layer: str, index: int) -> dict[str, CaptionOutput]:
    """Return the rows of a complete shard that a retry keeps, by uid."""
    outputs = {}
    for row in read_rows(dataset, layer, index, SCHEMA.names).to_pylist():
        if row["reason"] in RETRIED:
            continue
        has_texts = not row["fallback"]
        outputs[row["uid"]] = CaptionOutput(
            texts=tuple(row["captions"]) if has_texts else (),
            scores=tuple(row["scores"]) if has_texts else (),
            reason=row["reason"],
        )
    return outputs


class _ShardCaptioner:
    """Captions shards, one after the other."""

    def __init__(
        self,
        dataset: Dataset,
        layer: str,
        model: Captioner,
        batch_size: int,
        decoders: ThreadPoolExecutor,
        previous: str = "",
    ) -> None:
        """``previous``: the layer whose rows are kept, if their captioner didn't fail."""
        self._previous = previous
        self._dataset = dataset
        self._layer = layer
        self._model = model
        self._batch_size = batch_size
        self._decoders = decoders
        self._outputs: dict[str, CaptionOutput] = {}
        self._has_succeeded = False

    def caption_shard(self, index: int) -> Counter[str]:
        """Write the shard's rows; return the number of samples by reason, "" for captioned."""
        dataset, layer = self._dataset, self._layer
        self._outputs = (
            _read_outputs(dataset, layer, index) if self._model.checkpoint_outputs else {}
        )
        kept = self._previous or (layer if has_layer_shard(dataset, layer, index) else "")
        if kept:
            self._outputs = _kept_outputs(dataset, kept, index) | self._outputs
        with read_shard(dataset, index, cache_folder()) as reader:
            missing = [r for r, uid in enumerate(reader.uids) if uid not in self._outputs]
            for batch in self._batches(reader, missing):
                try:
                    self._caption(batch)
                finally:
                    if self._model.checkpoint_outputs:
                        _save_outputs(dataset, layer, index, self._outputs)
            table, counts = self._table(reader)
        # Another worker may have written it meanwhile, with other captions where seeds don't help.
        if kept == layer or not has_layer_shard(dataset, layer, index):
            write_layer_shard(dataset, layer, index, table)
        if self._model.checkpoint_outputs:
            delete_partial(dataset, layer, index)
        for reason, count in counts.items():
            caption_metrics().samples.labels(reason or CAPTIONED).inc(count)
        return counts

    def _batches(self, reader: ShardReader, rows: Sequence[int]) -> Iterator[list[CaptionInput]]:
        """Yield samples whose images decode; the next batch is decoded while one is captioned."""
        cuts = [rows[i : i + self._batch_size] for i in range(0, len(rows), self._batch_size)]

        def submit(cut: Sequence[int]) -> list[Future[CaptionInput]]:
            return [self._decoders.submit(self._read, reader, row) for row in cut]

        ahead = submit(cuts[0]) if cuts else []
        for k, cut in enumerate(cuts):
            current, ahead = ahead, submit(cuts[k + 1]) if k + 1 < len(cuts) else []
            batch = []
            for row, future in zip(cut, current, strict=True):
                try:
                    batch.append(future.result())
                except BadSampleError as error:
                    self._outputs[reader.uid(row)] = CaptionOutput(reason=error.reason)
            if batch:
                yield batch

    def _read(self, reader: ShardReader, row: int) -> CaptionInput:
        image = decode_rgb(reader.image(row)) if self._model.needs_images else None
        return CaptionInput(uid=reader.uid(row), caption=reader.caption(row), image=image)

    def _caption(self, batch: Sequence[CaptionInput]) -> None:
        error = self._caption_batch(batch)
        if error is None:
            return
        _log.warning("a batch of %d samples failed, retrying one by one: %r", len(batch), error)
        failed = [sample for sample in batch if self._caption_batch([sample]) is not None]
        if not self._has_succeeded:
            # No sample has succeeded yet, so the model is at fault.
            raise error
        for sample in failed:
            self._outputs[sample.uid] = CaptionOutput(reason=BadSampleReason.FAILED)

    def _caption_batch(self, batch: Sequence[CaptionInput]) -> Exception | None:
        """Store the batch's captions, or return the model's error."""
        try:
            for i, output in self._model.caption(batch):
                self._outputs[batch[i].uid] = output
        except ClipmillError:
            raise
        except Exception as error:  # noqa: BLE001  # a model may raise anything over an odd sample
            return error
        self._has_succeeded = True
        return None

    def _table(self, reader: ShardReader) -> tuple[pa.Table, Counter[str]]:
        outputs = [self._outputs[uid] for uid in reader.uids]
        real = {row: reader.caption(row) for row, out in enumerate(outputs) if not out.texts}
        columns = {
            "uid": reader.uids,
            "captions": [list(out.texts) or [real[row]] for row, out in enumerate(outputs)],
            "scores": [list(out.scores) or [None] for out in outputs],
            "fallback": [not out.texts for out in outputs],
            "reason": [out.reason for out in outputs],
        }
        return pa.table(columns, SCHEMA), Counter(out.reason for out in outputs)


def _save_outputs(
    dataset: Dataset, layer: str, index: int, outputs: Mapping[str, CaptionOutput]
) -> None:
    """Save the outputs of a shard that isn't complete; failed ones are retried by the next run."""
    captions = {
        uid: {"texts": list(out.texts), "scores": list(out.scores)}
        for uid, out in outputs.items()
        if out.texts
    }
    save_partial(dataset, layer, index, captions)


def _read_outputs(dataset: Dataset, layer: str, index: int) -> dict[str, CaptionOutput]:
    """Return the outputs that an earlier run saved, by uid."""
    return {
        uid: CaptionOutput(texts=tuple(out["texts"]), scores=tuple(out["scores"]))
        for uid, out in read_partial(dataset, layer, index).items()
    }

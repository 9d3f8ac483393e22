"""Dynamic batching: batches formed in the process, by size and time, from a bounded queue.

``predict_batch`` runs in a thread of its own, so that the event loop stays free for health probes.
A batch holds items of one key, such as images of one size, which need one pass of the network.
"""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import numpy as np

from clipmill.processes import lower_thread_priority
from clipmill.serve.config import ServingConfig
from clipmill.serve.errors import BadRequestError, OverloadedError, RejectReason
from clipmill.serve.server.tracing import add_step
from clipmill.telemetry import serving_metrics

Output = Any
PredictBatch = Callable[[Sequence[Any]], list[Output]]
BatchKey = Callable[[Any], Hashable]


@dataclass(slots=True, eq=False)
class _QueuedItem:
    """An item, its batch key, its arrival (event-loop seconds), and the future of its output.

    Then, once it ran: start and end of its batch, and the images in it.
    """

    item: Any
    batch_key: Hashable
    arrived_seconds: float
    output: "asyncio.Future[Output]"
    started_seconds: float = 0.0
    ended_seconds: float = 0.0
    batch_size: int = 0


class DynamicBatcher:
    """Runs ``predict_batch`` on batches of items that come one by one, while it is entered."""

    def __init__(
        self,
        predict_batch: PredictBatch,
        *,
        model: str,
        config: ServingConfig,
        batch_key: BatchKey = np.shape,
    ) -> None:
        self._predict_batch = predict_batch
        self._config = config
        self._batch_key = batch_key
        self._queue: deque[_QueuedItem] = deque()
        self._has_changed = asyncio.Event()
        self._num_admitted = 0
        self._num_queued_or_running = 0
        self._is_closing = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._executor = ThreadPoolExecutor(
            1, thread_name_prefix=f"predict-{model}", initializer=lower_thread_priority
        )
        self._task: asyncio.Task[None] | None = None
        metrics = serving_metrics()
        self._wait_seconds = metrics.queue_wait_seconds.labels(model)
        self._batch_size = metrics.batch_size.labels(model)
        self._infer_seconds = metrics.infer_seconds.labels(model)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._batch_loop())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Reject new requests, finish the admitted ones, then stop."""
        assert self._task is not None
        self._is_closing = True
        await self._is_idle.wait()
        self._task.cancel()
        self._executor.shutdown()

    @property
    def is_running(self) -> bool:
        """True while images are admitted and batches formed."""
        return self._task is not None and not self._task.done() and not self._is_closing

    @property
    def depth(self) -> int:
        """Images that wait for a batch; those that no one waits for any more don't count."""
        return sum(not queued_item.output.done() for queued_item in list(self._queue))

    @contextmanager
    def admit(self, num_images: int) -> Iterator[None]:
        """Hold places in the queue for a request's images, from before their decoding on.

        Raises:
            OverloadedError: there are not enough places now, or the batcher is closing.
            BadRequestError: there would never be so many places, or there are no images.
        """
        limit = self._config.max_queue_size
        retry = self._config.retry_after_seconds
        if not 0 < num_images <= limit:
            raise BadRequestError(
                RejectReason.IMAGE_COUNT,
                f"a request holds 1 to {limit} images; this one had {num_images}",
            )
        if not self.is_running:
            raise OverloadedError(
                RejectReason.STOPPING, "the server is stopping", retry_after_seconds=retry
            )
        if self._num_admitted + num_images > limit:
            raise OverloadedError(
                RejectReason.QUEUE_FULL,
                f"{self._num_admitted} of {limit} places are taken; try again later",
                retry_after_seconds=retry,
            )
        self._num_admitted += num_images
        self._is_idle.clear()
        try:
            yield
        finally:
            self._num_admitted -= num_images
            self._has_changed.set()  # no batch need wait for them any more
            if self._num_admitted == 0:
                self._is_idle.set()

    async def enqueue(self, items: Sequence[Any]) -> list[Output]:
        """Return the outputs of admitted items; exceptions of ``predict_batch`` propagate."""
        loop = asyncio.get_running_loop()
        queued = [
            _QueuedItem(item, self._batch_key(item), loop.time(), loop.create_future())
            for item in items
        ]
        self._queue.extend(queued)
        self._num_queued_or_running += len(queued)
        self._has_changed.set()
        try:
            outputs = await asyncio.gather(*(queued_item.output for queued_item in queued))
            batches = {queued_item.started_seconds: queued_item for queued_item in queued}
            for each in batches.values():
                add_step("queue", each.arrived_seconds, each.started_seconds)
                add_step(
                    "forward", each.started_seconds, each.ended_seconds, batch_size=each.batch_size
                )
            return outputs
        finally:
            self._num_queued_or_running -= len(queued)
            # Where one failed, or the client left, the others needn't run.
            for queued_item in queued:
                queued_item.output.cancel()

    async def _batch_loop(self) -> None:
        while True:
            # Not kept in a variable: outputs would stay in memory until the next batch.
            await self._run_batch(await self._next_batch())

    async def _next_batch(self) -> list[_QueuedItem]:
        """Return the oldest item and others of its key; empty where all were canceled meanwhile."""
        oldest = await self._oldest_item()
        loop = asyncio.get_running_loop()
        # Counted from its arrival: what queued up during the last batch goes at once.
        deadline = oldest.arrived_seconds + self._config.max_wait_seconds
        while (
            self._num_decoding
            and self._num_queued(oldest.batch_key) < self._config.max_batch_size
            and loop.time() < deadline
        ):
            self._has_changed.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._has_changed.wait()
            except TimeoutError:
                break
        batch: list[_QueuedItem] = []
        remaining: deque[_QueuedItem] = deque()
        for queued_item in self._queue:
            if queued_item.output.done():
                continue
            is_match = (
                queued_item.batch_key == oldest.batch_key
                and len(batch) < self._config.max_batch_size
            )
            (batch if is_match else remaining).append(queued_item)
        self._queue = remaining
        return batch

    async def _oldest_item(self) -> _QueuedItem:
        while True:
            while self._queue and self._queue[0].output.done():
                self._queue.popleft()
            if self._queue:
                return self._queue[0]
            self._has_changed.clear()
            await self._has_changed.wait()

    @property
    def _num_decoding(self) -> int:
        """Images that were admitted and are being decoded."""
        return self._num_admitted - self._num_queued_or_running

    def _num_queued(self, batch_key: Hashable) -> int:
        return sum(queued_item.batch_key == batch_key for queued_item in self._queue)

    async def _run_batch(self, batch: Sequence[_QueuedItem]) -> None:
        if not batch:
            return
        loop = asyncio.get_running_loop()
        started = loop.time()
        for queued_item in batch:
            self._wait_seconds.observe(started - queued_item.arrived_seconds)
        self._batch_size.observe(len(batch))
        items = [queued_item.item for queued_item in batch]
        try:
            with self._infer_seconds.time():
                outputs = await loop.run_in_executor(self._executor, self._predict_batch, items)
        except Exception as error:  # noqa: BLE001  # it belongs to the request of the image
            if len(batch) > 1:
                # One image must not fail its neighbours' requests.
                for queued_item in batch:
                    await self._run_batch([queued_item])
            elif not batch[0].output.done():
                batch[0].output.set_exception(error)
            return
        ended = loop.time()
        for queued_item, output in zip(batch, outputs, strict=True):
            queued_item.started_seconds, queued_item.ended_seconds = started, ended
            queued_item.batch_size = len(batch)
            if not queued_item.output.done():
                queued_item.output.set_result(output)

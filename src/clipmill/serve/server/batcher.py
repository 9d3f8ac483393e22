"""Batches formed in the process, by size and time, from a bounded intake.

``predict`` runs in a thread of its own, so that the event loop stays free for health probes.
A batch holds items of one bucket, such as images of one size: they take the network one pass.
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
from clipmill.serve.config import ServingConfig
from clipmill.serve.errors import BadRequestError, OverloadedError
from clipmill.telemetry import serving_metrics

Output = Any
Predict = Callable[[Sequence[Any]], list[Output]]
Bucket = Callable[[Any], Hashable]


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """An item, its bucket, when it came (event-loop seconds), and where its output goes."""

    item: Any
    bucket: Hashable
    arrived_seconds: float
    output: "asyncio.Future[Output]"


class Batcher:
    """Runs ``predict`` on batches of items that come one by one, while it is entered."""

    def __init__(
        self, predict: Predict, *, model: str, config: ServingConfig, bucket: Bucket = np.shape
    ) -> None:
        self._predict = predict
        self._config = config
        self._bucket = bucket
        self._queue: deque[_Waiting] = deque()
        self._has_come = asyncio.Event()
        self._num_admitted = 0
        self._num_handed_in = 0
        self._is_closing = False
        self._is_idle = asyncio.Event()
        self._is_idle.set()
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=f"predict-{model}")
        self._task: asyncio.Task[None] | None = None
        metrics = serving_metrics()
        self._depth = metrics.queue_depth.labels(model)
        self._wait_seconds = metrics.queue_wait_seconds.labels(model)
        self._batch_size = metrics.batch_size.labels(model)
        self._infer_seconds = metrics.infer_seconds.labels(model)

    async def __aenter__(self) -> Self:
        self._task = asyncio.create_task(self._form_batches())
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Refuse what comes from now on, finish what was taken in, then stop."""
        assert self._task is not None
        self._is_closing = True
        await self._is_idle.wait()
        self._task.cancel()
        self._executor.shutdown()

    @property
    def is_running(self) -> bool:
        """Whether images are taken in and batches formed."""
        return self._task is not None and not self._task.done() and not self._is_closing

    @contextmanager
    def admit(self, num_images: int) -> Iterator[None]:
        """Hold room for a request's images, from before their decoding to their answer.

        Raises:
            OverloadedError: there is no room now, or the batcher is closing.
            BadRequestError: there would never be room for so many, or there are none.
        """
        limit = self._config.max_queue_images
        retry = self._config.retry_after_seconds
        if not 0 < num_images <= limit:
            raise BadRequestError(
                "image_count", f"a request holds 1 to {limit} images; this one had {num_images}"
            )
        if not self.is_running:
            raise OverloadedError("stopping", "the server is stopping", retry_after_seconds=retry)
        if self._num_admitted + num_images > limit:
            raise OverloadedError(
                "queue_full",
                f"{self._num_admitted} of {limit} places are taken; try again later",
                retry_after_seconds=retry,
            )
        self._num_admitted += num_images
        self._is_idle.clear()
        try:
            yield
        finally:
            self._num_admitted -= num_images
            self._has_come.set()  # nobody need wait for them any more
            if self._num_admitted == 0:
                self._is_idle.set()

    async def predict(self, items: Sequence[Any]) -> list[Output]:
        """The outputs of admitted items; an exception of ``predict`` comes through."""
        loop = asyncio.get_running_loop()
        waiting = [
            _Waiting(item, self._bucket(item), loop.time(), loop.create_future()) for item in items
        ]
        self._queue.extend(waiting)
        self._num_handed_in += len(waiting)
        self._has_come.set()
        self._depth.set(len(self._queue))
        try:
            return await asyncio.gather(*(place.output for place in waiting))
        finally:
            self._num_handed_in -= len(waiting)
            # Where one failed, or the client left, the others needn't be run.
            for place in waiting:
                place.output.cancel()

    async def _form_batches(self) -> None:
        while True:
            batch = await self._next_batch()
            self._depth.set(len(self._queue))
            if batch:
                await self._run(batch)

    async def _next_batch(self) -> list[_Waiting]:
        """The oldest item and others of its bucket; empty where all have left meanwhile."""
        oldest = await self._oldest()
        loop = asyncio.get_running_loop()
        # Counted from its arrival: what queued up during the last batch goes at once.
        deadline = oldest.arrived_seconds + self._config.max_wait_seconds
        while (
            self._num_on_their_way
            and self._num_of(oldest.bucket) < self._config.max_batch_size
            and loop.time() < deadline
        ):
            self._has_come.clear()
            try:
                async with asyncio.timeout_at(deadline):
                    await self._has_come.wait()
            except TimeoutError:
                break
        batch: list[_Waiting] = []
        rest: deque[_Waiting] = deque()
        for place in self._queue:
            if place.output.done():
                continue
            is_mate = place.bucket == oldest.bucket and len(batch) < self._config.max_batch_size
            (batch if is_mate else rest).append(place)
        self._queue = rest
        return batch

    async def _oldest(self) -> _Waiting:
        while True:
            while self._queue and self._queue[0].output.done():
                self._queue.popleft()
            if self._queue:
                return self._queue[0]
            self._has_come.clear()
            await self._has_come.wait()

    @property
    def _num_on_their_way(self) -> int:
        """Images that were taken in and are being decoded."""
        return self._num_admitted - self._num_handed_in

    def _num_of(self, bucket: Hashable) -> int:
        return sum(place.bucket == bucket for place in self._queue)

    async def _run(self, batch: Sequence[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        for place in batch:
            self._wait_seconds.observe(loop.time() - place.arrived_seconds)
        self._batch_size.observe(len(batch))
        items = [place.item for place in batch]
        try:
            with self._infer_seconds.time():
                outputs = await loop.run_in_executor(self._executor, self._predict, items)
        except Exception as error:  # noqa: BLE001  # it belongs to whoever sent the image
            if len(batch) > 1:
                # One image must not fail its neighbours' requests.
                for place in batch:
                    await self._run([place])
            elif not batch[0].output.done():
                batch[0].output.set_exception(error)
            return
        for place, output in zip(batch, outputs, strict=True):
            if not place.output.done():
                place.output.set_result(output)

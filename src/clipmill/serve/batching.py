"""Batches formed in the process, by size and time, from a bounded intake.

``predict`` runs in a thread of its own, so that the event loop stays free for health probes.
Shapes: an Image is (H, W, 3), its Output an array by name.
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import numpy as np
from numpy.typing import NDArray

from clipmill.serve.config import ServeConfig
from clipmill.serve.refusal import BadRequestError, BusyError
from clipmill.tasks.contract import Prediction
from clipmill.telemetry import serving_metrics

Image = NDArray[np.uint8]
Output = Prediction
Predict = Callable[[Sequence[Image]], list[Output]]


@dataclass(frozen=True, slots=True, eq=False)
class _Waiting:
    """An image, when it came (event-loop seconds), and where its output goes."""

    image: Image
    arrived_seconds: float
    output: "asyncio.Future[Output]"


class Batcher:
    """Runs ``predict`` on batches of images that come one by one, while it is entered."""

    def __init__(self, predict: Predict, *, model: str, config: ServeConfig) -> None:
        self._predict = predict
        self._config = config
        self._queue: asyncio.Queue[_Waiting] = asyncio.Queue()
        self._num_admitted = 0
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
            BusyError: there is no room now, or the batcher is closing.
            BadRequestError: there would never be room for so many, or there are none.
        """
        limit = self._config.max_queue_images
        retry = self._config.retry_after_seconds
        if not 0 < num_images <= limit:
            raise BadRequestError(
                "image_count", f"a request holds 1 to {limit} images; this one had {num_images}"
            )
        if not self.is_running:
            raise BusyError("stopping", "the server is stopping", retry_after_seconds=retry)
        if self._num_admitted + num_images > limit:
            raise BusyError(
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
            if self._num_admitted == 0:
                self._is_idle.set()

    async def predict(self, images: Sequence[Image]) -> list[Output]:
        """The outputs of admitted images; an exception of ``predict`` comes through."""
        assert self._queue.qsize() + len(images) <= self._num_admitted, "admit images first"
        loop = asyncio.get_running_loop()
        waiting = [_Waiting(image, loop.time(), loop.create_future()) for image in images]
        for item in waiting:
            self._queue.put_nowait(item)
        self._depth.set(self._queue.qsize())
        try:
            return await asyncio.gather(*(item.output for item in waiting))
        finally:
            # Where one failed, or the client left, the others needn't be run.
            for item in waiting:
                item.output.cancel()

    async def _form_batches(self) -> None:
        while True:
            batch = await self._next_batch()
            self._depth.set(self._queue.qsize())
            wanted = [item for item in batch if not item.output.done()]
            if wanted:
                await self._run(wanted)

    async def _next_batch(self) -> list[_Waiting]:
        batch = [await self._queue.get()]
        # Counted from the first one's arrival: what queued up during the last batch goes at once.
        deadline = batch[0].arrived_seconds + self._config.max_wait_seconds
        while len(batch) < self._config.max_batch_size:
            if self._queue.empty():
                try:
                    async with asyncio.timeout_at(deadline):
                        batch.append(await self._queue.get())
                except TimeoutError:
                    break
            else:
                batch.append(self._queue.get_nowait())
        return batch

    async def _run(self, batch: Sequence[_Waiting]) -> None:
        loop = asyncio.get_running_loop()
        for item in batch:
            self._wait_seconds.observe(loop.time() - item.arrived_seconds)
        self._batch_size.observe(len(batch))
        images = [item.image for item in batch]
        try:
            with self._infer_seconds.time():
                outputs = await loop.run_in_executor(self._executor, self._predict, images)
        except Exception as error:  # noqa: BLE001  # it belongs to whoever sent the image
            if len(batch) > 1:
                # One image must not fail its neighbours' requests.
                for item in batch:
                    await self._run([item])
            elif not batch[0].output.done():
                batch[0].output.set_exception(error)
            return
        for item, output in zip(batch, outputs, strict=True):
            if not item.output.done():
                item.output.set_result(output)

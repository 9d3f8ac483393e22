import asyncio
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import REGISTRY

from clipmill.serve.config import ServingConfig
from clipmill.serve.errors import BadRequestError, OverloadedError
from clipmill.serve.server.batcher import DynamicBatcher


def image(number: int) -> np.ndarray:
    return np.full((1, 1, 3), number, np.uint8)


class Recorder:
    """Doubles its images' first channel, remembers batches, and can be held at its start."""

    def __init__(self, *, poison: int | None = None) -> None:
        self.batches: list[list[int]] = []
        self.poison = poison
        self.started = threading.Event()
        self.gate = threading.Event()
        self.gate.set()

    def __call__(self, images: Sequence[np.ndarray]) -> list[np.ndarray]:
        numbers = [int(i[0, 0, 0]) for i in images]
        self.started.set()
        assert self.gate.wait(10)
        self.batches.append(numbers)
        if self.poison in numbers:
            raise ValueError("this image is cursed")
        return [i[..., 0] * 2 for i in images]


async def ask(batcher: DynamicBatcher, numbers: Sequence[int]) -> list[int]:
    with batcher.admit(len(numbers)):
        outputs: list[Any] = await batcher.enqueue([image(n) for n in numbers])
    return [int(o[0, 0]) for o in outputs]


def batcher_of(predict: Recorder, model: str = "m", **limits: Any) -> DynamicBatcher:
    return DynamicBatcher(predict, model=model, config=ServingConfig(**limits))


async def until_started(recorder: Recorder) -> None:
    assert await asyncio.to_thread(recorder.started.wait, 10)


@settings(deadline=None, max_examples=30)
@given(
    requests=st.lists(st.lists(st.integers(0, 127), min_size=1, max_size=5), max_size=12),
    max_batch_size=st.integers(1, 6),
)
def test_every_image_is_run_once_and_answered_to_its_sender(
    requests: list[list[int]], max_batch_size: int
) -> None:
    recorder = Recorder()

    async def run() -> list[list[int]]:
        limits = {"max_batch_size": max_batch_size, "max_queue_size": 60}
        async with batcher_of(recorder, max_wait_seconds=0.001, **limits) as batcher:
            return await asyncio.gather(*(ask(batcher, numbers) for numbers in requests))

    assert asyncio.run(run()) == [[2 * n for n in numbers] for numbers in requests]
    assert all(1 <= len(batch) <= max_batch_size for batch in recorder.batches)
    ran = sorted(n for batch in recorder.batches for n in batch)
    assert ran == sorted(n for numbers in requests for n in numbers)


def test_images_that_queue_up_during_a_batch_share_the_next() -> None:
    recorder = Recorder()
    recorder.gate.clear()

    async def run() -> None:
        async with batcher_of(recorder, max_batch_size=4, max_wait_seconds=0.001) as batcher:
            first = asyncio.create_task(ask(batcher, [0]))
            await until_started(recorder)
            # The loop is free although predict is blocked: these are taken in meanwhile.
            rest = [asyncio.create_task(ask(batcher, [n])) for n in range(1, 7)]
            await asyncio.sleep(0)
            recorder.gate.set()
            await asyncio.gather(first, *rest)

    asyncio.run(run())
    assert recorder.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_a_batch_waits_for_what_is_being_decoded() -> None:
    recorder = Recorder()

    async def run() -> None:
        async with batcher_of(recorder, max_batch_size=2, max_wait_seconds=30) as batcher:
            with batcher.admit(1):
                first = asyncio.create_task(ask(batcher, [1]))
                await asyncio.sleep(0.05)
                assert not first.done()
                await asyncio.gather(first, batcher.enqueue([image(2)]))

    asyncio.run(run())
    assert recorder.batches == [[1, 2]]


def test_a_batch_doesnt_wait_for_nobody() -> None:
    recorder = Recorder()

    async def run() -> None:
        async with (
            asyncio.timeout(10),
            batcher_of(recorder, max_batch_size=8, max_wait_seconds=30) as batcher,
        ):
            assert await ask(batcher, [1]) == [2]
            with batcher.admit(1):
                second = asyncio.create_task(ask(batcher, [2]))
                await asyncio.sleep(0.05)
                assert not second.done()
            # The one that was being decoded turned out to be no image.
            assert await second == [4]

    asyncio.run(run())
    assert recorder.batches == [[1], [2]]


def test_beyond_its_limit_it_refuses_at_once_and_has_room_again_later() -> None:
    recorder = Recorder()
    recorder.gate.clear()

    async def run() -> None:
        limits = {"max_queue_size": 3, "retry_after_seconds": 7}
        async with batcher_of(recorder, **limits) as batcher:
            taken = asyncio.create_task(ask(batcher, [1, 2]))
            await until_started(recorder)
            with pytest.raises(OverloadedError) as refusal:
                await ask(batcher, [3, 4])
            assert (refusal.value.reason, refusal.value.retry_after_seconds) == ("queue_full", 7)
            fits = asyncio.create_task(ask(batcher, [5]))
            recorder.gate.set()
            assert await taken == [2, 4]
            assert await fits == [10]
            assert await ask(batcher, [3, 4, 5]) == [6, 8, 10]

    asyncio.run(run())


@pytest.mark.parametrize("num_images", [0, 4])
def test_a_request_that_could_never_fit_is_the_clients_mistake(num_images: int) -> None:
    async def run() -> None:
        async with batcher_of(Recorder(), max_queue_size=3) as batcher:
            with pytest.raises(BadRequestError, match="1 to 3 images"):
                await ask(batcher, range(num_images))

    asyncio.run(run())


def test_an_image_that_fails_doesnt_fail_its_neighbours() -> None:
    recorder = Recorder(poison=2)

    async def run() -> list[Any]:
        async with batcher_of(recorder, max_batch_size=3, max_wait_seconds=30) as batcher:
            return await asyncio.gather(
                *(ask(batcher, [n]) for n in (1, 2, 3)), return_exceptions=True
            )

    first, second, third = asyncio.run(run())
    assert (first, third) == ([2], [6])
    assert isinstance(second, ValueError)
    assert recorder.batches[0] == [1, 2, 3]


def test_images_whose_sender_left_are_not_run() -> None:
    recorder = Recorder()
    recorder.gate.clear()

    async def run() -> None:
        async with batcher_of(recorder, max_batch_size=1) as batcher:
            first = asyncio.create_task(ask(batcher, [1]))
            await until_started(recorder)
            leaves = asyncio.create_task(ask(batcher, [2]))
            await asyncio.sleep(0)
            leaves.cancel()
            stays = asyncio.create_task(ask(batcher, [3]))
            await asyncio.sleep(0)
            recorder.gate.set()
            assert await asyncio.gather(first, stays) == [[2], [6]]

    asyncio.run(run())
    assert recorder.batches == [[1], [3]]


def test_closing_finishes_what_was_taken_in_and_takes_no_more() -> None:
    recorder = Recorder()
    recorder.gate.clear()

    async def run() -> None:
        batcher = batcher_of(recorder, max_batch_size=1)
        async with batcher:
            taken = [asyncio.create_task(ask(batcher, [n])) for n in (1, 2)]
            await until_started(recorder)
            closing = asyncio.create_task(batcher.__aexit__(None, None, None))
            await asyncio.sleep(0)
            assert not batcher.is_running
            with pytest.raises(OverloadedError) as refusal:
                await ask(batcher, [3])
            assert refusal.value.reason == "stopping"
            recorder.gate.set()
            assert await asyncio.gather(*taken) == [[2], [4]]
            await closing

    asyncio.run(run())
    assert recorder.batches == [[1], [2]]


def test_it_counts_batches_and_waiting_images() -> None:
    recorder = Recorder()
    recorder.gate.clear()

    def value(name: str) -> float | None:
        return REGISTRY.get_sample_value(f"clipmill_serve_{name}", {"model": "counted"})

    async def run() -> None:
        async with batcher_of(recorder, model="counted", max_batch_size=2) as batcher:
            first = asyncio.create_task(ask(batcher, [1, 2]))
            await until_started(recorder)
            second = asyncio.create_task(ask(batcher, [3]))
            await asyncio.sleep(0)
            assert batcher.depth == 1
            recorder.gate.set()
            await asyncio.gather(first, second)
            assert batcher.depth == 0

    asyncio.run(run())
    assert (value("batch_size_count"), value("batch_size_sum")) == (2, 3)
    assert value("queue_wait_seconds_count") == 3
    assert value("infer_seconds_count") == 2

"""A queue of calls run by many threads, with a limit for each group and one for their results."""

import heapq
import threading
from collections import Counter, defaultdict, deque
from collections.abc import Callable
from concurrent.futures import CancelledError

from clipmill.data.sources.base import RawPair


class Task:
    """A call of the queue."""

    def __init__(
        self, queue: "FetchQueue", number: int, group: str, call: Callable[[], RawPair]
    ) -> None:
        self.number = number
        self.group = group
        self._queue = queue
        self._call = call
        self._done = threading.Event()
        self._pair: RawPair | None = None
        self._error: BaseException | None = None

    def run(self) -> int:
        """Make the call; return the bytes of its image."""
        try:
            self._pair = self._call()
        except BaseException as error:  # noqa: BLE001  # raised where the result is read
            self._error = error
        self._done.set()
        return self.num_bytes

    def cancel(self) -> None:
        """Let nobody wait for the result, whether or not the call has begun."""
        self._error = CancelledError()
        self._done.set()

    @property
    def num_bytes(self) -> int:
        """Bytes of the image, which the queue holds until the result is read."""
        return len(self._pair.image_bytes) if self._pair else 0

    def result(self) -> RawPair:
        """Wait for the call; return its result once, or raise its error."""
        self._queue.want(self)
        self._done.wait()
        self._queue.release(self.num_bytes)
        pair, self._pair = self._pair, None
        if self._error is not None:
            raise self._error
        assert pair is not None
        return pair


class FetchQueue:
    """Runs calls in the order of their submission, as far as their groups have room.

    No call begins while results of ``max_bytes`` wait to be read, unless it is waited for. Threads
    are daemons, so that an interrupted process ends without waiting for servers.
    """

    def __init__(self, num_threads: int, per_group: int, max_bytes: int) -> None:
        self._num_threads = num_threads
        self._per_group = per_group
        self._max_bytes = max_bytes
        self._condition = threading.Condition()
        self._waiting: defaultdict[str, deque[Task]] = defaultdict(deque)
        self._active = Counter[str]()
        # First task of each group that has room and something to do.
        self._ready: list[tuple[int, str]] = []
        self._unfinished: dict[int, Task] = {}
        self._num_tasks = 0
        self._num_bytes = 0
        self._last_wanted = -1
        self._threads: list[threading.Thread] = []
        self._is_closed = False

    def submit(self, group: str, call: Callable[[], RawPair]) -> Task:
        """Add a call."""
        with self._condition:
            task = Task(self, self._num_tasks, group, call)
            self._num_tasks += 1
            self._unfinished[task.number] = task
            waiting = self._waiting[group]
            waiting.append(task)
            if len(waiting) == 1:
                self._offer(group)
            if len(self._threads) < self._num_threads:
                thread = threading.Thread(target=self._work, name="clipmill-fetch", daemon=True)
                self._threads.append(thread)
                thread.start()
            self._condition.notify()
        return task

    def close(self) -> None:
        """End the threads; calls that haven't ended are cancelled."""
        with self._condition:
            self._is_closed = True
            for task in self._unfinished.values():
                task.cancel()
            self._condition.notify_all()

    def want(self, task: Task) -> None:
        """Let a task, and those before it, begin whatever waits to be read."""
        with self._condition:
            if task.number > self._last_wanted:
                self._last_wanted = task.number
                self._condition.notify()

    def release(self, num_bytes: int) -> None:
        """Note that a result was read."""
        with self._condition:
            self._num_bytes -= num_bytes
            self._condition.notify()

    def _offer(self, group: str) -> None:
        """List a group if it has both a task and room."""
        if self._waiting[group] and self._active[group] < self._per_group:
            heapq.heappush(self._ready, (self._waiting[group][0].number, group))

    def _may_begin(self) -> bool:
        if not self._ready:
            return False
        return self._num_bytes < self._max_bytes or self._ready[0][0] <= self._last_wanted

    def _work(self) -> None:
        while True:
            with self._condition:
                while not self._may_begin():
                    if self._is_closed:
                        return
                    self._condition.wait()
                if self._is_closed:
                    return
                _, group = heapq.heappop(self._ready)
                task = self._waiting[group].popleft()
                self._active[group] += 1
                self._offer(group)
                if self._may_begin():
                    self._condition.notify()
            num_bytes = task.run()
            with self._condition:
                self._num_bytes += num_bytes
                self._finish(task)

    def _finish(self, task: Task) -> None:
        del self._unfinished[task.number]
        group = task.group
        was_full = self._active[group] == self._per_group
        self._active[group] -= 1
        if was_full:
            self._offer(group)
        if not self._active[group] and not self._waiting[group]:
            del self._active[group], self._waiting[group]

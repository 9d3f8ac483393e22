"""Turns and clocks of a contender, which calls this before and after each lap."""

import json
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, TextIO

from harness.processes import cpu_seconds


class EndOfLapsError(Exception):
    """No more laps are wanted."""


class Session(ABC):
    """A contender's turns: ``start``, work, ``stop``, again until ``start`` raises."""

    def __init__(self) -> None:
        self._clocks = (0.0, 0.0)
        self.pid: int | None = None
        """Process whose tree's CPU time and memory count, such as a server's; None for this one."""

    def start(self) -> None:
        """Wait for the turn, and start the clocks.

        Raises:
            EndOfLapsError: no more laps are wanted.
        """
        if not self._wait():
            raise EndOfLapsError
        self._clocks = time.perf_counter(), cpu_seconds(self.pid)

    def stop(self, count: float) -> None:
        """Stop the clocks after ``count`` units of work."""
        wall, cpu = self._clocks
        seconds, spent = time.perf_counter() - wall, cpu_seconds(self.pid) - cpu
        self._send({"seconds": seconds, "cpu_seconds": spent, "count": count})

    def run(self, lap: Callable[[], float]) -> None:
        """Run a function, which returns the units that it did, until no more laps are wanted."""
        while True:
            self.start()
            self.stop(lap())

    def answer(self, **values: Any) -> None:
        """Tell what came out, for comparison with the other contenders; before the first lap."""
        self._send({"answer": values, "pid": self.pid})

    @abstractmethod
    def _wait(self) -> bool:
        """Return once a lap is wanted, or false where none is any more."""

    @abstractmethod
    def _send(self, message: dict[str, Any]) -> None:
        """Hand over what was measured or answered."""


class PipeSession(Session):
    """Turns given by another process: a line for each lap, the end of the stream for the end."""

    def __init__(self, turns: TextIO, results: TextIO) -> None:
        super().__init__()
        self._turns, self._results = turns, results

    def _wait(self) -> bool:
        return bool(self._turns.readline())

    def _send(self, message: dict[str, Any]) -> None:
        self._results.write(json.dumps(message) + "\n")
        self._results.flush()


class LocalSession(Session):
    """So many laps in this process, one after another."""

    def __init__(self, num_laps: int) -> None:
        super().__init__()
        self._left = num_laps
        self.messages: list[dict[str, Any]] = []

    def _wait(self) -> bool:
        self._left -= 1
        return self._left >= 0

    def _send(self, message: dict[str, Any]) -> None:
        self.messages.append(message)

"""SIGTERM, as Kubernetes sends before it kills: noted, and acted on between two steps."""

import signal
import threading
from types import FrameType, TracebackType
from typing import Any, Self


class StopSignal:
    """Context manager: while it lasts, SIGTERM only sets :attr:`requested`.

    Only a process's main thread can take signals; elsewhere it does nothing.
    """

    def __init__(self) -> None:
        self.requested = False
        self._before: Any = None
        self._is_main = threading.current_thread() is threading.main_thread()

    def __enter__(self) -> Self:
        if self._is_main:
            self._before = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_main:
            signal.signal(signal.SIGTERM, self._before)

    def _note(self, number: int, frame: FrameType | None) -> None:
        del number, frame
        self.requested = True

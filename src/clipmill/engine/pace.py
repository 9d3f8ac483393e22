"""How fast a run goes, and what it waits for, between two records of its log."""

import time


class Pace:
    """Wall time since the last record; the host waits for the device only where it records."""

    def __init__(self) -> None:
        self._started = time.perf_counter()
        self._samples = 0
        self._steps = 0
        self._waited = 0.0
        self._paused = 0.0

    def add(self, num_samples: int, data_seconds: float) -> None:
        """Note an update."""
        self._samples += num_samples
        self._steps += 1
        self._waited += data_seconds

    def pause(self, seconds: float) -> None:
        """Leave out what isn't training: an evaluation."""
        self._paused += seconds

    def read(self, flops: float | None, peak: float | None) -> dict[str, float]:
        """Speed since the last reading.

        Samples a second, the share of time that data was waited for, and the utilisation where a
        step's FLOPs and the peak of the rank's device are known.
        """
        now = time.perf_counter()
        seconds = max(now - self._started - self._paused, 1e-9)
        found = {
            "samples_per_second": self._samples / seconds,
            "data_wait": self._waited / seconds,
        }
        if flops is not None and peak is not None:
            found["mfu"] = flops * self._steps / seconds / peak
        self._started, self._samples, self._steps = now, 0, 0
        self._waited = self._paused = 0.0
        return found

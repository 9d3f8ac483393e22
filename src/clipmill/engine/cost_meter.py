"""Measures the cost of a run while it trains: wall time of its devices, and their energy.

Energy is read where the hardware counts it, and never estimated: NVML's counter of each GPU
(``nvmlDeviceGetTotalEnergyConsumption``, Volta and later), or RAPL's of a machine's CPU packages
(``/sys/class/powercap``, mostly readable by root alone), which includes other processes.
"""

import ctypes
import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import torch

from clipmill.cost import COST_FILE, CostSession, DevicePrice, RunCost, cost_json, read_sessions
from clipmill.engine.distributed import DistributedContext
from clipmill.errors import ArtifactError, StorageError
from clipmill.processes import cpu_model, local_rank
from clipmill.storage import join, write_json

_LOG = logging.getLogger(__name__)

ReadEnergy = Callable[[], float | None]
"""Returns joules since some earlier moment; None where they can't be read."""
_POWERCAP: Final = Path("/sys/class/powercap")
_NUM_MARKS: Final = 16
_MIN_INTERVAL_SECONDS: Final = 0.05


class RaplCounter:
    """Energy of this machine's CPU packages since the counter was made."""

    def __init__(self, root: Path = _POWERCAP) -> None:
        self._zones = [
            zone
            for zone in sorted(root.glob("intel-rapl:*"))
            # Zones below a package are parts of it, and psys includes the packages.
            if zone.name.count(":") == 1 and _read(zone / "name").startswith("package")
        ]
        self._last = [_read_number(zone / "energy_uj") for zone in self._zones]
        self._ranges = [_read_number(zone / "max_energy_range_uj") for zone in self._zones]
        self._microjoules = 0

    def __call__(self) -> float | None:
        """Return joules; to be called more often than the counter overflows, in minutes."""
        current = [_read_number(zone / "energy_uj") for zone in self._zones]
        if not current or None in current + self._last + self._ranges:
            return None
        for before, now, whole in zip(self._last, current, self._ranges, strict=True):
            assert before is not None
            assert now is not None
            assert whole is not None
            self._microjoules += now - before if now >= before else now - before + whole
        self._last = current
        return self._microjoules / 1e6


class NvmlCounter:
    """Energy of a GPU since the counter was made."""

    def __init__(self, uuid: str, library: str = "libnvidia-ml.so.1") -> None:
        """``uuid`` names the GPU, as ``GPU-...``, whichever GPUs are visible to CUDA."""
        self._nvml: ctypes.CDLL | None = None
        self._handle = ctypes.c_void_p()
        try:
            nvml = ctypes.CDLL(library)
            handle = ctypes.byref(self._handle)
            if nvml.nvmlInit_v2() == 0 == nvml.nvmlDeviceGetHandleByUUID(uuid.encode(), handle):
                self._nvml = nvml
        except (OSError, AttributeError):  # no driver, or an old one
            pass
        self._first = self._read_millijoules()

    def __call__(self) -> float | None:
        """Return joules."""
        now = self._read_millijoules()
        return None if now is None or self._first is None else (now - self._first) / 1e3

    def _read_millijoules(self) -> int | None:
        if self._nvml is None:
            return None
        value = ctypes.c_ulonglong()
        code = self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle, ctypes.byref(value))
        return None if code else value.value


def open_energy_counter(dist: DistributedContext) -> ReadEnergy:
    """Return the counter of this rank's own device; of a CPU the first rank's of its machine."""
    if dist.device.type == "cuda":
        return NvmlCounter(f"GPU-{torch.cuda.get_device_properties(dist.device).uuid}")
    return RaplCounter() if local_rank() == 0 else lambda: 0.0


class CostMeter:
    """Context manager with a thread that keeps a run's ``cost.json`` up to date, on rank 0."""

    def __init__(
        self,
        uri: str,
        dist: DistributedContext,
        *,
        interval_seconds: float,
        read_energy: ReadEnergy,
    ) -> None:
        """Begin a session; ``uri`` is the folder of the unfinished run.

        ``read_energy`` returns the energy of all ranks' devices. Raises ConfigError where the
        price of a device hour can't be understood.
        """
        price = DevicePrice.from_environment()
        self._is_first = dist.rank == 0
        self._uri = uri
        self._interval_seconds = max(interval_seconds, _MIN_INTERVAL_SECONDS)
        self._read_energy = read_energy
        self._clock = time.monotonic()
        is_gpu = dist.device.type == "cuda"
        self._session = CostSession(
            started=time.time(),
            device=torch.cuda.get_device_name(dist.device)
            if is_gpu
            else f"CPU core ({cpu_model()})",
            num_devices=dist.world_size * (1 if is_gpu else torch.get_num_threads()),
            first_step=0,
            last_step=0,
            energy_source="NVML" if is_gpu else "RAPL",
            price=price.amount if price else None,
            currency=price.currency if price else "",
        )
        self._earlier: list[CostSession] = []
        self._lock = threading.Lock()
        self._was_warned = False
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True, name="clipmill-cost")

    @property
    def cost(self) -> RunCost:
        """The run's cost so far."""
        session = self._session
        with self._lock:
            session.seconds = time.monotonic() - self._clock
            session.energy_joules = self._read_energy()
        return RunCost((*self._earlier, session))

    def start(self, step: int) -> None:
        """Add to the earlier sessions one that begins after so many updates, on rank 0."""
        if not self._is_first:
            return
        try:
            self._earlier = read_sessions(self._uri)
        except (ArtifactError, StorageError) as error:
            _LOG.warning("the cost of this run before its restart is lost: %s", error.what)
        for session in self._earlier:
            session.lose_from(step)
        self._session.first_step = self._session.last_step = step
        self._write()

    def set_step(self, step: int) -> None:
        """Set the number of updates done; takes no noticeable time."""
        self._session.last_step = step

    def mark_checkpoint(self, step: int) -> None:
        """Remember when a checkpoint was taken, from which a later session may begin."""
        mark = (step, time.monotonic() - self._clock)
        self._session.marks = [*self._session.marks[1 - _NUM_MARKS :], mark]

    def __enter__(self) -> Self:
        if self._is_first:
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._is_first:
            self._end.set()
            self._thread.join()
            self._write()

    def _watch(self) -> None:
        while not self._end.wait(self._interval_seconds):
            self._write()

    def _write(self) -> None:
        """Write the sessions; a failure is only a warning, once."""
        try:
            write_json(join(self._uri, COST_FILE), cost_json(self.cost.sessions))
        except StorageError as error:
            if not self._was_warned:
                _LOG.warning("the cost of this run can't be written now: %s", error.what)
            self._was_warned = True


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def _read_number(path: Path) -> int | None:
    text = _read(path)
    return int(text) if text.isdecimal() else None

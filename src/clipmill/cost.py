"""Cost of training runs: device hours, energy, price, restarts and work done twice.

A run's folder holds ``cost.json`` (in ``state`` while it is unfinished): one session for each time
that its processes started. Rank 0 rewrites it every few seconds, so that a killed process loses
what came since (see :class:`~clipmill.engine.cost_meter.CostMeter`).

A device is a GPU; on a machine without, a CPU core that a rank's threads use.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Self

from clipmill.errors import ArtifactError, ConfigError, NotFoundError
from clipmill.storage import join, read_json

COST_FILE: Final = "cost.json"
PRICE_VARIABLE: Final = "CLIPMILL_DEVICE_PRICE"
"""Environment variable with the price of a device hour, such as ``2.50 USD``."""
FORMAT: Final = 1
_SECONDS: Final = 3600
_JOULES: Final = 3.6e6
_PRICE: Final = re.compile(r"(\d+(?:\.\d+)?)\s+([A-Z]{3})")


@dataclass(frozen=True, slots=True)
class DevicePrice:
    """Price of a device hour."""

    amount: float
    """Price in the currency's unit."""
    currency: str
    """Code of three letters, such as ``USD``."""

    @classmethod
    def from_environment(cls) -> Self | None:
        """Return the price that the environment states, None without one.

        Raises:
            ConfigError: it isn't a number and a currency.
        """
        text = os.environ.get(PRICE_VARIABLE, "").strip()
        return cls.parse(text, f"--device-price, or {PRICE_VARIABLE}") if text else None

    @classmethod
    def parse(cls, text: str, place: str) -> Self:
        """Return the price in ``text``; ConfigError, which names its ``place``, for another."""
        match = _PRICE.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"the price of a device hour was {text!r}",
                expected="a number and a currency's code, such as 2.50 USD",
                action=f"correct {place}",
            )
        return cls(float(match[1]), match[2])


@dataclass(kw_only=True, slots=True)
class CostSession:
    """The time from a start of a run's processes to their end, as rank 0 last recorded it."""

    started: float
    """Unix time, seconds."""
    seconds: float = 0.0
    """Wall time so far."""
    device: str
    """Kind of the devices."""
    num_devices: int
    """Devices of all ranks."""
    first_step: int
    """Updates done before."""
    last_step: int
    """Updates done at the last record."""
    energy_joules: float | None = None
    """Energy of all devices so far; None where it can't be read."""
    energy_source: str = ""
    """``NVML`` or ``RAPL``."""
    price: float | None = None
    """Price of a device hour; None where none was configured."""
    currency: str = ""
    """The price's currency."""
    marks: list[tuple[int, float]] = field(default_factory=list)
    """Updates and wall time at the last checkpoints."""
    lost_steps: int = 0
    """Updates that a later session did again."""
    lost_seconds: float = 0.0
    """Wall time of these."""

    @property
    def device_hours(self) -> float:
        """Wall time of all devices together, hours."""
        return self.seconds * self.num_devices / _SECONDS

    def lose_from(self, step: int) -> None:
        """Count what came after ``step``, from which a later session begins, as done again."""
        if self.last_step - self.lost_steps <= step:
            return
        kept = max(step, self.first_step)
        self.lost_steps = self.last_step - kept
        # A checkpoint of an earlier session: nothing of this one is left.
        before = [seconds for mark, seconds in self.marks if mark <= step]
        self.lost_seconds = self.seconds - max(before, default=0.0)


@dataclass(frozen=True, slots=True)
class RunCost:
    """The sessions of a run, and their sums."""

    sessions: tuple[CostSession, ...]

    @property
    def device_hours(self) -> dict[str, float]:
        """Wall time of all devices by their kind, hours."""
        hours: dict[str, float] = {}
        for session in self.sessions:
            hours[session.device] = hours.get(session.device, 0.0) + session.device_hours
        return hours

    @property
    def wall_hours(self) -> float:
        """Wall time of all sessions, hours."""
        return sum(session.seconds for session in self.sessions) / _SECONDS

    @property
    def energy_kwh(self) -> float | None:
        """Energy of the devices, kWh; None if it couldn't be read in some session."""
        joules = [session.energy_joules for session in self.sessions]
        known = [value for value in joules if value is not None]
        return sum(known) / _JOULES if len(known) == len(joules) else None

    @property
    def prices(self) -> dict[str, float]:
        """Price by currency; empty if some session had no price configured."""
        prices: dict[str, float] = {}
        for session in self.sessions:
            if session.price is None:
                return {}
            amount = session.price * session.device_hours
            prices[session.currency] = prices.get(session.currency, 0.0) + amount
        return prices

    @property
    def num_restarts(self) -> int:
        """Starts after the first one."""
        return len(self.sessions) - 1

    @property
    def lost_steps(self) -> int:
        """Updates that were done again after restarts."""
        return sum(session.lost_steps for session in self.sessions)

    @property
    def lost_seconds(self) -> float:
        """Wall time of these updates."""
        return sum(session.lost_seconds for session in self.sessions)

    def to_json(self) -> dict[str, Any]:
        """Return the sums as plain JSON values."""
        return {
            "device_hours": self.device_hours,
            "wall_hours": self.wall_hours,
            "energy_kwh": self.energy_kwh,
            "price": self.prices or None,
            "restarts": self.num_restarts,
            "lost_steps": self.lost_steps,
            "lost_seconds": self.lost_seconds,
        }

    def to_metrics(self) -> dict[str, float]:
        """Return the sums as numbers, without those that aren't known."""
        energy = {} if self.energy_kwh is None else {"cost/energy_kwh": self.energy_kwh}
        return {
            "cost/device_hours": sum(self.device_hours.values()),
            "cost/restarts": float(self.num_restarts),
            "cost/lost_steps": float(self.lost_steps),
            "cost/lost_seconds": self.lost_seconds,
            **energy,
            **{f"cost/price_{currency}": amount for currency, amount in self.prices.items()},
        }


def cost_json(sessions: Sequence[CostSession]) -> dict[str, Any]:
    """Return the content of ``cost.json``."""
    return {"format": FORMAT, "sessions": [asdict(session) for session in sessions]}


def read_sessions(uri: str) -> list[CostSession]:
    """Read the sessions in a folder's ``cost.json``; none where it doesn't exist.

    Raises:
        ArtifactError: the file isn't as it was written.
    """
    path = join(uri, COST_FILE)
    try:
        value: Mapping[str, Any] = read_json(path)
    except NotFoundError:
        return []
    try:
        if value["format"] != FORMAT:
            raise ValueError(f"format {value['format']}")  # noqa: TRY301
        sessions = [CostSession(**session) for session in value["sessions"]]
        for session in sessions:
            session.marks = [(int(step), float(seconds)) for step, seconds in session.marks]
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ArtifactError(
            f"{path} can't be read: {error}",
            expected=f"sessions of a run in format {FORMAT}",
            action="delete it; the cost of the run so far is then unknown",
        ) from error
    return sessions


def read_cost(uri: str) -> RunCost | None:
    """Return the cost that a folder's ``cost.json`` holds; None without one.

    Raises:
        ArtifactError: the file isn't as it was written.
    """
    sessions = read_sessions(uri)
    return RunCost(tuple(sessions)) if sessions else None

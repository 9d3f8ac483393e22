"""Cases of the benchmarks: contenders, sizes and bars."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.session import Session

Sizes = Mapping[str, int]
"""Numbers that a case takes, such as samples or steps, by name."""
Run = Callable[[Path, Sizes, Session], None]
"""Sets up in the case's folder, gives its answer, and runs laps until the session ends."""
LIMIT = "limit"
"""Name of the smallest program that must do the same work."""


def nothing(_folder: Path, _sizes: Sizes) -> None:
    """Prepare nothing."""


@dataclass(frozen=True, kw_only=True)
class Contender:
    """One program of a case."""

    name: str
    """As the table shows it; ``limit`` for the smallest program."""
    run: Run
    """The program."""
    packages: tuple[str, ...] = ()
    """Distributions whose versions are recorded."""
    settings: str = ""
    """Its setup, in a few words."""
    at_least: float | None = None
    """The bar: how many times its rate ours shall have."""
    environment: str = "peers"
    """Name of the environment that it needs."""


@dataclass(frozen=True, kw_only=True)
class Case:
    """A comparison on one machine, of programs that take turns; the first of them is ours."""

    name: str
    """As the table shows it."""
    unit: str
    """Unit of the count, in the plural."""
    contenders: tuple[Contender, ...]
    """Ours first."""
    sizes: Sizes
    """Sizes of a full run."""
    tiny: Sizes
    """Sizes of a test that takes seconds."""
    prepare: Callable[[Path, Sizes], None] = nothing
    """Writes what all contenders read."""
    tolerances: Mapping[str, float] = field(default_factory=dict)
    """Relative differences that answers may have, by name; others must be equal."""
    rounds: int = 5
    """Laps of each contender."""
    at_most_seconds: float | None = None
    """The bar of a case without peers: seconds of one unit."""
    over_limit_seconds: float | None = None
    """A further bar: seconds of one unit over the limit's."""


def difference(case: Case, ours: Mapping[str, Any], other: Mapping[str, Any]) -> str:
    """Say how two answers differ in what both tell; empty where they don't."""
    common = ours.keys() & other.keys()
    if not common:
        return f"nothing to compare: {sorted(ours)} and {sorted(other)}"
    for name in sorted(common):
        mine, its = ours[name], other[name]
        tolerance = case.tolerances.get(name)
        if tolerance is None:
            is_equal = mine == its
        else:
            is_equal = abs(mine - its) <= tolerance * max(abs(mine), abs(its))
        if not is_equal:
            return f"{name} is {its}, ours {mine}"
    return ""

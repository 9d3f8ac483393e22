"""What ``telemetry.py`` defines, section by section: the one source of rules and dashboards."""

from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Literal

from clipmill import telemetry


@dataclass(frozen=True, kw_only=True, slots=True)
class Metric:
    """A metric as Prometheus shows it."""

    name: str
    """Name of the family, a counter's ``_total`` included."""
    kind: Literal["gauge", "counter", "histogram"]
    """What it is."""
    meaning: str
    """Its documentation."""
    labels: tuple[str, ...]
    """Names of its labels."""

    @property
    def series(self) -> tuple[str, ...]:
        """Names under which it is queried."""
        if self.kind == "histogram":
            return tuple(f"{self.name}_{part}" for part in ("bucket", "count", "sum"))
        return (self.name,)


@cache
def sections() -> dict[str, tuple[Metric, ...]]:
    """Metrics by section: ``train``, ``data``, ``serving`` and whatever else telemetry has.

    A section is a cached function of telemetry whose name ends in ``_metrics``.
    """
    found = {}
    for name, make in sorted(vars(telemetry).items()):
        if name.endswith("_metrics") and hasattr(make, "cache_clear"):
            section = make()
            found[name.removesuffix("_metrics")] = tuple(
                _metric(getattr(section, field.name)) for field in fields(section)
            )
    return found


def all_series() -> frozenset[str]:
    """Each name that may be queried."""
    return frozenset(s for metrics in sections().values() for m in metrics for s in m.series)


def _metric(collector: Any) -> Metric:
    (family,) = collector.describe()
    kind = family.type
    name = f"{family.name}_total" if kind == "counter" else family.name
    labels = tuple(collector._labelnames)  # noqa: SLF001  # told nowhere else
    return Metric(name=name, kind=kind, meaning=family.documentation, labels=labels)

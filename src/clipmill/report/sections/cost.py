"""Section of what training runs cost: devices, energy, price, restarts and work done again."""

from collections.abc import Mapping
from typing import Final

from clipmill.cost import RunCost, read_cost
from clipmill.errors import ArtifactError
from clipmill.report.format import format_duration
from clipmill.report.html.page import Section, concat, empty_section, paragraph, section, table

HEADER: Final = (
    "Device hours",
    "Wall hours",
    "Energy",
    "Price",
    "Restarts",
    "Steps redone",
    "Time redone",
)


def stored_cost(uri: str) -> RunCost | None:
    """Return what a finished training cost; None where that isn't known."""
    try:
        return read_cost(uri)
    except ArtifactError:
        return None


def cost_cells(cost: RunCost | None) -> list[str]:
    """Return the cells of a run below :data:`HEADER`."""
    if cost is None:
        return ["not recorded", *[""] * (len(HEADER) - 1)]
    hours = ", ".join(f"{_amount(value, 3)} of {kind}" for kind, value in cost.device_hours.items())
    prices = ", ".join(
        f"{_amount(amount, 2)} {currency}" for currency, amount in cost.prices.items()
    )
    return [
        hours,
        _amount(cost.wall_hours, 3),
        "not readable" if cost.energy_kwh is None else f"{_amount(cost.energy_kwh, 3)} kWh",
        prices or "not configured",
        f"{cost.num_restarts:,}",
        f"{cost.lost_steps:,}",
        format_duration(cost.lost_seconds),
    ]


def _amount(value: float, decimals: int) -> str:
    """Format an amount; one that would be rounded to 0 is below what can be shown."""
    smallest = 10.0**-decimals
    if 0 < value < smallest:
        return f"below {smallest:.{decimals}f}"
    return f"{value:,.{decimals}f}"


def cost_section(costs: Mapping[str, RunCost | None]) -> Section:
    """Return the section ``Cost`` of training runs by name."""
    if not any(costs.values()):
        return section("cost", "Cost", empty_section("No training recorded what it cost."))
    text = (
        "Wall time of all starts, restarts included, times devices; a device is a GPU, or a CPU "
        "core without one. Steps that were done again after a restart are part of it."
    )
    rows = [[name, *cost_cells(cost)] for name, cost in costs.items()]
    body = table("Training runs.", ["Run", *HEADER], rows, class_="small")
    return section("cost", "Cost", concat(paragraph(text), body))

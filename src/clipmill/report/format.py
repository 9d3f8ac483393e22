"""How figures of merit are named, rounded and compared on the page."""

from dataclasses import dataclass

NO_BREAK = "\u00a0"
MINUS = "\u2212"
_DECIMALS = {"%": 1}
_OTHER_DECIMALS = 3


@dataclass(frozen=True, slots=True)
class Figure:
    """A figure as people read it."""

    title: str
    """Its usual spelling."""
    unit: str
    """What follows the number; empty for a plain ratio."""
    higher_is_better: bool | None
    """Direction of better; None where we don't know the figure."""

    @property
    def decimals(self) -> int:
        """Digits after the point that are shown; results that agree in them are tied."""
        return _DECIMALS.get(self.unit, _OTHER_DECIMALS)

    def text(self, value: float) -> str:
        """The number with its unit: ``34.0 %``."""
        return f"{value:.{self.decimals}f}{NO_BREAK}{self.unit}".rstrip()

    def gain(self, value: float, over: float) -> float:
        """How much better ``value`` is, of what is shown: exactly 0 for a tie, negative if worse.

        Zero, too, for a figure whose direction isn't known.
        """
        if self.higher_is_better is None:
            return 0.0
        change = round(value, self.decimals) - round(over, self.decimals)
        return round(change if self.higher_is_better else -change, self.decimals)

    def change(self, value: float, over: float) -> str:
        """The signed difference of what is shown, without its unit: ``+2.8``, ``±0``."""
        change = round(round(value, self.decimals) - round(over, self.decimals), self.decimals)
        if change == 0:
            return "±0"
        sign = "+" if change > 0 else MINUS
        return f"{sign}{abs(change):.{self.decimals}f}"

    @property
    def change_unit(self) -> str:
        """Unit of a difference; that of two percentages is in points."""
        return "points" if self.unit == "%" else self.unit


_FIGURES = {
    "mIoU": Figure("mIoU", "%", True),
    "mAcc": Figure("mean class accuracy", "%", True),
    "aAcc": Figure("pixel accuracy", "%", True),
    "box_mAP": Figure("box mAP", "%", True),
    "mask_mAP": Figure("mask mAP", "%", True),
    "top1": Figure("top-1", "%", True),
    "top5": Figure("top-5", "%", True),
    "rmse": Figure("RMSE", "m", False),
    "rmse_log": Figure("RMSE of logarithms", "", False),
    "abs_rel": Figure("absolute relative error", "", False),
    "sq_rel": Figure("squared relative error", "m", False),
    "log10": Figure("error of log₁₀", "", False),
    "silog": Figure("scale-invariant log error", "", False),
    "d1": Figure("δ < 1.25", "", True),
    "d2": Figure("δ < 1.25²", "", True),
    "d3": Figure("δ < 1.25³", "", True),
}


def figure_named(name: str) -> Figure:
    """The figure of that name; an unknown one is shown under it, and not judged."""
    return _FIGURES.get(name, Figure(name, "", None))

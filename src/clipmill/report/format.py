"""Formats of reports: names, rounding and comparison of metrics, lists of words, durations."""

from collections.abc import Sequence
from dataclasses import dataclass

NO_BREAK = "\u00a0"
MINUS = "\u2212"
_DECIMALS = {"%": 1}
_OTHER_DECIMALS = 3


@dataclass(frozen=True, slots=True)
class MetricFormat:
    """Display format of a metric."""

    title: str
    """Usual spelling of its name."""
    unit: str
    """Unit after the number; empty for a plain ratio."""
    higher_is_better: bool | None
    """Direction of improvement; None for an unknown metric."""

    @property
    def decimals(self) -> int:
        """Digits shown after the point; results equal in them are tied."""
        return _DECIMALS.get(self.unit, _OTHER_DECIMALS)

    def text(self, value: float) -> str:
        """Format a value with its unit: ``34.0 %``."""
        return f"{value:.{self.decimals}f}{NO_BREAK}{self.unit}".rstrip()

    def improvement(self, value: float, baseline: float) -> float:
        """Return how much better ``value`` is, as shown: 0 for a tie, negative if worse.

        0, too, for a metric whose direction isn't known.
        """
        if self.higher_is_better is None:
            return 0.0
        change = round(value, self.decimals) - round(baseline, self.decimals)
        return round(change if self.higher_is_better else -change, self.decimals)

    def change(self, value: float, baseline: float) -> str:
        """Format the signed difference as shown, without its unit: ``+2.8``, ``±0``."""
        change = round(round(value, self.decimals) - round(baseline, self.decimals), self.decimals)
        if change == 0:
            return "±0"
        sign = "+" if change > 0 else MINUS
        return f"{sign}{abs(change):.{self.decimals}f}"

    @property
    def change_unit(self) -> str:
        """Unit of a difference; points for percentages."""
        return "points" if self.unit == "%" else self.unit


_FORMATS = {
    "mIoU": MetricFormat("mIoU", "%", True),
    "mAcc": MetricFormat("mean class accuracy", "%", True),
    "aAcc": MetricFormat("pixel accuracy", "%", True),
    "box_mAP": MetricFormat("box mAP", "%", True),
    "mask_mAP": MetricFormat("mask mAP", "%", True),
    "top1": MetricFormat("top-1", "%", True),
    "top5": MetricFormat("top-5", "%", True),
    "rmse": MetricFormat("RMSE", "m", False),
    "rmse_log": MetricFormat("RMSE of logarithms", "", False),
    "abs_rel": MetricFormat("absolute relative error", "", False),
    "sq_rel": MetricFormat("squared relative error", "m", False),
    "log10": MetricFormat("error of log₁₀", "", False),
    "silog": MetricFormat("scale-invariant log error", "", False),
    "d1": MetricFormat("δ < 1.25", "", True),
    "d2": MetricFormat("δ < 1.25²", "", True),
    "d3": MetricFormat("δ < 1.25³", "", True),
}


def metric_format(name: str) -> MetricFormat:
    """Return the format of a metric; an unknown one has its name and no direction."""
    return _FORMATS.get(name, MetricFormat(name, "", None))


def join_words(words: Sequence[str]) -> str:
    """Join words: ``a``, ``a and b``, ``a, b and c``."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last


def format_duration(seconds: float) -> str:
    """Format a duration: ``0.4 s``, ``12 s``, ``2 min 05 s``, ``1 h 02 min``."""
    if seconds < 9.95:
        return f"{seconds:.1f}\u00a0s"
    rounded = round(seconds)
    if rounded < 60:
        return f"{rounded}\u00a0s"
    minutes, rest = divmod(rounded, 60)
    if minutes < 60:
        return f"{minutes}\u00a0min {rest:02d}\u00a0s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours}\u00a0h {minutes:02d}\u00a0min"

"""How figures are rounded and compared."""

import pytest

from clipmill.report.format import MetricFormat, metric_format

MIOU = metric_format("mIoU")
RMSE = metric_format("rmse")


def test_text_has_the_unit() -> None:
    assert MIOU.text(34.04).replace("\u00a0", " ") == "34.0 %"
    assert RMSE.text(0.9).replace("\u00a0", " ") == "0.900 m"
    assert metric_format("d1").text(0.5) == "0.500"


@pytest.mark.parametrize(
    ("figure", "value", "over", "gain", "change"),
    [
        (MIOU, 34.0, 31.2, 2.8, "+2.8"),
        (MIOU, 31.2, 34.0, -2.8, "\u22122.8"),
        (RMSE, 0.88, 0.912, 0.032, "\u22120.032"),
        (RMSE, 0.912, 0.88, -0.032, "+0.032"),
        # What is shown decides: these print the same.
        (MIOU, 31.24, 31.16, 0.0, "±0"),
        # And these don't, though they are closer: the difference is that of what is printed.
        (MIOU, 31.26, 31.24, 0.1, "+0.1"),
    ],
)
def test_gain_is_that_of_what_is_shown(
    figure: MetricFormat, value: float, over: float, gain: float, change: str
) -> None:
    assert figure.improvement(value, over) == gain
    assert figure.change(value, over) == change


def test_an_unknown_figure_is_not_judged() -> None:
    assert metric_format("novel").improvement(2.0, 1.0) == 0
    assert metric_format("novel").change(2.0, 1.0) == "+1.000"

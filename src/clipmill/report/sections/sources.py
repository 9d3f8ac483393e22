"""Charts of the sources of a mixture."""

from collections.abc import Mapping, Sequence

from clipmill.report.html.charts import Line, line_chart
from clipmill.report.html.page import Html

_SOURCE_CURVES = {
    "loss": ("Loss by source", "mean over the source's samples"),
    "accuracy": ("Accuracy by source", "images whose own caption is the batch's most similar"),
    "epochs": ("Epochs by source", "samples seen, over those of the source"),
}


def source_charts(log: Sequence[Mapping[str, float]], run: str) -> list[Html]:
    """Return charts of the sources of a run's mixture, by metric; none without a mixture."""
    names = dict.fromkeys(
        key.split("/")[1] for record in log for key in record if key.startswith("source/")
    )
    charts = []
    for metric, (title, note) in _SOURCE_CURVES.items():
        lines = []
        for series, name in enumerate(names):
            key = f"source/{name}/{metric}"
            records = [record for record in log if key in record]
            if records:
                x, y = (tuple(record[k] for record in records) for k in ("step", key))
                lines.append(Line(label=name, x=x, y=y, series=series))
        if lines:
            charts.append(line_chart(title, f"{run}: {note}", lines, x_name="updates"))
    return charts

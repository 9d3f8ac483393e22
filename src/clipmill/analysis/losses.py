"""How the losses of the encoders and of the captioner fell."""

import math
from collections.abc import Mapping

from clipmill.analysis.charts import Line, Reference, line_chart
from clipmill.analysis.page import Html, Section, missing, paragraph, section, tag
from clipmill.analysis.verdict import listed
from clipmill.engine.result import read_log
from clipmill.errors import NotFoundError
from clipmill.models.checkpoint import ModelCard

Log = list[dict[str, float]]


def losses_section(encoders: Mapping[str, ModelCard], captioner: ModelCard | None) -> Section:
    """The section ``Losses``: contrastive losses by kind of caption, totals, the captioner's."""
    logs = {label: _log(card) for label, card in encoders.items()}
    charts = _encoder_charts(encoders, {label: log for label, log in logs.items() if log})
    if captioner is not None and (log := _log(captioner)):
        charts.append(_captioner_chart(log))
    absent = [label for label, log in logs.items() if not log]
    notes = [missing(f"{listed(absent)} left no log.")] if absent else []
    if captioner is None:
        notes.append(missing("No captioner was given."))
    intro = paragraph(
        "Where many values were logged, a bold line is their moving average, over the raw ones."
    )
    return section("losses", "Losses", intro, notes, tag("div", charts, class_="charts"))


def _encoder_charts(encoders: Mapping[str, ModelCard], logs: Mapping[str, Log]) -> list[Html]:
    lines: dict[str, list[Line]] = {"real": [], "synthetic": [], "total": []}
    for series, (label, card) in enumerate(encoders.items()):
        log = logs.get(label)
        if not log:
            continue
        lines["total"].append(_line(label, log, "loss", series))
        for kind in ("real", "synthetic"):
            # The log names the terms only where there are several.
            if f"loss/{kind}" in log[0]:
                lines[kind].append(_line(label, log, f"loss/{kind}", series))
            elif card.recipe.get("view", {}).get("captions") == kind:
                lines[kind].append(_line(label, log, "loss", series))
    titles = {
        "real": ("Contrastive loss on real captions", "what the encoders have in common"),
        "synthetic": ("Contrastive loss on synthetic captions", "for the same pictures"),
        "total": ("Total loss", "the sum of the terms, one for each kind of caption"),
    }
    chance = _chance(encoders)
    return [
        line_chart(
            *titles[kind],
            found,
            x_name="updates",
            reference=None if kind == "total" else chance,
        )
        for kind, found in lines.items()
        if found
    ]


def _chance(encoders: Mapping[str, ModelCard]) -> Reference | None:
    """What guessing among a batch costs: the logarithm of its size."""
    sizes = {card.recipe.get("train", {}).get("batch_size") for card in encoders.values()}
    size = sizes.pop() if len(sizes) == 1 else None
    return Reference(label=f"guessing, ln {size}", y=math.log(size)) if size else None


def _captioner_chart(log: Log) -> Html:
    terms = [name for name in log[0] if name.startswith("loss/")]
    lines = [_line("total", log, "loss", 5)]
    lines += [_line(name.removeprefix("loss/"), log, name, 2 + i) for i, name in enumerate(terms)]
    return line_chart("The captioner's loss", "CoCa, on its own pairs", lines, x_name="updates")


def _line(label: str, log: Log, name: str, series: int) -> Line:
    records = [record for record in log if name in record]
    x, y = (tuple(record[key] for record in records) for key in ("step", name))
    return Line(label=label, x=x, y=y, series=series)


def _log(card: ModelCard) -> Log:
    try:
        return read_log(card.uri)
    except NotFoundError:
        return []

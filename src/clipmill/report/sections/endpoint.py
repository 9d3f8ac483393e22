"""The endpoint: what was asked of it, what it answered, and which models it serves."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clipmill.errors import NotFoundError
from clipmill.report.comparison import TaskComparison
from clipmill.report.format import MetricFormat, metric_format
from clipmill.report.html.page import (
    Html,
    Section,
    details,
    empty_section,
    image_tag,
    section,
    image_row,
    table,
    tag,
)
from clipmill.storage import exists, join, read_bytes, read_json
from clipmill.tasks.evaluation import EvaluationResult
from clipmill.tasks.promotion import read_promotion
from clipmill.tasks.registry import get_task


@dataclass(frozen=True, kw_only=True, slots=True)
class PromotedModel:
    """A promoted model."""

    uri: str
    """Where its promotion's record lies."""
    digest: str
    """The promotion's digest."""
    threshold: float
    """What its gate asked for, in the metric's unit."""
    evaluation: EvaluationResult
    """How it was judged."""
    label: str
    """The report's label whose model it is; empty for an older one."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Endpoint:
    """A served model that was asked once or more."""

    name: str
    """Name of the model at the endpoint, and of its pictures."""
    task: str
    """The task's name."""
    model: str
    """URI of the model."""
    digest: str
    """Its digest, as the endpoint reported it."""
    milliseconds: float
    """Median time of a request."""
    request: str
    """Method and path."""
    curl: str = ""
    """The request as a command; empty where the probe didn't keep it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Probe:
    """What a probe of the endpoints found."""

    uri: str
    """Where it lies."""
    digest: str
    """Its digest."""
    endpoints: tuple[Endpoint, ...]
    """Those that were asked."""
    metrics: str
    """Lines scraped from ``/metrics``."""


def read_smoke_test(uri: str) -> Probe | None:
    """The probe at ``uri``; None if the URI is empty or nothing lies there."""
    if not uri:
        return None
    try:
        value = read_json(join(uri, "probe.json"))
    except NotFoundError:
        return None
    endpoints = tuple(Endpoint(**found) for found in value["endpoints"])
    return Probe(uri=uri, digest=value["digest"], endpoints=endpoints, metrics=value["metrics"])


def read_served(
    promotions: Sequence[str], tasks: Sequence[TaskComparison]
) -> tuple[PromotedModel, ...]:
    """The promoted models, in the order given."""
    labels: Mapping[str, str] = {
        found.model.digest: label for task in tasks for label, found in task.evaluations.items()
    }
    served = []
    for uri in promotions:
        value = read_json(join(uri, "promotion.json"))
        evaluation = read_promotion(uri).evaluation
        served.append(
            PromotedModel(
                uri=uri,
                digest=value["digest"],
                threshold=value["gate"]["threshold"],
                evaluation=evaluation,
                label=labels.get(evaluation.model.digest, ""),
            )
        )
    return tuple(served)


def endpoint_section(probe: Probe | None, served: Sequence[PromotedModel]) -> Section:
    """The section ``Endpoint``."""
    parts = [_promoted(served)] if served else [empty_section("No model was promoted.")]
    if probe is None:
        parts.append(empty_section("The endpoint was not probed."))
    else:
        by_task = {found.evaluation.task: found.evaluation.model.digest for found in served}
        parts += [_answer(probe, found, by_task.get(found.task)) for found in probe.endpoints]
        if probe.metrics:
            parts.append(details("Metrics that it exports", tag("pre", probe.metrics.strip())))
    return section("endpoint", "The endpoint", *parts)


def _promoted(served: Sequence[PromotedModel]) -> Html:
    rows = []
    for found in served:
        metric = get_task(found.evaluation.task).metric
        known = metric_format(metric.name)
        figure = MetricFormat(known.title, metric.unit, metric.higher_is_better)
        sign = "≥" if metric.higher_is_better else "≤"
        rows.append(
            [
                found.evaluation.task,
                found.label or "an earlier model",
                f"{figure.title} {figure.text(found.evaluation.metrics[metric.name])}",
                f"{sign} {figure.text(found.threshold)}",
                tag("code", found.evaluation.model.digest[:12]),
            ]
        )
    head = ["Task", "Promoted", "Judged", "Gate", "Model digest"]
    return table("Models that passed their gate and serve.", head, rows, class_="tight")


def _answer(probe: Probe, found: Endpoint, promoted: str | None) -> Html:
    def shown(part: str, words: str) -> tuple[str, Html]:
        data = read_bytes(join(probe.uri, f"{found.name}-{part}.png"))
        return words, image_tag(data, f"{found.task} endpoint: {words}")

    cells = [shown("image", "sent"), shown("answer", "answered")]
    if exists(join(probe.uri, f"{found.name}-truth.png")):
        cells.append(shown("truth", "truth"))
    if promoted is None:
        check = "no promotion to compare with"
    else:
        check = "the promoted one" if promoted == found.digest else "not the promoted one"
    pairs = {
        "Request": tag("code", found.request),
        "Median time": f"{found.milliseconds:.1f} ms",
        "Model": tag("span", tag("code", found.digest[:12]), f", {check}"),
    }
    return tag(
        "div",
        tag("h3", found.name.capitalize()),
        image_row(cells),
        tag(
            "dl",
            ((tag("dt", name), tag("dd", value)) for name, value in pairs.items()),
            class_="pairs",
        ),
        _command(found.curl) if found.curl else "",
        class_="endpoint",
    )


def _command(curl: str) -> Html:
    words = tag("small", "The request as a command; a click selects it.", class_="soft")
    return tag("div", words, tag("pre", curl, class_="copy", tabindex=0), class_="wide")

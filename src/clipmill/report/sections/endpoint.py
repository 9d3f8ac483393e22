"""Section of the endpoint: promoted models, and their predictions in the smoke test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clipmill.errors import NotFoundError
from clipmill.lineage import read_artifact_file
from clipmill.report.comparison import TaskComparison
from clipmill.report.format import MetricFormat, metric_format
from clipmill.report.html.page import (
    Html,
    Section,
    details,
    empty_section,
    image_row,
    image_tag,
    section,
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
    """URI of the promotion."""
    digest: str
    """Digest of the promotion."""
    threshold: float
    """Value required for promotion, in the metric's unit."""
    evaluation: EvaluationResult
    """Evaluation of the model."""
    label: str
    """Label of the model in the report; empty for an older model."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EndpointInfo:
    """A served model, as queried by the smoke test."""

    name: str
    """Name of the model at the endpoint, and prefix of its image files."""
    task: str
    """The task's name."""
    model: str
    """URI of the model."""
    digest: str
    """Digest of the model, as reported by the endpoint."""
    milliseconds: float
    """Median time of a request."""
    request: str
    """Method and path."""
    curl: str = ""
    """The request as a command; empty where it wasn't recorded."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SmokeTestResult:
    """Result of a smoke test of the endpoints."""

    uri: str
    """Address of the result."""
    digest: str
    """Digest of the result."""
    endpoints: tuple[EndpointInfo, ...]
    """Queried endpoints."""
    metrics: str
    """Lines scraped from ``/metrics``."""


def read_smoke_test_result(uri: str) -> SmokeTestResult | None:
    """Read the smoke test at ``uri``; None if the URI is empty or nothing is there."""
    if not uri:
        return None
    try:
        value = read_artifact_file(uri, "smoke_test.json", "clipmill demo")
    except NotFoundError:
        return None
    endpoints = tuple(EndpointInfo(**endpoint) for endpoint in value["endpoints"])
    return SmokeTestResult(
        uri=uri, digest=value["digest"], endpoints=endpoints, metrics=value["metrics"]
    )


def read_promoted_models(
    promotions: Sequence[str], tasks: Sequence[TaskComparison]
) -> tuple[PromotedModel, ...]:
    """Read promotions; return the promoted models in their order."""
    labels: Mapping[str, str] = {
        result.model.digest: label for task in tasks for label, result in task.evaluations.items()
    }
    promoted = []
    for uri in promotions:
        value = read_json(join(uri, "promotion.json"))
        evaluation = read_promotion(uri).evaluation
        promoted.append(
            PromotedModel(
                uri=uri,
                digest=value["digest"],
                threshold=value["gate"]["threshold"],
                evaluation=evaluation,
                label=labels.get(evaluation.model.digest, ""),
            )
        )
    return tuple(promoted)


def endpoint_section(
    smoke_test: SmokeTestResult | None, promoted: Sequence[PromotedModel]
) -> Section:
    """Return the section ``Endpoint``."""
    parts = [_promoted(promoted)] if promoted else [empty_section("No model was promoted.")]
    if smoke_test is None:
        parts.append(empty_section("The endpoint was not probed."))
    else:
        digests = {m.evaluation.task: m.evaluation.model.digest for m in promoted}
        parts += [_prediction(smoke_test, e, digests.get(e.task)) for e in smoke_test.endpoints]
        if smoke_test.metrics:
            parts.append(details("Metrics that it exports", tag("pre", smoke_test.metrics.strip())))
    return section("endpoint", "The endpoint", *parts)


def _promoted(promoted: Sequence[PromotedModel]) -> Html:
    rows = []
    for model in promoted:
        metric = get_task(model.evaluation.task).metric
        base = metric_format(metric.name)
        form = MetricFormat(base.title, metric.unit, metric.higher_is_better)
        sign = "≥" if metric.higher_is_better else "≤"
        rows.append(
            [
                model.evaluation.task,
                model.label or "an earlier model",
                f"{form.title} {form.text(model.evaluation.metrics[metric.name])}",
                f"{sign} {form.text(model.threshold)}",
                tag("code", model.evaluation.model.digest[:12]),
            ]
        )
    head = ["Task", "Promoted", "Judged", "Gate", "Model digest"]
    return table("Models that passed their gate and serve.", head, rows, class_="tight")


def _prediction(result: SmokeTestResult, endpoint: EndpointInfo, promoted: str | None) -> Html:
    def captioned(part: str, caption: str) -> tuple[str, Html]:
        data = read_bytes(join(result.uri, f"{endpoint.name}-{part}.png"))
        return caption, image_tag(data, f"{endpoint.task} endpoint: {caption}")

    cells = [captioned("image", "sent"), captioned("answer", "answered")]
    if exists(join(result.uri, f"{endpoint.name}-truth.png")):
        cells.append(captioned("truth", "truth"))
    if promoted is None:
        check = "no promotion to compare with"
    else:
        check = "the promoted one" if promoted == endpoint.digest else "not the promoted one"
    pairs = {
        "Request": tag("code", endpoint.request),
        "Median time": f"{endpoint.milliseconds:.1f} ms",
        "Model": tag("span", tag("code", endpoint.digest[:12]), f", {check}"),
    }
    return tag(
        "div",
        tag("h3", endpoint.name.capitalize()),
        image_row(cells),
        tag(
            "dl",
            ((tag("dt", name), tag("dd", value)) for name, value in pairs.items()),
            class_="pairs",
        ),
        _command(endpoint.curl) if endpoint.curl else "",
        class_="endpoint",
    )


def _command(curl: str) -> Html:
    hint = tag("small", "The request as a command; a click selects it.", class_="soft")
    return tag("div", hint, tag("pre", curl, class_="copy", tabindex=0), class_="wide")

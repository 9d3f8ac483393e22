"""Report of a run that compares encoders: an HTML page, and the same numbers as JSON.

Its last section shows the promoted models, and their predictions in the smoke test.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from clipmill.config import digest_json
from clipmill.data.dataset import Dataset
from clipmill.errors import NotFoundError
from clipmill.lineage import Parent, lineage, read_artifact_file
from clipmill.models.checkpoint import CheckpointMetadata, read_metadata
from clipmill.report.comparison import Check, TaskComparison, check_comparability, compare
from clipmill.report.format import MetricFormat, format_duration, metric_format
from clipmill.report.html.page import (
    Html,
    Section,
    details,
    document,
    empty_section,
    image_row,
    image_tag,
    paragraph,
    section,
    table,
    tag,
)
from clipmill.report.sections.cost import cost_section, stored_cost
from clipmill.report.sections.predictions import predictions_section
from clipmill.report.sections.provenance import environment, provenance_section
from clipmill.report.sections.results import (
    RunContext,
    Summary,
    results_section,
    seeds_of,
    summarize,
)
from clipmill.report.sections.training import (
    losses_section,
    quarantine_section,
    samples_section,
    timing_section,
    wall_seconds,
)
from clipmill.scenes.source import has_scenes_ancestor
from clipmill.stage_records import StageRecord, read_stages
from clipmill.storage import (
    exists,
    join,
    open_store,
    read_bytes,
    read_json,
    write_bytes,
    write_json,
)
from clipmill.tasks.comparison import Comparison
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


_CAPTIONER_NAMES = {"coca": "CoCa"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportInputs:
    """URIs of a run's artifacts."""

    dataset: str
    """The dataset that the encoders were trained on."""
    layer: str = ""
    """Its layer of synthetic captions, such as ``captions/coca-1a2b3c4d``; may be empty."""
    captioner: str = ""
    """The CoCa checkpoint that wrote them; may be empty."""
    encoders: dict[str, str]
    """CLIP checkpoints by label, the baseline first."""
    evaluations: dict[str, tuple[str, ...]]
    """By the same labels, one evaluation a task."""
    comparison: str = ""
    """Comparison of the encoders with each other and with random weights; may be empty."""
    promotions: tuple[str, ...] = ()
    """Promoted models."""
    smoke_test: str = ""
    """Result of the endpoints' smoke test; may be empty."""
    run: str = ""
    """Name of the run whose stages are shown; may be empty."""


def encoders_report(inputs: ReportInputs, store: str) -> str:
    """Write ``report.html`` and ``report.json`` under ``store``; return the URI of their folder.

    A missing smoke test, layer or log is reported on the page; any other artifact must exist.

    Raises:
        NotFoundError: an artifact doesn't exist.
        ConfigError: a label has two evaluations of one task.
    """
    data = _load(inputs, open_store(store).uri)
    parents = _parents(data)
    digest = digest_json([[parent.role, parent.digest] for parent in parents])
    uri = join(data.store, "reports", digest[:12])
    known = environment()
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    write_bytes(join(uri, "report.html"), _page(data, known, date).encode())
    write_json(
        join(uri, "report.json"),
        {
            "format": 1,
            "kind": "report",
            "digest": digest,
            "parents": [parent.to_json() for parent in parents],
            "summary": {"verdict": data.summary.headline},
            "verdict": data.summary.text,
            "results": _results(data),
            "environment": known,
            "date": date,
        },
    )
    return uri


@dataclass(frozen=True, kw_only=True, slots=True)
class _ReportData:
    """Content of the inputs' artifacts."""

    inputs: ReportInputs
    store: str
    dataset: Dataset
    captioner: CheckpointMetadata | None
    encoders: dict[str, CheckpointMetadata]
    tasks: tuple[TaskComparison, ...]
    models: dict[tuple[str, str], CheckpointMetadata]
    """By label and task."""
    context: RunContext
    comparison: Comparison | None
    summary: Summary
    checks: tuple[Check, ...]
    promoted: tuple[PromotedModel, ...]
    smoke_test: SmokeTestResult | None
    stages: list[StageRecord]


def _load(inputs: ReportInputs, store: str) -> _ReportData:
    dataset = Dataset.open(inputs.dataset)
    encoders = {label: read_metadata(uri) for label, uri in inputs.encoders.items()}
    captioner = read_metadata(inputs.captioner) if inputs.captioner else None
    tasks = compare(inputs.evaluations)
    models = {
        (label, task.task): read_metadata(evaluation.model.uri)
        for task in tasks
        for label, evaluation in task.evaluations.items()
    }
    comparison = Comparison.read(inputs.comparison) if inputs.comparison else None
    maker = inputs.layer.rpartition("/")[2].rpartition("-")[0]
    context = RunContext(
        captions={
            label: str(metadata.recipe.get("view", {}).get("captions", ""))
            for label, metadata in encoders.items()
        },
        captioner=_CAPTIONER_NAMES.get(maker, maker),
        seeds={
            label: seeds_of(
                metadata.recipe, *(m.recipe for (k, _), m in models.items() if k == label)
            )
            for label, metadata in encoders.items()
        },
        uses_synthetic_scenes=has_scenes_ancestor(lineage(dataset.uri)),
    )
    return _ReportData(
        inputs=inputs,
        store=store,
        dataset=dataset,
        captioner=captioner,
        encoders=encoders,
        tasks=tasks,
        models=models,
        context=context,
        comparison=comparison,
        summary=summarize(comparison, context),
        checks=check_comparability(tasks, encoders, models),
        promoted=read_promoted_models(inputs.promotions, tasks),
        smoke_test=read_smoke_test_result(inputs.smoke_test),
        stages=read_stages(store, inputs.run) if inputs.run else [],
    )


def _parents(data: _ReportData) -> tuple[Parent, ...]:
    dataset, layer = data.dataset, data.dataset.layers.get(data.inputs.layer)
    parents = [Parent(role="dataset", uri=dataset.uri, digest=dataset.digest)]
    if layer is not None:
        uri = dataset.layer_uri(layer.name)
        parents.append(Parent(role="captions", uri=uri, digest=layer.digest))
    if data.captioner is not None:
        parents.append(data.captioner.as_parent("captioner"))
    parents += [metadata.as_parent(f"encoder {label}") for label, metadata in data.encoders.items()]
    parents += [
        Parent(role=f"evaluation {label}", uri=evaluation.uri, digest=evaluation.digest)
        for task in data.tasks
        for label, evaluation in task.evaluations.items()
    ]
    if data.comparison is not None:
        comparison = data.comparison
        parents.append(Parent(role="comparison", uri=comparison.uri, digest=comparison.digest))
    parents += [Parent(role="promotion", uri=s.uri, digest=s.digest) for s in data.promoted]
    if data.smoke_test is not None:
        parents.append(
            Parent(role="smoke_test", uri=data.smoke_test.uri, digest=data.smoke_test.digest)
        )
    return tuple(parents)


def _page(data: _ReportData, known: Mapping[str, str], date: str) -> str:
    captioner = data.context.captioner
    served = [(f"Served for {s.evaluation.task}", s.uri) for s in data.promoted]
    artifacts = served or [(f"Encoder {k}", metadata.uri) for k, metadata in data.encoders.items()]
    header = tag(
        "header",
        paragraph(f"clipmill report · {date}", class_="kicker"),
        tag("h1", data.summary.headline),
        paragraph(_about(data), class_="lead"),
        paragraph(data.summary.findings, class_="lead"),
        paragraph(data.summary.caveat, class_="caveat"),
        tag(
            "dl",
            (tag("div", tag("dt", name), tag("dd", value)) for name, value in _facts(data)),
            class_="facts",
        ),
    )
    sections = [
        results_section(data.comparison, data.checks),
        samples_section(data.dataset, data.inputs.layer, captioner),
        losses_section(data.encoders, data.captioner),
        predictions_section(data.tasks, data.models),
        endpoint_section(data.smoke_test, data.promoted),
        quarantine_section(data.dataset),
        timing_section(data.stages, tuple(data.encoders)),
        cost_section({label: stored_cost(m.uri) for label, m in data.encoders.items()}),
        provenance_section(artifacts, data.store, known, date),
    ]
    return document(f"{data.summary.headline} · clipmill report", header, sections)


def _about(data: _ReportData) -> str:
    """Describe the page, its labels, and what to try next."""
    captioner = data.context.captioner or "a captioner"
    sources = {
        "real": "the images' real captions",
        "synthetic": f"captions by {captioner}",
        "both": f"both real captions and captions by {captioner}",
        "selected": "real or synthetic captions, as selected",
    }
    encoders = "; ".join(
        f"{label} was pretrained on {sources.get(captions, 'other captions')}"
        for label, captions in data.context.captions.items()
    )
    return (
        "Do better captions make better features? This page compares CLIP image encoders by their "
        f"frozen features: {encoders}; encoders with random weights are the baseline. Next: read "
        "the results, look at the captions, then run it with your own image-text pairs."
    )


def _facts(data: _ReportData) -> list[tuple[str, str]]:
    """Return the size of the run as labeled facts."""
    facts = [("Image-text pairs", f"{data.dataset.num_samples:,}")]
    facts.append(("Skipped samples", f"{sum(data.dataset.quarantine.values()):,}"))
    seen = {
        label: f"{train['steps'] * train['batch_size']:,}"
        for label, metadata in data.encoders.items()
        if {"steps", "batch_size"} <= (train := metadata.recipe.get("train", {})).keys()
    }
    if len(set(seen.values())) == 1:
        facts.append(("Images seen by an encoder", next(iter(seen.values()))))
    else:
        facts += [(f"Images seen by {label}", number) for label, number in seen.items()]
    if data.stages:
        reused = sum(stage.reused for stage in data.stages)
        note = f", {reused} of {len(data.stages)} stages reused" if reused else ""
        facts.append(("From start to end", format_duration(wall_seconds(data.stages)) + note))
    return facts


def _results(data: _ReportData) -> dict[str, Any]:
    """Return the page's numbers as JSON values."""
    return {
        "tasks": {
            task.task: {
                "metric": asdict(task.metric),
                "metrics": {label: dict(e.metrics) for label, e in task.evaluations.items()},
                "gain": {label: task.improvement(label) for label in task.labels[1:]},
            }
            for task in data.tasks
        },
        "comparison": [asdict(task) | {"gate": task.gate} for task in data.comparison.tasks]
        if data.comparison
        else [],
        "pretraining": {
            label: asdict(result) | {"has_failed": result.has_failed}
            for label, result in (data.comparison.pretraining if data.comparison else {}).items()
        },
        "seeds": {label: list(seeds) for label, seeds in data.context.seeds.items()},
        "checks": [asdict(check) for check in data.checks],
        "num_samples": data.dataset.num_samples,
        "quarantine": dict(data.dataset.quarantine),
        "losses": {label: dict(metadata.metrics) for label, metadata in data.encoders.items()},
        "served": {
            s.evaluation.task: {
                "model": s.evaluation.model.digest,
                "label": s.label,
                "threshold": s.threshold,
            }
            for s in data.promoted
        },
        "request_milliseconds": {
            e.name: e.milliseconds for e in (data.smoke_test.endpoints if data.smoke_test else ())
        },
        "stages": [asdict(stage) for stage in data.stages],
    }

"""The report of a run: one page to read, and the same numbers as JSON."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any

from clipmill.config import digest_json
from clipmill.data.dataset import Dataset
from clipmill.lineage import Parent, lineage
from clipmill.models.checkpoint import CheckpointMetadata, read_metadata
from clipmill.report.comparison import Check, TaskComparison, check_comparability, compare
from clipmill.report.html.page import document, paragraph, tag
from clipmill.report.sections.data import quarantine_section, samples_section
from clipmill.report.sections.endpoint import (
    Probe,
    PromotedModel,
    endpoint_section,
    read_served,
    read_smoke_test,
)
from clipmill.report.sections.predictions import predictions_section
from clipmill.report.sections.provenance import environment, provenance_section
from clipmill.report.sections.results import results_section
from clipmill.report.sections.training import duration, losses_section, timing_section, wall_seconds
from clipmill.report.summary import RunContext, Verdict, judge, seeds_of
from clipmill.scenes.source import has_scenes_ancestor
from clipmill.stage_records import StageRecord, read_stages
from clipmill.storage import join, open_store, write_bytes, write_json
from clipmill.tasks.comparison import Comparison

_CAPTIONER_NAMES = {"coca": "CoCa"}


@dataclass(frozen=True, kw_only=True, slots=True)
class ReportInputs:
    """URIs of what a run made."""

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
    """How the encoders compare with each other and with random weights; may be empty."""
    promotions: tuple[str, ...] = ()
    """What serves."""
    probe: str = ""
    """What the endpoints answered; may be empty."""
    run: str = ""
    """Name of the run whose stages are shown; may be empty."""


def report(inputs: ReportInputs, store: str) -> str:
    """Write ``report.html`` and ``report.json`` under ``store``; the URI of their folder.

    A probe, layer or log that isn't there is said to be missing; any other artifact must be there.

    Raises:
        NotFoundError: an artifact is gone.
        ConfigError: a label has two evaluations of one task.
    """
    found = _gather(inputs, open_store(store).uri)
    parents = _parents(found)
    digest = digest_json([[parent.role, parent.digest] for parent in parents])
    uri = join(found.store, "reports", digest[:12])
    known = environment()
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    write_bytes(join(uri, "report.html"), _page(found, known, date).encode())
    write_json(
        join(uri, "report.json"),
        {
            "format": 1,
            "kind": "report",
            "digest": digest,
            "parents": [parent.to_json() for parent in parents],
            "summary": {"verdict": found.verdict.headline},
            "verdict": found.verdict.text,
            "results": _results(found),
            "environment": known,
            "date": date,
        },
    )
    return uri


@dataclass(frozen=True, kw_only=True, slots=True)
class _Found:
    """What the inputs' URIs lead to."""

    inputs: ReportInputs
    store: str
    dataset: Dataset
    captioner: CheckpointMetadata | None
    encoders: dict[str, CheckpointMetadata]
    tasks: tuple[TaskComparison, ...]
    models: dict[tuple[str, str], CheckpointMetadata]
    """By label and task."""
    circumstances: RunContext
    comparison: Comparison | None
    verdict: Verdict
    checks: tuple[Check, ...]
    served: tuple[PromotedModel, ...]
    probe: Probe | None
    stages: list[StageRecord]


def _gather(inputs: ReportInputs, store: str) -> _Found:
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
    circumstances = RunContext(
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
        drawn=has_scenes_ancestor(lineage(dataset.uri)),
    )
    return _Found(
        inputs=inputs,
        store=store,
        dataset=dataset,
        captioner=captioner,
        encoders=encoders,
        tasks=tasks,
        models=models,
        circumstances=circumstances,
        comparison=comparison,
        verdict=judge(comparison, circumstances),
        checks=check_comparability(tasks, encoders, models),
        served=read_served(inputs.promotions, tasks),
        probe=read_smoke_test(inputs.probe),
        stages=read_stages(store, inputs.run) if inputs.run else [],
    )


def _parents(found: _Found) -> tuple[Parent, ...]:
    dataset, layer = found.dataset, found.dataset.layers.get(found.inputs.layer)
    parents = [Parent(role="dataset", uri=dataset.uri, digest=dataset.digest)]
    if layer is not None:
        uri = dataset.layer_uri(layer.name)
        parents.append(Parent(role="captions", uri=uri, digest=layer.digest))
    if found.captioner is not None:
        parents.append(found.captioner.as_parent("captioner"))
    parents += [
        metadata.as_parent(f"encoder {label}") for label, metadata in found.encoders.items()
    ]
    parents += [
        Parent(role=f"evaluation {label}", uri=evaluation.uri, digest=evaluation.digest)
        for task in found.tasks
        for label, evaluation in task.evaluations.items()
    ]
    if found.comparison is not None:
        of = found.comparison
        parents.append(Parent(role="comparison", uri=of.uri, digest=of.digest))
    parents += [Parent(role="promotion", uri=s.uri, digest=s.digest) for s in found.served]
    if found.probe is not None:
        parents.append(Parent(role="probe", uri=found.probe.uri, digest=found.probe.digest))
    return tuple(parents)


def _page(found: _Found, known: Mapping[str, str], date: str) -> str:
    captioner = found.circumstances.captioner
    served = [(f"Served for {s.evaluation.task}", s.uri) for s in found.served]
    artifacts = served or [(f"Encoder {k}", metadata.uri) for k, metadata in found.encoders.items()]
    header = tag(
        "header",
        paragraph(f"clipmill report · {date}", class_="kicker"),
        tag("h1", found.verdict.headline),
        paragraph(_about(found), class_="lead"),
        paragraph(found.verdict.findings, class_="lead"),
        paragraph(found.verdict.caveat, class_="caveat"),
        tag(
            "dl",
            (tag("div", tag("dt", name), tag("dd", words)) for name, words in _facts(found)),
            class_="facts",
        ),
    )
    sections = [
        results_section(found.comparison, found.checks),
        samples_section(found.dataset, found.inputs.layer, captioner),
        losses_section(found.encoders, found.captioner),
        predictions_section(found.tasks, found.models),
        endpoint_section(found.probe, found.served),
        quarantine_section(found.dataset),
        timing_section(found.stages, tuple(found.encoders)),
        provenance_section(artifacts, found.store, known, date),
    ]
    return document(f"{found.verdict.headline} · clipmill report", header, sections)


def _about(found: _Found) -> str:
    """What the page is, what the labels mean, and what to try next."""
    captioner = found.circumstances.captioner or "a captioner"
    what = {
        "real": "the images' real captions",
        "synthetic": f"captions by {captioner}",
        "both": f"both real captions and captions by {captioner}",
        "chosen": "real or synthetic captions, as a rule chose",
    }
    encoders = "; ".join(
        f"{label} was pretrained on {what.get(captions, 'other captions')}"
        for label, captions in found.circumstances.captions.items()
    )
    return (
        "Do better captions make better features? This page compares CLIP image encoders by their "
        f"frozen features: {encoders}; encoders with random weights are the baseline. Next: read "
        "the results, look at the captions, then run it with your own image-text pairs."
    )


def _facts(found: _Found) -> list[tuple[str, str]]:
    """The size of the run at a glance."""
    facts = [("Image-text pairs", f"{found.dataset.num_samples:,}")]
    facts.append(("Skipped samples", f"{sum(found.dataset.quarantine.values()):,}"))
    seen = {
        label: f"{train['steps'] * train['batch_size']:,}"
        for label, metadata in found.encoders.items()
        if {"steps", "batch_size"} <= (train := metadata.recipe.get("train", {})).keys()
    }
    if len(set(seen.values())) == 1:
        facts.append(("Images seen by an encoder", next(iter(seen.values()))))
    else:
        facts += [(f"Images seen by {label}", number) for label, number in seen.items()]
    if found.stages:
        reused = sum(stage.reused for stage in found.stages)
        note = f", {reused} of {len(found.stages)} stages reused" if reused else ""
        facts.append(("From start to end", duration(wall_seconds(found.stages)) + note))
    return facts


def _results(found: _Found) -> dict[str, Any]:
    """The page's numbers, for programs."""
    return {
        "tasks": {
            task.task: {
                "metric": asdict(task.metric),
                "metrics": {label: dict(e.metrics) for label, e in task.evaluations.items()},
                "gain": {label: task.gain(label) for label in task.labels[1:]},
            }
            for task in found.tasks
        },
        "comparison": [asdict(task) | {"gate": task.gate} for task in found.comparison.tasks]
        if found.comparison
        else [],
        "pretraining": {
            label: asdict(result) | {"has_failed": result.has_failed}
            for label, result in (found.comparison.pretraining if found.comparison else {}).items()
        },
        "seeds": {label: list(seeds) for label, seeds in found.circumstances.seeds.items()},
        "checks": [asdict(check) for check in found.checks],
        "num_samples": found.dataset.num_samples,
        "quarantine": dict(found.dataset.quarantine),
        "losses": {label: dict(metadata.metrics) for label, metadata in found.encoders.items()},
        "served": {
            s.evaluation.task: {
                "model": s.evaluation.model.digest,
                "label": s.label,
                "threshold": s.threshold,
            }
            for s in found.served
        },
        "request_milliseconds": {
            e.name: e.milliseconds for e in (found.probe.endpoints if found.probe else ())
        },
        "stages": [asdict(stage) for stage in found.stages],
    }

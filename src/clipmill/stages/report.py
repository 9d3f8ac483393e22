"""Stages that write HTML reports."""

from collections.abc import Sequence

from clipmill.errors import ConfigError
from clipmill.stage_records import Stage, current_run
from clipmill.stages.pretrain import caption_label


def view(
    dataset: str,
    *,
    uids: Sequence[str] = (),
    top: str = "",
    bottom: str = "",
    count: int = 24,
    seed: int = 0,
) -> str:
    """Return an HTML page with samples of a dataset."""
    from clipmill.data.dataset import Dataset, cache_folder
    from clipmill.report import preview

    config = preview.PreviewConfig(
        uids=tuple(uids), highest_by=top, lowest_by=bottom, num_samples=count, seed=seed
    )
    with Stage("view") as stage:
        return preview.dataset_page(
            Dataset.open(dataset), config, cache_folder(), report=stage.report
        )


def curation_report(dataset: str, layer: str, *, count: int = 12, seed: int = 0) -> str:
    """Return an HTML page about a select layer: what it dropped, and scores before and after."""
    from clipmill.data.dataset import Dataset, cache_folder
    from clipmill.report import curation

    config = curation.CurationReportConfig(num_samples=count, seed=seed)
    with Stage("curation-report", target=dataset) as stage:
        return curation.curation_page(
            Dataset.open(dataset), layer, config, cache_folder(), report=stage.report
        )


def report(
    dataset: str,
    layer: str,
    captioner: str,
    encoders: Sequence[str],
    evaluations: Sequence[str],
    store: str,
    run: str = "",
    *,
    comparison: str = "",
    promotions: Sequence[str] = (),
    smoke_test: str = "",
) -> str:
    """Write the report of a run that compares encoders.

    Returns the URI of the folder with ``report.html`` and ``report.json``.
    """
    from clipmill.data.captioners import captioner_kind
    from clipmill.models.checkpoint import read_metadata
    from clipmill.report.encoders import ReportInputs, encoders_report
    from clipmill.tasks.evaluation import read_evaluation

    # Only clipmill's own CoCa has a training log to show.
    kind, checkpoint = captioner_kind(captioner) if captioner else ("", "")
    metadata = [read_metadata(uri) for uri in encoders]
    labels = {m.digest: caption_label(m) for m in metadata}
    by_label: dict[str, list[str]] = {label: [] for label in labels.values()}
    for uri in evaluations:
        model = read_metadata(read_evaluation(uri).model.uri)
        encoder = next(p for p in model.parents if p.role == "encoder")
        if encoder.digest not in labels:
            raise ConfigError(
                f"{uri} evaluates a model of the encoder {encoder.uri}",
                expected=f"a model of one of the encoders {', '.join(encoders)}",
                action=f"add --encoder {encoder.uri}, or leave that evaluation out",
            )
        by_label[labels[encoder.digest]].append(uri)
    inputs = ReportInputs(
        dataset=dataset,
        layer=layer,
        captioner=checkpoint if kind == "clipmill" else "",
        encoders={labels[m.digest]: m.uri for m in metadata},
        evaluations={label: tuple(uris) for label, uris in by_label.items()},
        comparison=comparison,
        promotions=tuple(uri for uri in promotions if uri),
        smoke_test=smoke_test,
        run=run or current_run(),
    )
    with Stage("report", store=store, run=run) as stage:
        stage.report(0, 1, "drawing")
        return stage.set_output(encoders_report(inputs, store))


def report_tasks(
    encoder: str,
    evaluations: Sequence[str],
    promotions: Sequence[str],
    store: str,
    run: str = "",
) -> str:
    """Write the report of an encoder's tasks; return the URI of its folder."""
    from clipmill.report.tasks import tasks_report

    with Stage("report", store=store, run=run, label="tasks") as stage:
        stage.report(0, 1, "drawing")
        return stage.set_output(tasks_report(encoder, evaluations, promotions, store))


def report_photos(
    dataset: str,
    layer: str,
    captioner: str,
    evaluations: Sequence[str],
    given: str,
    store: str,
    run: str = "",
) -> str:
    """Write the report of retrieval on photographs; return the URI of its folder.

    ``given`` is the evaluation of an encoder that this run didn't train, or empty.
    """
    from clipmill.report.photos import photos_report

    described = {"layer": layer, "captioner": captioner, "given": given}
    described["run"] = run or current_run()
    with Stage("report", store=store, run=run) as stage:
        stage.report(0, 1, "drawing")
        return stage.set_output(photos_report(dataset, evaluations, store, **described))

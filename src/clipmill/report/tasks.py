"""Report of an encoder's tasks: metrics, promoted models, predictions."""

from collections.abc import Sequence
from datetime import UTC, datetime

from clipmill.config import digest_json
from clipmill.lineage import Parent
from clipmill.models.checkpoint import read_metadata
from clipmill.report.comparison import TaskComparison, compare
from clipmill.report.html.page import document, paragraph, section, table, tag
from clipmill.report.sections.predictions import predictions_section
from clipmill.report.sections.provenance import environment, provenance_section
from clipmill.storage import join, open_store, write_bytes, write_json
from clipmill.tasks.promotion import read_promotion

_LABEL = "this encoder"


def tasks_report(
    encoder: str, evaluations: Sequence[str], promotions: Sequence[str], store: str
) -> str:
    """Write ``report.html`` and ``report.json`` under ``store``; return the URI of their folder.

    Raises:
        NotFoundError: an artifact doesn't exist.
        ConfigError: two evaluations are of one task.
    """
    tasks = compare({_LABEL: evaluations})
    results = [task.evaluations[_LABEL] for task in tasks]
    promoted = {e.task: e for e in (read_promotion(p).evaluation for p in promotions)}
    parents = [Parent(role="evaluation", uri=e.uri, digest=e.digest) for e in results]
    parents += [Parent(role="serving", uri=e.uri, digest=e.digest) for e in promoted.values()]
    digest = digest_json([[parent.role, parent.digest] for parent in parents])
    uri = join(open_store(store).uri, "reports", digest[:12])
    date = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    headline = "; ".join(f"{task.task} {_format_value(task)}" for task in tasks)
    now = {task.task: promoted[task.task] for task in tasks if task.task in promoted}
    rows = [
        [
            task.task,
            _format_value(task),
            task.format.text(now[task.task].metrics[task.metric.name]) if task.task in now else "—",
            "this" if now.get(task.task) == task.evaluations[_LABEL] else "another, not beaten",
        ]
        for task in tasks
    ]
    head = ["Task", "This encoder", "Serves now", "Which model"]
    models = {(_LABEL, e.task): read_metadata(e.model.uri) for e in results}
    header = tag(
        "header",
        paragraph(f"clipmill report · {date}", class_="kicker"),
        tag("h1", headline),
        paragraph(tag("code", encoder), class_="caveat"),
    )
    sections = [
        section("results", "Results", table("Each task's metric on its test data.", head, rows)),
        predictions_section(tasks, models),
        provenance_section(
            [(f"Model for {e.task}", e.model.uri) for e in results], store, environment(), date
        ),
    ]
    write_bytes(join(uri, "report.html"), document(headline, header, sections).encode())
    write_json(
        join(uri, "report.json"),
        {
            "format": 1,
            "kind": "report",
            "digest": digest,
            "parents": [parent.to_json() for parent in parents],
            "summary": {"verdict": headline},
            "encoder": encoder,
            "metrics": {e.task: dict(e.metrics) for e in results},
            "date": date,
        },
    )
    return uri


def _format_value(task: TaskComparison) -> str:
    value = task.evaluations[_LABEL].metrics[task.metric.name]
    return f"{task.format.title} {task.format.text(value)}"

"""Commands about artifacts: what a store holds, an artifact's origin, import and export."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipmill.cli.extras import needs
from clipmill.cli.options import Json, Store, StoreArgument, one_of, require_output
from clipmill.cli.output import format_table, print_hint, print_next, print_uri

if TYPE_CHECKING:
    from clipmill.artifacts import Artifact
    from clipmill.report.runs import TrainingRun

_SIZE_STEP = 1000
_PLAIN_METRICS = ("loss", "samples_per_second")
# Records of the training itself; what else a log holds was measured on held-out data.
_TRAINING_RECORDS = ("step", "gradient_norm", "learning_rate", "logit_scale", "data_wait", "mfu")
_MAX_METRICS = 3
_MAX_COMPARED = 6


def ls(
    store: StoreArgument,
    kind: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="Artifacts of this kind, such as dataset, layer, clip, task or evaluation.",
        ),
    ] = "",
    as_json: Json = False,
) -> None:
    """List a store's artifacts: kind, name, recipe, date and main metric."""
    from clipmill.artifacts import list_artifacts

    artifacts = [one for one in list_artifacts(store) if kind in ("", one.kind)]
    if not artifacts:
        print_hint(f"{store} holds no artifacts{f' of kind {kind!r}' if kind else ''}")
    if as_json:
        typer.echo(json.dumps([_to_json(one) for one in artifacts], indent=2))
        return
    header = ["KIND", "NAME", "RECIPE", "DATE", "METRIC"]
    rows = [
        [
            one.kind,
            one.name,
            _recipe_cell(one),
            f"{one.date.astimezone():%Y-%m-%d %H:%M}",
            one.main_metric,
        ]
        for one in artifacts
    ]
    if rows:
        typer.echo(format_table(header, rows))
        print_next("show", f"{store.rstrip('/')}/NAME")


def show(
    uri: Annotated[str, typer.Argument(metavar="URI", help="URI of any artifact.")],
    as_json: Json = False,
) -> None:
    """Show an artifact: kind, recipe, date, size, metrics and parents."""
    from clipmill.artifacts import describe_artifact

    artifact, num_files, num_bytes = describe_artifact(uri)
    if as_json:
        size = {"num_files": num_files, "num_bytes": num_bytes}
        typer.echo(json.dumps(_to_json(artifact) | size, indent=2))
        return
    recipe, changed = _recipe(artifact)
    facts = [
        ["kind", artifact.kind],
        ["uri", artifact.uri],
        ["digest", artifact.digest[:12]],
        ["date", f"{artifact.date.astimezone():%Y-%m-%d %H:%M:%S %z}"],
        ["size", f"{_format_bytes(num_bytes)} in {num_files:,} files"],
        ["recipe", recipe or "none"],
        *(["", f"{path}={json.dumps(value)}"] for path, value in changed.items()),
        *([name, value] for name, value in artifact.summary.items()),
    ]
    typer.echo(format_table(facts[0], facts[1:]))
    metrics = [[f"  {name}", f"{value:.6g}"] for name, value in artifact.metrics.items()]
    parents = [[f"  {one.role}", one.uri, one.digest[:12]] for one in artifact.parents]
    for title, rows in (("metrics", metrics), ("parents", parents)):
        if rows:
            typer.echo(f"{title}:\n{format_table(rows[0], rows[1:])}")
    print_next("lineage", uri)


def runs(
    store: StoreArgument,
    page: Annotated[Path | None, typer.Option(help="HTML page with curves to write.")] = None,
    as_json: Json = False,
) -> None:
    """List a store's training runs, finished or not: metrics, cost and settings."""
    require_output(page)
    from clipmill.report.runs import list_runs, runs_page, varying_settings

    training_runs = list_runs(store)
    if not training_runs:
        print_hint(f"{store} holds no training runs yet")
    if page is not None:
        page.write_text(runs_page(store, training_runs))
    if as_json:
        typer.echo(json.dumps([run.to_json() for run in training_runs], indent=2))
        return
    if training_runs:
        typer.echo(_runs_table(training_runs))
        if any(run.cost for run in training_runs):
            typer.echo(f"\n{_cost_table(training_runs)}")
    settings = varying_settings(training_runs)
    if settings and len(training_runs) <= _MAX_COMPARED:
        rows = [[path, *map(str, values)] for path, values in settings.items()]
        header = ["SETTING", *(run.name.rpartition("/")[2] for run in training_runs)]
        typer.echo(f"\n{format_table(header, rows)}")
    elif settings:
        values = {path: ", ".join(sorted({*map(str, v)})) for path, v in settings.items()}
        typer.echo(f"\n{format_table(['SETTING', 'VALUES'], [*values.items()])}")
    if page is not None:
        typer.echo(str(page))


def lineage(
    uri: Annotated[str, typer.Argument(metavar="URI", help="URI of any artifact.")],
    as_json: Json = False,
) -> None:
    """Print an artifact's ancestors, back to source files and captioner."""
    import dataclasses

    from clipmill import lineage

    node = lineage.lineage(uri)
    typer.echo(json.dumps(dataclasses.asdict(node), indent=2) if as_json else lineage.render(node))


@needs("model")
def export(
    model: Annotated[
        str, typer.Argument(metavar="MODEL", help="URI of an encoder or a task model.")
    ],
    output: Annotated[Path, typer.Option(help="Folder to write.")],
    to: Annotated[
        str,
        typer.Option(
            metavar="FORMAT",
            help="Format: open_clip, timm, transformers or coreml for an encoder; "
            "onnx for a task model; oci-layout, a container image, for either.",
            autocompletion=one_of(
                "open_clip", "timm", "transformers", "coreml", "onnx", "oci-layout"
            ),
        ),
    ] = "open_clip",
    base: Annotated[
        Path | None,
        typer.Option(
            metavar="LAYOUT",
            help="Image layout with a shell under the model's, for KServe's modelcar (oci://).",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Export a model to another library, with a model card; prints the name that loads it."""
    from clipmill.tasks import export

    result = export.export(model, output, to, base=base)
    if as_json:
        value = {"name": result.name, "folder": str(output), "notes": list(result.notes)}
        typer.echo(json.dumps(value, indent=2))
        return
    typer.echo(result.name)
    for note in result.notes:
        typer.echo(note, err=True)


@needs("model")
def import_weights(
    address: Annotated[
        str,
        typer.Argument(
            metavar="ADDRESS", help="open_clip:NAME/TAG, timm:NAME[.TAG], hf:ORG/NAME or file:PATH."
        ),
    ],
    store: Store,
    as_json: Json = False,
) -> None:
    """Import public weights as an encoder, with their preprocessing; prints its URI."""
    from clipmill import stages

    uri = stages.import_weights(address, store)
    print_uri(uri, as_json=as_json)
    print_next("finetune", "--encoder", uri, "--data", "FOLDER", "--store", store)


def _recipe(artifact: "Artifact") -> tuple[str, dict[str, object]]:
    """Return the closest recipe of an artifact's config, and the settings that differ."""
    from clipmill.recipes.registry import closest_recipe

    match = closest_recipe(artifact.config) if artifact.config else None
    return match or ("", {})


def _recipe_cell(artifact: "Artifact") -> str:
    name, changed = _recipe(artifact)
    return f"{name} +{len(changed)}" if changed else name


def _to_json(artifact: "Artifact") -> dict[str, object]:
    name, changed = _recipe(artifact)
    return artifact.to_json() | {"recipe": name or None, "changed_settings": changed}


def _runs_table(runs: "list[TrainingRun]") -> str:
    from clipmill.report.runs import format_cell

    known = {*_PLAIN_METRICS, *_TRAINING_RECORDS}
    names = dict.fromkeys(name for run in runs for name in run.last if name not in known)
    metrics = [n for n in names if not n.startswith(("loss", "source/"))][:_MAX_METRICS]
    header = ["RUN", "STATUS", "STEP", "OF", "LOSS", "SAMPLES/S", *(m.upper() for m in metrics)]
    rows = [
        [
            run.name,
            run.status,
            f"{run.step:,}",
            f"{run.steps:,}",
            format_cell(run.last.get("loss"), 3),
            format_cell(run.last.get("samples_per_second"), 0),
            *(format_cell(run.last.get(name), 3) for name in metrics),
        ]
        for run in runs
    ]
    lines = [format_table(header, rows, right="  " + "r" * (len(header) - 2))]
    lines += [f"{run.name}: {run.reason}" for run in runs if run.reason]
    return "\n".join(lines)


def _cost_table(runs: "list[TrainingRun]") -> str:
    from clipmill.report.sections.cost import HEADER, cost_cells

    header = ["RUN", *(name.upper() for name in HEADER)]
    return format_table(header, [[run.name, *cost_cells(run.cost)] for run in runs])


def _format_bytes(count: float) -> str:
    for unit in ("bytes", "kB", "MB", "GB"):
        if count < _SIZE_STEP:
            return f"{count:.0f} {unit}" if unit == "bytes" else f"{count:.1f} {unit}"
        count /= _SIZE_STEP
    return f"{count:.1f} TB"

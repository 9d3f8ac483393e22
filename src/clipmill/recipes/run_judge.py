"""What judges encoders, and captions by encoders, without a model that is to serve.

As in :mod:`clipmill.recipes.run`, which has the way to an endpoint.
"""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clipmill.recipes.registry import recipe
from clipmill.recipes.run import LABELS
from clipmill.stage_records import Stage
from clipmill.storage import join

if TYPE_CHECKING:
    from clipmill.models.attention import AttentionStatistics


def zero_shot(
    name: str,
    overrides: Sequence[str],
    model: str,
    data: str,
    store: str,
    run: str = "",
    *,
    classes: str = "",
) -> str:
    """Judge a CLIP on labelled pictures by the names of their classes."""
    from clipmill.tasks.zero_shot import zero_shot as judge
    from clipmill.tasks.zero_shot_config import ZeroShotConfig

    given = [f"clip.model={model}", *([f"classes={classes}"] if classes else [])]
    config = recipe(name, ZeroShotConfig, [*given, *overrides])
    with Stage("zero-shot", store=store, run=run) as stage:
        return stage.made(judge(config, data, store, report=stage.report))


def retrieval(
    name: str,
    overrides: Sequence[str],
    model: str,
    data: str,
    store: str,
    run: str = "",
    label: str = "",
) -> str:
    """Judge a CLIP by how it finds captions and pictures."""
    from clipmill.tasks.zero_shot_config import RetrievalConfig
    from clipmill.tasks.zero_shot_retrieval import retrieve

    config = recipe(name, RetrievalConfig, [f"clip.model={model}", *overrides])
    with Stage("retrieval", store=store, run=run, label=LABELS.get(label, label)) as stage:
        return stage.made(retrieve(config, data, store, report=stage.report))


def report_photos(
    dataset: str,
    layer: str,
    captioner: str,
    evaluations: Sequence[str],
    given: str,
    store: str,
    run: str = "",
) -> str:
    """Put retrieval on photographs on one page; the folder of its HTML and JSON."""
    from clipmill.analysis.photos_report import photos_report as make

    described = {"layer": layer, "captioner": captioner, "given": given, "run": run}
    with Stage("report", store=store, run=run) as stage:
        stage.report(0, 1, "drawing")
        return stage.made(make(dataset, evaluations, store, **described))


def attention(
    encoders: Sequence[str], data: str, *, num_images: int
) -> "dict[str, AttentionStatistics]":
    """How far the heads of ViTs look, by the encoders' names."""
    from clipmill.analysis.attention import measure_attention

    found = {}
    with Stage("attention") as stage:
        for encoder in encoders:
            found[encoder] = measure_attention(
                encoder, data, num_images=num_images, report=stage.report
            )
    return found


def study(
    name: str,
    overrides: Sequence[str],
    store: str,
    run: str = "",
    *,
    tables: Sequence[str] = (),
    seeds: Sequence[int] = (),
    workers: int = 1,
) -> str:
    """Compare captions by what encoders learn from them, in all tables and seeds if none is named.

    Draws the page too.
    """
    from clipmill.storage import write_bytes
    from clipmill.study.config import StudyConfig
    from clipmill.study.page import study_page
    from clipmill.study.result import read_study
    from clipmill.study.run import run_study

    config = recipe(name, StudyConfig, overrides)
    config = config.only(tables, seeds) if tables or seeds else config
    options = [
        *("--recipe", name, "--store", store, "--workers", str(workers)),
        *(word for table in tables for word in ("--table", table)),
        *(word for seed in seeds for word in ("--seed", str(seed))),
        *(word for override in overrides for word in ("--set", override)),
    ]
    command = ["clipmill", "study", "captions", *options]
    with Stage("study", store=store, run=run) as stage:
        uri = run_study(
            config, store, workers=workers, command=shlex.join(command), report=stage.report
        )
        write_bytes(join(uri, "study.html"), study_page(read_study(uri)).encode())
        return stage.made(uri)

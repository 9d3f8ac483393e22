"""Stages that evaluate encoders without a task model, and the caption-quality study."""

import shlex
from collections.abc import Sequence
from typing import TYPE_CHECKING

from clipmill.recipes.registry import get_recipe
from clipmill.stage_records import Stage
from clipmill.stages.pretrain import CAPTION_LABELS
from clipmill.storage import join

if TYPE_CHECKING:
    from clipmill.models.attention import AttentionStatistics


def zero_shot(
    recipe: str,
    overrides: Sequence[str],
    model: str,
    data: str,
    store: str,
    run: str = "",
    *,
    classes: str = "",
) -> str:
    """Evaluate a CLIP on labeled images by the names of their classes; return the result's URI."""
    from clipmill.tasks import zero_shot

    own = [f"clip.model={model}", *([f"classes={classes}"] if classes else [])]
    config = get_recipe(recipe, zero_shot.ZeroShotConfig, [*own, *overrides])
    with Stage("zero-shot", store=store, run=run) as stage:
        return stage.set_output(zero_shot.zero_shot(config, data, store, report=stage.report))


def retrieval(
    recipe: str,
    overrides: Sequence[str],
    model: str,
    data: str,
    store: str,
    run: str = "",
    label: str = "",
) -> str:
    """Evaluate a CLIP by image-text retrieval; return the result's URI."""
    from clipmill.tasks.zero_shot import RetrievalConfig, retrieve

    config = get_recipe(recipe, RetrievalConfig, [f"clip.model={model}", *overrides])
    label = CAPTION_LABELS.get(label, label)
    with Stage("retrieval", store=store, run=run, label=label) as stage:
        return stage.set_output(retrieve(config, data, store, report=stage.report))


def attention(
    encoders: Sequence[str], data: str, *, num_images: int
) -> "dict[str, AttentionStatistics]":
    """Measure the attention distance of ViTs' heads, by the encoders' names."""
    from clipmill.report.attention import measure_attention

    with Stage("attention") as stage:
        return {
            encoder: measure_attention(encoder, data, num_images=num_images, report=stage.report)
            for encoder in encoders
        }


def study(
    recipe: str,
    overrides: Sequence[str],
    store: str,
    run: str = "",
    *,
    tables: Sequence[str] = (),
    seeds: Sequence[int] = (),
    workers: int = 1,
) -> str:
    """Run the caption-quality study, or some of its tables and seeds, and write its page.

    Returns the study's URI.
    """
    from clipmill.storage import write_bytes
    from clipmill.study.config import StudyConfig
    from clipmill.study.page import study_page
    from clipmill.study.result import read_study
    from clipmill.study.run import run_study

    config = get_recipe(recipe, StudyConfig, overrides)
    config = config.subset(tables, seeds) if tables or seeds else config
    options = [
        *("--recipe", recipe, "--store", store, "--workers", str(workers)),
        *(text for table in tables for text in ("--table", table)),
        *(text for seed in seeds for text in ("--seed", str(seed))),
        *(text for override in overrides for text in ("--set", override)),
    ]
    command = shlex.join(["clipmill", "study", "captions", *options])
    with Stage("study", store=store, run=run) as stage:
        uri = run_study(config, store, workers=workers, command=command, report=stage.report)
        write_bytes(join(uri, "study.html"), study_page(read_study(uri)).encode())
        return stage.set_output(uri)

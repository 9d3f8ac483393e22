"""Scenes as a source: what a user's own data would be, drawn and packed into the store."""

import itertools
import os
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from clipmill.config import Config
from clipmill.data.scenes.formats import write_ade20k, write_caption_folder, write_nyu
from clipmill.data.scenes.world import CLASSES, SceneConfig
from clipmill.digest import digest_json
from clipmill.stages import Report
from clipmill.storage import exists, join, put_tree, write_json

_RESULT = "source.json"


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenesSourceConfig(Config):
    """How many scenes of which kind."""

    size: int = 64
    """Side of a picture, pixels."""
    seed: int = 0
    """Seed of the scenes."""
    quality: Literal["alt", "terse", "rich"] = "alt"
    """Captions of the pairs to pretrain on."""
    captioning_quality: Literal["alt", "terse", "rich"] = "terse"
    """Captions of the set that a captioner learns from."""
    num_pairs: int = 2048
    """Pictures to pretrain on."""
    num_captioning: int = 2048
    """Pictures for the captioner; none of them is among the pairs."""
    num_labelled: int = 384
    """Pictures with labels to fine-tune on."""
    num_test: int = 128
    """Pictures with labels to evaluate on."""
    labelled_objects: tuple[int, int] = (4, 8)
    """Fewest and most objects in a picture with labels: crowded, so that they fill it."""


_SCENES_A_JOB = 128

PAIRS = "pairs.tar"
CAPTIONING = "captioning.tar"
SEGMENTATION = "ade20k.tar"
DEPTH = "nyu_depth_v2.tar"


def draw_source(config: ScenesSourceConfig, store: str, *, report: Report) -> str:
    """Draw all sets and pack each as a tar; the folder's URI, under ``store``.

    The sets draw on disjoint scenes, but for the two labelled ones, which show the same.
    """
    uri = join(store, "sources", f"scenes-{config.digest[:12]}")
    if exists(join(uri, _RESULT)):
        return uri
    scene = SceneConfig(size=config.size, seed=config.seed)
    fewest, most = config.labelled_objects
    crowd = replace(scene, min_objects=fewest, max_objects=most)
    counts = (config.num_pairs, config.num_captioning, config.num_labelled, config.num_test)
    starts = [sum(counts[:i]) for i in range(5)]
    pairs, captioning, labelled, test = (range(a, b) for a, b in itertools.pairwise(starts))
    with tempfile.TemporaryDirectory(prefix="clipmill-scenes-") as scratch:
        root = Path(scratch)
        ade20k, nyu = root / "ade20k", root / "nyu"
        jobs: list[tuple[Callable[[], None], int]] = [
            *_cut(write_caption_folder, scene, pairs, root / "pairs", config.quality),
            *_cut(
                write_caption_folder, scene, captioning, root / "good", config.captioning_quality
            ),
            *_cut(write_ade20k, crowd, labelled, ade20k, "training"),
            *_cut(write_ade20k, crowd, test, ade20k, "validation"),
            # A list of NYU's is one file, and so the work of one job.
            (partial(write_nyu, crowd, labelled, nyu, "train"), len(labelled)),
            (partial(write_nyu, crowd, test, nyu, "test"), len(test)),
        ]
        total, done = sum(size for _, size in jobs), 0
        with ProcessPoolExecutor(len(os.sched_getaffinity(0))) as pool:
            submitted = [(pool.submit(job), size) for job, size in jobs]
            for future, size in submitted:
                future.result()
                done += size
                report(done, total, "scenes drawn")
        packed = {
            name: put_tree(folder, join(uri, name))
            for name, folder in (
                (PAIRS, root / "pairs"),
                (CAPTIONING, root / "good"),
                (SEGMENTATION, ade20k),
                (DEPTH, nyu),
            )
        }
    write_json(
        join(uri, _RESULT),
        {
            "format": 1,
            "kind": "source",
            "digest": digest_json(packed),
            "files": packed,
            "parents": [],
            "summary": {
                "scenes": f"seed {config.seed}, {config.size} px, {len(CLASSES)} classes",
                "captions": f"{config.quality}; captioner's: {config.captioning_quality}",
            },
        },
    )
    return uri


def _cut(
    write: Callable[..., None], scene: SceneConfig, indices: range, *arguments: Any
) -> Iterator[tuple[Callable[[], None], int]]:
    """The writing of ``indices`` as jobs of equal size, each with its number of scenes."""
    for start in range(0, len(indices), _SCENES_A_JOB):
        piece = indices[start : start + _SCENES_A_JOB]
        yield partial(write, scene, piece, *arguments), len(piece)

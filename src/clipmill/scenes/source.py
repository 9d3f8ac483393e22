"""Scenes as a data source: render all sets that the pipelines need, and pack them in the store.

Also decides from an artifact's lineage whether it was made from scenes.
"""

import itertools
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Literal

from clipmill.config import Config, digest_json
from clipmill.errors import ClipmillError
from clipmill.lineage import Node, read_artifact
from clipmill.processes import process_pool
from clipmill.scenes.formats import (
    SCENES_A_JOB,
    write_ade20k,
    write_caption_folder,
    write_class_folder,
    write_coco,
    write_nyu,
)
from clipmill.scenes.geometry import CLASSES, SceneConfig
from clipmill.stage_records import ProgressCallback
from clipmill.storage import artifact_uri, exists, join, pack_dir, write_json

_RESULT = "source.json"

PAIRS = "pairs.tar"

CAPTIONING = "captioning.tar"

TaskName = Literal["classification", "detection", "segmentation", "depth"]
"""A task that scenes have labels for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ScenesSourceConfig(Config):
    """Numbers and kinds of scenes."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {
        "num_captioning": "num_captioner_pairs",
        "num_labelled": "num_labeled",
        "labelled_size": "labeled_size",
        "labelled_objects": "labeled_objects",
        "farthest_metres": "max_distance_m",
        "smallest_metres": "min_object_size_m",
    }

    size: int = 64
    """Image side, pixels."""
    seed: int = 0
    """Seed of the scenes."""
    quality: Literal["alt", "terse", "rich"] = "alt"
    """Caption quality of the pairs to pretrain on."""
    captioning_quality: Literal["alt", "terse", "rich"] = "terse"
    """Caption quality of the captioner's pairs."""
    num_pairs: int = 2048
    """Image-caption pairs to pretrain on."""
    num_captioner_pairs: int = 2048
    """Pairs to train a captioner on, disjoint from the others."""
    num_labeled: int = 384
    """Labeled images to fine-tune on."""
    num_test: int = 128
    """Labeled images to evaluate on."""
    labeled_size: int = 64
    """Side of a labeled image, pixels."""
    labeled_objects: tuple[int, int] = (4, 8)
    """Fewest and most objects in a labeled image."""
    max_distance_m: float = 5.8
    """Largest distance of an object from the camera, meters."""
    min_object_size_m: float = 0.55
    """Smallest size of an object, meters."""
    tasks: tuple[TaskName, ...] = ("segmentation", "depth")
    """Tasks that labels are written for; pictures to classify show one object each."""

    @property
    def scene(self) -> SceneConfig:
        """The scenes of the pairs."""
        return SceneConfig(
            size=self.size,
            seed=self.seed,
            max_distance_m=self.max_distance_m,
            min_object_size_m=self.min_object_size_m,
        )


Job = tuple[Callable[[], None], int]
"""Work, and its number of scenes."""

LABELS = {
    "classification": "imagenet.tar",
    "detection": "coco.tar",
    "segmentation": "ade20k.tar",
    "depth": "nyu_depth_v2.tar",
}
"""The tar with each task's labels."""


def draw_source(config: ScenesSourceConfig, store: str, *, report: ProgressCallback) -> str:
    """Draw all sets and pack each as a tar; the folder's URI, under ``store``.

    The sets draw on disjoint scenes, but for the labeled ones of dense tasks, which show the same.
    """
    uri = artifact_uri(store, "sources", f"scenes-{config.digest[:12]}")
    if exists(join(uri, _RESULT)):
        return uri
    scene = config.scene
    to_label = replace(scene, size=config.labeled_size)
    fewest, most = config.labeled_objects
    crowd = replace(to_label, min_objects=fewest, max_objects=most)
    counts = (config.num_pairs, config.num_captioner_pairs, config.num_labeled, config.num_test)
    starts = [sum(counts[:i]) for i in range(5)]
    pairs, captioning, labeled, test = (range(a, b) for a, b in itertools.pairwise(starts))
    with tempfile.TemporaryDirectory(prefix="clipmill-scenes-") as scratch:
        root = Path(scratch)
        alone = replace(to_label, min_objects=1, max_objects=1)
        writers: dict[str, list[Job]] = {
            name: _cut(write_caption_folder, scene, indices, root / name, quality)
            for name, indices, quality in (
                (PAIRS, pairs, config.quality),
                (CAPTIONING, captioning, config.captioning_quality),
            )
        }
        for task in config.tasks:
            name, (write, splits, is_cut) = LABELS[task], _LABELED[task]
            kind = alone if task == "classification" else crowd
            writers[name] = [
                job
                for split, indices in zip(splits, (labeled, test), strict=True)
                for job in _cut(
                    partial(write, listed=indices) if task == "depth" else write,
                    kind,
                    indices,
                    root / name,
                    split,
                    size=SCENES_A_JOB if is_cut else 0,
                )
            ]
        jobs = _paired(writers)
        total, done = sum(size for _, size in jobs), 0
        with process_pool() as pool:
            submitted = [(pool.submit(job), size) for job, size in jobs]
            for future, size in submitted:
                future.result()
                done += size
                report(done, total, "scenes drawn")
        packed = {
            name: pack_dir(root / name, join(uri, name))
            for name, jobs_of in writers.items()
            if jobs_of
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


def _paired(writers: dict[str, list[Job]]) -> list[Job]:
    """All jobs; those of the same scenes for segmentation and depth are one, which draws once."""
    shared = [writers.get(LABELS[task], []) for task in ("segmentation", "depth")]
    if not all(shared):
        return [job for task_jobs in writers.values() for job in task_jobs]
    both = [
        (partial(_in_turn, first, second), size + more)
        for (first, size), (second, more) in zip(*shared, strict=True)
    ]
    alone = [job for task_jobs in writers.values() if task_jobs not in shared for job in task_jobs]
    return both + alone


def _in_turn(*writers: Callable[[], None]) -> None:
    for write in writers:
        write()


def _cut(
    write: Callable[..., None],
    scene: SceneConfig,
    indices: range,
    *arguments: Any,
    size: int = SCENES_A_JOB,
) -> list[Job]:
    """The writing of ``indices`` as jobs of ``size`` scenes; one job where that is 0."""
    step = size or max(1, len(indices))
    pieces = [indices[start : start + step] for start in range(0, len(indices), step)]
    return [(partial(write, scene, piece, *arguments), len(piece)) for piece in pieces]


# By task: its writer, the splits' names, and whether several may write a split: COCO's
# annotations are one file.
_LABELED: dict[str, tuple[Callable[..., None], tuple[str, str], bool]] = {
    "classification": (write_class_folder, ("train", "val"), True),
    "detection": (write_coco, ("train2017", "val2017"), False),
    "segmentation": (write_ade20k, ("training", "validation"), True),
    "depth": (write_nyu, ("train", "test"), True),
}


def has_scenes_ancestor(node: Node) -> bool:
    """Return whether a node or one of its ancestors is a set of scenes."""
    return _is_scenes(node) or any(has_scenes_ancestor(parent) for parent in node.parents)


def _is_scenes(node: Node) -> bool:
    if node.kind not in {"file", "folder"}:
        return node.kind == "source" and "scenes" in node.detail
    try:
        around = read_artifact(node.uri.rstrip("/").rpartition("/")[0])
    except ClipmillError:
        return False
    return around["kind"] == "source" and "scenes" in around.get("summary", {})

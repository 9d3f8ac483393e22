"""Zero-shot classification: a class is the mean embedding of sentences about it.

Radford et al. 2021, section 3.1. Shapes: B images, C classes, D embedding width.
"""

from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from clipmill.data.scoring.clip import ClipTowers, judge_parent
from clipmill.errors import BadSampleError, SourceError
from clipmill.images import decode_rgb
from clipmill.stage_records import Report
from clipmill.tasks.zero_shot_config import ZeroShotConfig
from clipmill.tasks.zero_shot_data import ClassPictures, open_pictures
from clipmill.tasks.zero_shot_prompts import class_names, prompt_templates
from clipmill.tasks.zero_shot_result import is_judged, result_place, write_result

if TYPE_CHECKING:
    from PIL import Image

_BATCH = 64


def zero_shot(config: ZeroShotConfig, data: str, store: str, *, report: Report) -> str:
    """Judge a CLIP on labelled pictures; the URI of the evaluation, under ``store``.

    Metrics: ``top1``, ``top5`` and ``mean_per_class`` (mean recall over the classes that have
    pictures), percent. Pictures that can't be used are left out and counted by reason, as
    ``skipped.REASON``. A result that is there already is returned at once.

    Raises:
        SourceError: there are no pictures, or a label is no class.
        ConfigError: there is no such model, or a template has no place for a name.
    """
    pictures = open_pictures(data, config.split)
    parents = (judge_parent(config.clip, "model"), pictures.parent)
    place = result_place(store, "zero-shot", config, parents, config.classes)
    if is_judged(place):
        return place.uri
    names = class_names(config.classes, pictures.classes)
    if not names:
        raise SourceError(
            f"{data} names no classes",
            expected="classnames.txt beside the tars, or a list of classes",
            action="give one with --classes",
        )
    towers = ClipTowers(config.clip)
    templates = prompt_templates(config.prompts, config.templates)
    classes_CD = class_embeddings(towers, names, templates)
    scores_BC, labels_B, skipped = _scores(towers, classes_CD, pictures, names, report)
    metrics = {k: 100 * v for k, v in accuracies(scores_BC, labels_B).items()}
    metrics |= {f"skipped.{reason}": float(count) for reason, count in sorted(skipped.items())}
    return write_result(place, metrics, {"top1": f"{metrics['top1']:.2f} %"})


def class_embeddings(
    towers: ClipTowers, names: Sequence[str], templates: Sequence[str]
) -> NDArray[np.float32]:
    """Unit vectors (C, D): the mean over templates of unit embeddings, brought to length 1."""
    sentences = [template.replace("{}", name) for name in names for template in templates]
    parts = [
        towers.encode_texts(sentences[start : start + towers.batch_size])
        for start in range(0, len(sentences), towers.batch_size)
    ]
    mean_CD = np.concatenate(parts).reshape(len(names), len(templates), -1).mean(axis=1)
    unit_CD: NDArray[np.float32] = mean_CD / np.linalg.norm(mean_CD, axis=1, keepdims=True)
    return unit_CD


def accuracies(scores_BC: NDArray[np.float32], labels_B: NDArray[np.int64]) -> dict[str, float]:
    """``top1``, ``top5`` and ``mean_per_class``, as shares.

    A tie counts against: another class as near as the right one is taken to be before it. With
    fewer than five classes top5 is 1.
    """
    own_B1 = np.take_along_axis(scores_BC, labels_B[:, None], axis=1)
    rank_B = (scores_BC >= own_B1).sum(axis=1) - 1
    hits = rank_B < 1
    by_class = [hits[labels_B == label].mean() for label in np.unique(labels_B)]
    return {
        "top1": float(hits.mean()),
        "top5": float((rank_B < 5).mean()),
        "mean_per_class": float(np.mean(by_class)),
    }


def _scores(
    towers: ClipTowers,
    classes_CD: NDArray[np.float32],
    pictures: ClassPictures,
    names: Sequence[str],
    report: Report,
) -> tuple[NDArray[np.float32], NDArray[np.int64], Counter[str]]:
    """Similarities (B, C), labels (B,), and the pictures that were left out, by reason."""
    numbers = {name: i for i, name in enumerate(pictures.classes or names)}
    total = len(pictures.files)
    scores: list[NDArray[np.float32]] = []
    labels: list[int] = []
    skipped: Counter[str] = Counter()
    waiting: list[Image.Image] = []

    def judge() -> None:
        scores.append(towers.encode_images(waiting) @ classes_CD.T)
        waiting.clear()
        report(len(labels), max(total, len(labels)), "judged")

    for found in pictures:
        if isinstance(found, BadSampleError):
            skipped[found.reason] += 1
            continue
        label = _number(found.label, numbers, len(names))
        try:
            waiting.append(decode_rgb(found.data))
        except BadSampleError as error:
            skipped[error.reason] += 1
            continue
        labels.append(label)
        if len(waiting) == _BATCH:
            judge()
    if waiting:
        judge()
    if not labels:
        raise SourceError(
            f"none of the data's {sum(skipped.values())} pictures can be used",
            expected="JPEG, PNG or WebP files with labels",
            action=f"mend the data; left out were {dict(skipped)}",
        )
    return np.concatenate(scores), np.array(labels, np.int64), skipped


def _number(label: str, numbers: dict[str, int], num_classes: int) -> int:
    number = numbers.get(label, int(label) if label.isascii() and label.isdigit() else -1)
    if not 0 <= number < num_classes:
        raise SourceError(
            f"a picture has the class {label!r}",
            expected=f"a number from 0 to {num_classes - 1}, or one of the classes' names",
            action="give the list of classes that the data was labelled with",
        )
    return number

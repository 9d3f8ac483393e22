"""ADE20K's layout: masks with ids of the list, as large as their images."""

from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from clipmill.data.labelled import IGNORED, Ade20kFolder, ade20k_classes
from clipmill.stage_records import Report
from clipmill.tasks.checks.findings import Findings


def check_segmentation(folder: Path, findings: Findings, report: Report) -> None:
    """Look at every image and mask of both splits."""
    classes = findings.attempt("layout", lambda: ade20k_classes(folder))
    if classes is None:
        return
    pixels = np.zeros(256, np.int64)
    for split in ("training", "validation"):
        data = findings.attempt("layout", partial(Ade20kFolder.open, folder, split))
        if data is None:
            continue
        findings.num_samples[split] = len(data)
        for i in range(len(data)):
            _check_pair(data, i, findings, pixels if split == "training" else None)
            report(i + 1, len(data), f"{split} looked at")
    if findings.num_samples.get("training"):
        for number, name in enumerate(classes):
            if not pixels[number]:
                findings.note("class-without-pixels", f"{name} ({number}) in training")


def _check_pair(
    data: Ade20kFolder, index: int, findings: Findings, pixels: NDArray[np.int64] | None
) -> None:
    name = str(data.labels[index])
    labels = findings.attempt("mask", lambda: data.classes_HW(index))
    image = findings.attempt("unreadable-image", lambda: data.image_HW3(index))
    if labels is None or image is None:
        return
    if labels.shape != image.shape[:2]:
        findings.fault("mask-of-another-size", f"{name}: {labels.shape}, image {image.shape[:2]}")
    if (labels == IGNORED).all():
        findings.note("nothing-labelled", name)
    if pixels is not None:
        pixels += np.bincount(labels.ravel(), minlength=256)

"""COCO's layout: an annotation file whose boxes, categories and images make sense."""

import json
from collections import Counter
from functools import partial
from pathlib import Path
from typing import Any

from clipmill.data.labelled_coco import coco_split
from clipmill.images import image_size
from clipmill.stage_records import Report
from clipmill.tasks.checks.findings import Findings

_HEADER_BYTES = 1 << 20


def check_detection(folder: Path, findings: Findings, report: Report) -> None:
    """Look at every annotation, and at the header of every image, of both splits."""
    names: dict[str, list[str]] = {}
    for kind in ("train", "val"):
        split = findings.attempt("layout", partial(coco_split, folder, kind))
        if split is None:
            continue
        path = folder / "annotations" / f"instances_{split}.json"
        try:
            content = json.loads(path.read_bytes())
            images = {image["id"]: image for image in content["images"]}
            labels = {c["id"]: str(c["name"]) for c in content["categories"]}
            annotations = list(content["annotations"])
        except (ValueError, KeyError, TypeError) as error:
            findings.fault("not-coco", f"{path}: {type(error).__name__} {error}")
            continue
        names[kind] = [labels[key] for key in sorted(labels)]
        findings.num_samples[split] = len(images)
        if len(images) < len(content["images"]):
            findings.fault("image-id-twice", f"{path}")
        for annotation in annotations:
            _check_annotation(path, annotation, images, labels, findings)
        counts = Counter(a.get("image_id") for a in annotations if isinstance(a, dict))
        for i, (key, image) in enumerate(images.items()):
            if not counts[key]:
                findings.note("image-without-annotation", str(image.get("file_name")))
            _check_image(folder / split, image, findings)
            report(i + 1, len(images), f"{split} looked at")
    if len({tuple(categories) for categories in names.values()}) > 1:
        findings.fault("categories-differ", "the splits' files list different categories")


def _check_annotation(
    path: Path,
    annotation: Any,
    images: dict[Any, Any],
    labels: dict[Any, str],
    findings: Findings,
) -> None:
    where = f"{path.name}: annotation {annotation.get('id')}"
    image = images.get(annotation.get("image_id"))
    if image is None:
        findings.fault("unknown-image", f"{where} has image_id {annotation.get('image_id')}")
    if annotation.get("category_id") not in labels:
        found = annotation.get("category_id")
        findings.fault("unknown-category", f"{where} has category_id {found}")
    if not annotation.get("segmentation"):
        findings.note("no-mask", f"{where} is left out")
    try:
        x, y, width, height = (float(value) for value in annotation["bbox"])
    except (KeyError, TypeError, ValueError):
        findings.fault("no-box", f"{where} has bbox {annotation.get('bbox')}")
        return
    # Comparisons with NaN are false.
    if not (width >= 1 and height >= 1):
        findings.note("degenerate-box", f"{where} is {width} x {height} pixels, and left out")
    elif image is not None and not (
        x >= -1
        and y >= -1
        and x + width <= image["width"] + 1
        and y + height <= image["height"] + 1
    ):
        findings.note("box-out-of-image", f"{where} has bbox {annotation['bbox']}, and is cut")


def _check_image(root: Path, image: dict[str, Any], findings: Findings) -> None:
    path = root / str(image.get("file_name"))
    if not path.is_file():
        findings.fault("missing-image", str(path))
        return

    def size() -> tuple[int, int]:
        with path.open("rb") as file:
            return image_size(file.read(_HEADER_BYTES))

    found = findings.attempt("image", size, str(path))
    stated = (image.get("width"), image.get("height"))
    # A photo that a camera marked as turned has its sides the other way round in the header.
    if found is not None and sorted(found) != sorted(s for s in stated if isinstance(s, int)):
        findings.fault("image-of-another-size", f"{path}: {found}, stated {stated}")

"""Write scenes in the layouts of real datasets: captions, ImageNet, ADE20K, NYU, COCO.

Each file is written under a temporary name and moved into place, so that a run that was killed can
be run again; every file is written again, none is skipped. ``progress`` is called after each scene
with the number of scenes written so far. Images are JPEG, so they equal ``draw()`` up to its loss;
masks and COCO's run lengths are exact; depth is rounded to a millimeter. StorageError where a
folder refuses the write.
"""

import io
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmill.errors import StorageError
from clipmill.scenes.geometry import CLASSES, OBJECTS, SceneConfig, sample_geometry
from clipmill.scenes.scene import Scene, draw
from clipmill.storage.local import temporary_path

Progress = Callable[[int], None] | None

SCENES_A_JOB = 128
"""Scenes that a process draws before another takes the next."""


def write_caption_folder(
    config: SceneConfig,
    indices: Iterable[int],
    folder: Path,
    quality: Literal["alt", "terse", "rich"],
    *,
    jpeg_quality: int = 92,
    progress: Progress = None,
) -> None:
    """``000123.jpg`` next to ``000123.txt`` for scene 123, captioned in ``quality``."""
    for index, scene in _drawn(config, indices, progress):
        _write(folder / f"{index:06d}.txt", scene.captions[quality].encode())
        # The image last: a folder's samples are its images.
        _write(folder / f"{index:06d}.jpg", _jpeg(scene, jpeg_quality))


def write_class_folder(
    config: SceneConfig,
    indices: Iterable[int],
    folder: Path,
    split: str,
    *,
    jpeg_quality: int = 92,
    progress: Progress = None,
) -> None:
    """The layout of ImageNet: ``<split>/CLASS/000123.jpg``, by the object that shows most.

    A scene in which none can be seen is left out.
    """
    for index, scene in _drawn(config, indices, progress):
        if scene.objects:
            main = max(scene.objects, key=lambda obj: obj.visible_pixels)
            _write(folder / split / main.name / f"{index:06d}.jpg", _jpeg(scene, jpeg_quality))


def write_ade20k(
    config: SceneConfig,
    indices: Iterable[int],
    folder: Path,
    split: Literal["training", "validation"],
    *,
    jpeg_quality: int = 92,
    progress: Progress = None,
) -> None:
    """The layout of ADEChallengeData2016.

    ``images/<split>/ADE_train_00000123.jpg`` (``ADE_val_`` in validation) and
    ``annotations/<split>/*.png``, where value k is ``CLASSES[k - 1]`` and 0 is unlabeled; the
    classes' names in ``objectInfo150.txt``, the name that readers of ADE20K look for.
    """
    rows = [f"{k}\t{name}" for k, name in enumerate(CLASSES, start=1)]
    _write(folder / "objectInfo150.txt", ("\n".join(["Idx\tName", *rows]) + "\n").encode())
    prefix = "ADE_train" if split == "training" else "ADE_val"
    for index, scene in _drawn(config, indices, progress):
        name = f"{prefix}_{index:08d}"
        _write(folder / "annotations" / split / f"{name}.png", _png(scene.classes_HW))
        _write(folder / "images" / split / f"{name}.jpg", _jpeg(scene, jpeg_quality))


def write_nyu(
    config: SceneConfig,
    indices: Iterable[int],
    folder: Path,
    split: Literal["train", "test"],
    *,
    listed: Sequence[int] | None = None,
    jpeg_quality: int = 92,
    progress: Progress = None,
) -> None:
    """The layout of NYU Depth v2 as GLPDepth and MIM-Depth-Estimation read it.

    ``folder`` stands for ``nyu_depth_v2``: ``train_list.txt`` names files below it,
    ``test_list.txt`` files below ``official_splits/test``. A line is ``/scenes_0000/rgb_00123.jpg
    /scenes_0000/sync_depth_00123.png 518.8579``: image, depth, focal length in pixels. Depth is
    uint16 PNG in millimeters along the optical axis. A list holds the scenes of its last run, or
    those of ``listed``, where several runs write them.
    """
    indices = list(indices)
    root = folder if split == "train" else folder / "official_splits" / "test"
    for index, scene in _drawn(config, indices, progress):
        image, depth = _nyu_names(index)
        millimeters = np.rint(scene.depth_HW * 1000).astype(np.uint16)
        _write(root / depth, _png(millimeters))
        _write(root / image, _jpeg(scene, jpeg_quality))
    lines = []
    for index in indices if listed is None else listed:
        image, depth = _nyu_names(index)
        focal = config.size / 2 / sample_geometry(config, index).camera.tan_half
        lines.append(f"/{image} /{depth} {focal:.4f}\n")
    _write(folder / f"{split}_list.txt", "".join(lines).encode())


def _nyu_names(index: int) -> tuple[str, str]:
    """Image and depth of a scene: a thousand to a directory, as if each were a room's recording."""
    room = f"scenes_{index // 1000:04d}"
    return f"{room}/rgb_{index:05d}.jpg", f"{room}/sync_depth_{index:05d}.png"


def write_coco(
    config: SceneConfig,
    indices: Iterable[int],
    folder: Path,
    split: str,
    *,
    jpeg_quality: int = 92,
    progress: Progress = None,
) -> None:
    """The layout of COCO, for any name of a split such as ``train2017``.

    Images under ``<split>/000000000123.jpg``; ``annotations/instances_<split>.json`` with a box
    (x, y, width, height) and an uncompressed run-length mask for each object that can be seen
    (category k is ``OBJECTS[k - 1]``); ``annotations/captions_<split>.json`` with the terse and
    the rich caption of each image.
    """
    images: list[dict[str, Any]] = []
    instances: list[dict[str, Any]] = []
    captions: list[dict[str, Any]] = []
    for index, scene in _drawn(config, indices, progress):
        name = f"{index:012d}.jpg"
        _write(folder / split / name, _jpeg(scene, jpeg_quality))
        images.append({"id": index, "file_name": name, "width": config.size, "height": config.size})
        for quality in ("terse", "rich"):
            captions.append(
                {"id": len(captions) + 1, "image_id": index, "caption": scene.captions[quality]}
            )
        for k, obj in enumerate(scene.objects, start=1):
            x0, y0, x1, y1 = obj.box
            instances.append(
                {
                    "id": len(instances) + 1,
                    "image_id": index,
                    "category_id": OBJECTS.index(obj.name) + 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0],
                    "area": obj.visible_pixels,
                    "iscrowd": 0,
                    "segmentation": _run_lengths(scene.instances_HW == k),
                }
            )
    categories = [
        {"id": k, "name": name, "supercategory": "object"}
        for k, name in enumerate(OBJECTS, start=1)
    ]
    info = {"description": f"clipmill scenes, seed {config.seed}"}
    head = {"info": info, "licenses": [], "images": images}
    _write_json(
        folder / "annotations" / f"instances_{split}.json",
        {**head, "categories": categories, "annotations": instances},
    )
    _write_json(
        folder / "annotations" / f"captions_{split}.json", {**head, "annotations": captions}
    )


def _drawn(
    config: SceneConfig, indices: Iterable[int], progress: Progress
) -> Iterator[tuple[int, Scene]]:
    for done, index in enumerate(indices, start=1):
        yield index, _draw(config, index)
        if progress is not None:
            progress(done)


# Tasks whose labels are of the same scenes are written one after the other.
_draw = lru_cache(maxsize=SCENES_A_JOB)(draw)


def _jpeg(scene: Scene, quality: int) -> bytes:
    file = io.BytesIO()
    # Full color resolution: halved, a small object's color would run.
    Image.fromarray(scene.image_HW3).save(file, "JPEG", quality=quality, subsampling=0)
    return file.getvalue()


def _png(values_HW: NDArray[Any]) -> bytes:
    file = io.BytesIO()
    Image.fromarray(values_HW).save(file, "PNG")
    return file.getvalue()


def _run_lengths(mask_HW: NDArray[np.bool_]) -> dict[str, Any]:
    """COCO's uncompressed RLE: run lengths down the columns, zeros first."""
    flat = np.concatenate([[False], mask_HW.ravel(order="F")])
    edges = np.flatnonzero(flat[1:] != flat[:-1])
    counts = np.diff(edges, prepend=0, append=mask_HW.size)
    return {"counts": counts.tolist(), "size": list(mask_HW.shape)}


def _write_json(path: Path, value: object) -> None:
    _write(path, json.dumps(value, separators=(",", ":")).encode())


def _write(path: Path, data: bytes) -> None:
    # No fsync, unlike storage.atomic_write: a scene lost to a power cut is drawn again.
    temporary = temporary_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise StorageError(
            f"can't write {path}: {error}",
            expected="a folder that this process may write in, on a disk with free space",
            action="fix the folder's permissions or disk, or choose another folder",
        ) from error

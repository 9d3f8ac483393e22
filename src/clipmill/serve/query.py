"""``clipmill query``: ask an endpoint about a picture, and draw its answer over it."""

import io
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from clipmill.errors import ConfigError
from clipmill.serve.client import Client
from clipmill.tasks.visualization import SHOWN_SCORE, draw_detections
from clipmill.tasks.visualization import class_palette, depth_colours, to_png

_ANSWER_SHARE: Final = 0.6
_NUM_LABELS: Final = 10


@dataclass(frozen=True, kw_only=True, slots=True)
class Answer:
    """What a model made of a picture."""

    model: str
    """The model that was asked."""
    lines: tuple[str, ...]
    """It in words: shares of classes, range of depth, objects, or labels with probabilities."""
    drawn_png: bytes
    """It over the picture; empty where there is nothing to draw."""


def ask(url: str, image: bytes, *, model: str = "", labels: tuple[str, ...] = ()) -> Answer:
    """Ask the model, or the only one, about an encoded image.

    Raises:
        ConfigError: several models are served and none was named, or a CLIP got no labels.
        ServerError: nobody listens there, or the answer isn't 200.
    """
    client = Client(url)
    name = model or _only(client.models(), url)
    about = client.metadata(name)["parameters"]
    if about["task"] == "clip":
        return _choice(client, name, image, labels)
    if about["task"] == "classification":
        return _classification(client, name, image, len(about["classes"]))
    if about["task"] == "detection":
        return _objects(client, name, image, tuple(about["classes"]))
    (output_HW,) = client.dense(name, [image])
    if about["classes"]:
        lines, colours_HW3 = _classes(output_HW, about["classes"])
    else:
        lines, colours_HW3 = _depth(output_HW)
    return Answer(model=name, lines=lines, drawn_png=_over(image, colours_HW3))


def _only(names: list[str], url: str) -> str:
    if len(names) != 1:
        raise ConfigError(
            f"{url} serves {', '.join(names)}",
            expected="the name of one of them",
            action="give it with --model",
        )
    return names[0]


def _choice(client: Client, model: str, image: bytes, labels: tuple[str, ...]) -> Answer:
    if not labels:
        raise ConfigError(
            f"{model!r} is a CLIP, and no labels were given",
            expected="labels to choose from",
            action="give each with --label",
        )
    found = client.infer(
        model, images=[image], labels=labels, parameters={"top_k": min(_NUM_LABELS, len(labels))}
    )
    return _named(model, found)


def _classification(client: Client, model: str, image: bytes, num_classes: int) -> Answer:
    wishes = {"top_k": min(_NUM_LABELS, num_classes)}
    return _named(model, client.infer(model, images=[image], parameters=wishes))


def _named(model: str, found: dict[str, NDArray[Any]]) -> Answer:
    best = zip(found["top_labels"][0], found["top_probabilities"][0], strict=True)
    lines = tuple(f"{share:7.1%}  {label.decode()}" for label, share in best)
    return Answer(model=model, lines=lines, drawn_png=b"")


def _objects(client: Client, model: str, image: bytes, classes: tuple[str, ...]) -> Answer:
    (found,) = client.objects(model, [image], threshold=SHOWN_SCORE)
    lines = tuple(
        f"{score:7.1%}  {classes[label]} at {', '.join(f'{side:.0f}' for side in box)}"
        for score, label, box in zip(found["scores"], found["labels"], found["boxes"], strict=True)
    )
    drawn_HW3 = draw_detections(found, _pixels(image), classes)
    return Answer(model=model, lines=lines, drawn_png=to_png(drawn_HW3))


def _classes(
    classes_HW: NDArray[Any], names: list[str]
) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
    ids, counts = np.unique(classes_HW, return_counts=True)
    order = np.argsort(-counts)
    lines = tuple(
        f"{counts[i] / classes_HW.size:7.1%}  "
        + (names[ids[i]] if ids[i] < len(names) else f"class {ids[i]}")
        for i in order
    )
    return lines, class_palette()[classes_HW]


def _depth(depth_HW: NDArray[Any]) -> tuple[tuple[str, ...], NDArray[np.uint8]]:
    near, far = float(depth_HW.min()), float(depth_HW.max())
    lines = (
        f"nearest  {near:.2f} m",
        f"farthest {far:.2f} m",
        f"median   {np.median(depth_HW):.2f} m",
    )
    return lines, depth_colours(depth_HW, max(far, 1e-6))


def _over(image: bytes, colours_HW3: NDArray[np.uint8]) -> bytes:
    mixed_HW3 = (1 - _ANSWER_SHARE) * _pixels(image) + _ANSWER_SHARE * colours_HW3
    return to_png(np.rint(mixed_HW3).astype(np.uint8))


def _pixels(image: bytes) -> NDArray[np.uint8]:
    from PIL import ImageOps

    with Image.open(io.BytesIO(image)) as opened:
        return np.asarray(ImageOps.exif_transpose(opened).convert("RGB"))

"""Distillation targets: the embeddings of a sample by an ensemble of teachers.

A layer ``teacher/<ensemble>`` has in each row ``image``, an embedding for each stored
augmentation; ``text``, one for the real caption and then one for each synthetic caption; and
``augmentation``, the numbers of each stored augmentation (lists of float32), unless the teachers
saw the plain picture. An embedding holds those of all teachers side by side, as a fixed-size list
of halffloat.

Shapes: E the teachers' widths together, K numbers of an augmentation.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from clipmill.errors import BadSampleError, BadSampleReason

Replay = Callable[[bytes, NDArray[np.float32]], Tensor]


@dataclass(frozen=True, slots=True)
class TeacherLayer:
    """A teacher layer, and the transform that replays its stored augmentations."""

    layer: str
    """Its name, such as ``teacher/ensemble-1a2b3c4d``."""
    replay: Replay
    """Turns an image file into a 3HW tensor, by the parameters of a stored augmentation."""


@dataclass(frozen=True, slots=True)
class TeacherTargets:
    """The teachers' embeddings of one augmentation of a sample and of its captions."""

    image_E: Tensor
    real_E: Tensor
    synthetic_E: Tensor | None
    """Of the synthetic caption that was index, where one was."""
    augmentation_K: NDArray[np.float32] | None
    """Parameters of the image's augmentation; None without one."""


def sample_teacher_targets(
    teacher: pa.Table, row: int, caption: int | None, generator: np.random.Generator
) -> TeacherTargets:
    """Draw one of a row's augmentations; return its embedding and those of the captions.

    ``caption`` is the index of the synthetic caption in the batch, None for none. Raises
    BadSampleError (``missing_embedding``) if the layer has no embedding.
    """
    images, texts = (teacher[name][row].values for name in ("image", "text"))
    num_texts = 1 if caption is None else caption + 2
    if images is None or texts is None or not len(images) or len(texts) < num_texts:
        raise BadSampleError(
            BadSampleReason.MISSING_EMBEDDING, f"the teacher layer lacks a part of row {row}"
        )
    index = int(generator.integers(len(images)))
    numbers = None
    if "augmentation" in teacher.column_names:
        numbers = _numbers(teacher["augmentation"][row].values[index], np.float32)
    return TeacherTargets(
        _embedding(images[index]),
        _embedding(texts[0]),
        None if caption is None else _embedding(texts[caption + 1]),
        numbers,
    )


def _embedding(vector: pa.Scalar) -> Tensor:
    return torch.from_numpy(_numbers(vector, np.float16))


def _numbers(vector: pa.Scalar, kind: type[Any]) -> NDArray[Any]:
    # A copy: what lies under it is a mapped file, which isn't writable.
    return np.array(vector.values.to_numpy(zero_copy_only=False), kind)

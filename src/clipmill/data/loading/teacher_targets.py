"""What an ensemble of teachers made of a sample, drawn for one place in a batch.

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

from clipmill.errors import BadSampleError

Replay = Callable[[bytes, NDArray[np.float32]], Tensor]


@dataclass(frozen=True, slots=True)
class TeacherLayer:
    """What a loader takes from a teacher layer."""

    layer: str
    """Its name, such as ``teacher/ensemble-1a2b3c4d``."""
    replay: Replay
    """Makes a 3HW tensor of an image file by the numbers of a stored augmentation."""


@dataclass(frozen=True, slots=True)
class TeacherTargets:
    """The teachers' embeddings for a sample of a batch."""

    image_E: Tensor
    real_E: Tensor
    synthetic_E: Tensor | None
    """Of the synthetic caption that was drawn, where one was."""
    augmentation_K: NDArray[np.float32] | None
    """What was done to the picture that ``image_E`` is of; None: nothing."""


def sample_teacher_targets(
    teacher: pa.Table, row: int, caption: int | None, generator: np.random.Generator
) -> TeacherTargets:
    """One of a row's augmentations, with the embeddings of it and of the captions.

    ``caption`` is the place of the synthetic caption that the batch holds, None if it holds none.
    Raises BadSampleError (``no-embedding``) where the teachers gave none.
    """
    images, texts = (teacher[name][row].values for name in ("image", "text"))
    num_texts = 1 if caption is None else caption + 2
    if images is None or texts is None or not len(images) or len(texts) < num_texts:
        raise BadSampleError("no-embedding", f"the teacher layer lacks a part of row {row}")
    drawn = int(generator.integers(len(images)))
    numbers = None
    if "augmentation" in teacher.column_names:
        numbers = _numbers(teacher["augmentation"][row].values[drawn], np.float32)
    return TeacherTargets(
        _embedding(images[drawn]),
        _embedding(texts[0]),
        None if caption is None else _embedding(texts[caption + 1]),
        numbers,
    )


def _embedding(vector: pa.Scalar) -> Tensor:
    return torch.from_numpy(_numbers(vector, np.float16))


def _numbers(vector: pa.Scalar, kind: type[Any]) -> NDArray[Any]:
    # A copy: what lies under it is a mapped file, which isn't writable.
    return np.array(vector.values.to_numpy(zero_copy_only=False), kind)

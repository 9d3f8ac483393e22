import numpy as np
import pytest

from clipmill.serve.adapters.task import pack_ragged
from clipmill.serve.errors import BadRequestError
from clipmill.tasks.registry import TASKS


def detection(num: int, side: int = 4) -> dict[str, np.ndarray]:
    shapes = {"boxes": (num, 4), "scores": (num,), "labels": (num,), "masks": (num, side, side)}
    return {name: np.full(shape, num, np.float32) for name, shape in shapes.items()}


def test_objects_of_several_images_come_end_to_end() -> None:
    found = pack_ragged(TASKS["detection"].outputs, [detection(2), detection(0), detection(1)])
    assert found["counts"].tolist() == [2, 0, 1]
    assert found["scores"].tolist() == [2, 2, 1]
    assert found["boxes"].shape == (3, 4)
    assert found["masks"].shape == (3, 4, 4)


def test_masks_of_several_sizes_have_no_array() -> None:
    with pytest.raises(BadRequestError, match="one size"):
        pack_ragged(TASKS["detection"].outputs, [detection(1), detection(1, side=5)])


def test_probabilities_are_stacked() -> None:
    each = [{"probabilities": np.array([0.2, 0.8])}, {"probabilities": np.array([0.5, 0.5])}]
    found = pack_ragged(TASKS["classification"].outputs, each)
    assert found["probabilities"].tolist() == [[0.2, 0.8], [0.5, 0.5]]

"""Against pycocotools."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pycocotools import mask as coco

from clipmill.serve.protocol.rle import decode_rle, encode_rle


@settings(max_examples=200, deadline=None)
@given(
    height=st.integers(1, 70),
    width=st.integers(1, 70),
    seed=st.integers(0, 1000),
    share=st.sampled_from([0.0, 0.02, 0.5, 0.98, 1.0]),
)
def test_random_masks(height: int, width: int, seed: int, share: float) -> None:
    random = np.random.default_rng(seed).random((height, width))
    check((random < share).astype(np.uint8))


@pytest.mark.parametrize("side", [64, 700])
def test_long_runs(side: int) -> None:
    mask_HW = np.zeros((side, side), np.uint8)
    mask_HW[side // 3 : side // 2, 5 : side // 2] = 1
    check(mask_HW)


def check(mask_HW: np.ndarray) -> None:
    expected = coco.encode(np.asfortranarray(mask_HW))
    found = encode_rle(mask_HW)
    assert found["counts"] == expected["counts"].decode()
    assert found["size"] == expected["size"]
    np.testing.assert_array_equal(decode_rle(found), mask_HW)

"""A perceptual hash: 64 bits that stay nearly the same when a picture is re-encoded or resized.

The DCT hash of Zauner 2010 ("Implementation and Benchmarking of Perceptual Image Hash
Functions", section 3.2.2) in the form that the ImageHash package made common, so that its hashes
can be compared with ours.

Shapes: B batch, S = 32 side of the small picture, L = 8 frequencies kept each way.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

SIDE, LOW = 32, 8
# Coefficients of a flat picture are rounding noise, which mustn't become bits.
_DECIMALS = 6


def small_grey(image: Image.Image) -> NDArray[np.uint8]:
    """The picture as (S, S) grey values, shrunk by Lanczos."""
    return np.asarray(image.convert("L").resize((SIDE, SIDE), Image.Resampling.LANCZOS))


def perceptual_hashes(small_BSS: Sequence[NDArray[np.uint8]]) -> NDArray[np.uint64]:
    """Hashes (B,) of small grey pictures: which low frequencies lie above their median.

    The first bit is the most significant one, and rows come before columns, as in ImageHash.
    """
    pixels_BSS = np.stack(small_BSS).astype(np.float64)
    basis_LS = _dct_basis()
    low_BLL = np.round(basis_LS @ pixels_BSS @ basis_LS.T, _DECIMALS)
    low_BK = low_BLL.reshape(len(low_BLL), LOW * LOW)
    bits_BK = low_BK > np.median(low_BK, axis=1, keepdims=True)
    hashes: NDArray[np.uint64] = np.packbits(bits_BK, axis=1).view(">u8")[:, 0].astype(np.uint64)
    return hashes


@cache
def _dct_basis() -> NDArray[np.float64]:
    """The first L rows of the unnormalised DCT-II of length S."""
    frequency_L1 = np.arange(LOW)[:, None]
    place_S = np.arange(SIDE)
    basis_LS: NDArray[np.float64] = 2 * np.cos(
        np.pi * frequency_L1 * (2 * place_S + 1) / (2 * SIDE)
    )
    return basis_LS

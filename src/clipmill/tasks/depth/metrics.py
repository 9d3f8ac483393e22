"""Metrics of depth estimation, per image and averaged over images (Eigen et al. 2014).

Shapes: H image height, W image width; depths in metres.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from clipmill.errors import SourceError

_MIN_DEPTH_METRES = 1e-3

EIGEN_SIZE = (480, 640)
EIGEN_CROP = (slice(45, 471), slice(41, 601))
"""Rows and columns of NYUv2's images that are evaluated (Eigen et al. 2014). GLPDepth evaluates
NYUv2 within them whatever its options say, and Xie et al. 2023 took its evaluation over."""


class DepthMetrics:
    """Mean errors over images; pixels whose truth lies outside the range don't count.

    With ``eigen_crop``, nor do those of a 480x640 image outside Eigen et al.'s crop. The crop is
    defined for that size alone; all of any other image is evaluated.
    """

    def __init__(self, *, max_depth_metres: float, eigen_crop: bool = False) -> None:
        self._max = max_depth_metres
        self._eigen_crop = eigen_crop
        self._images: list[dict[str, float]] = []
        self.num_cropped = 0
        """Images that were evaluated within Eigen et al.'s crop."""

    def update(self, prediction_HW: NDArray[Any], truth_HW: NDArray[Any]) -> None:
        """Add an image; one without any valid pixel is left out."""
        assert prediction_HW.shape == truth_HW.shape
        is_cropped = self._eigen_crop and truth_HW.shape == EIGEN_SIZE
        if is_cropped:
            prediction_HW, truth_HW = prediction_HW[EIGEN_CROP], truth_HW[EIGEN_CROP]
        valid = (truth_HW > _MIN_DEPTH_METRES) & (truth_HW < self._max)
        if not valid.any():
            return
        self.num_cropped += is_cropped
        truth = truth_HW[valid].astype(np.float64)
        # As in GLPDepth: NaN is nearest, infinity is farthest.
        predicted = np.nan_to_num(
            prediction_HW[valid].astype(np.float64), nan=_MIN_DEPTH_METRES, posinf=self._max
        )
        predicted = np.clip(predicted, _MIN_DEPTH_METRES, self._max)
        ratio = np.maximum(truth / predicted, predicted / truth)
        log_difference = np.log(predicted) - np.log(truth)
        difference = predicted - truth
        self._images.append(
            {
                "d1": float((ratio < 1.25).mean()),
                "d2": float((ratio < 1.25**2).mean()),
                "d3": float((ratio < 1.25**3).mean()),
                "abs_rel": float((np.abs(difference) / truth).mean()),
                "sq_rel": float((difference**2 / truth).mean()),
                "rmse": float(np.sqrt((difference**2).mean())),
                "rmse_log": float(np.sqrt((log_difference**2).mean())),
                "log10": float(np.abs(np.log10(predicted) - np.log10(truth)).mean()),
                "silog": float(
                    np.sqrt((log_difference**2).mean() - 0.5 * log_difference.mean() ** 2)
                ),
            }
        )

    @property
    def per_image(self) -> dict[str, NDArray[np.float64]]:
        """Each metric of the images that have a valid pixel, in their order."""
        names = self._images[0] if self._images else ()
        return {name: np.array([image[name] for image in self._images]) for name in names}

    def result(self) -> dict[str, float]:
        """Return each metric's mean over images: d1, d2, d3 are fractions, rmse is in metres.

        Raises:
            SourceError: no image has a valid pixel.
        """
        if not self._images:
            raise SourceError(
                "no test image has a pixel of known depth",
                expected=f"depths above {_MIN_DEPTH_METRES} and below {self._max} metres",
                action="check the unit of the depth files: NYU's PNGs hold millimetres",
            )
        names = self._images[0]
        return {name: float(np.mean([image[name] for image in self._images])) for name in names}

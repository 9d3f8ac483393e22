"""Batch augmentation of supervised training: mixup, CutMix and random erasing.

All randomness is torch's, so that a run that resumes mixes as it would have mixed.

Shapes: B batch, H W height and width, C classes.
"""

import torch
from torch import Tensor

_ERASED_AREA = (0.02, 1 / 3)  # Zhong et al. 2020
_ERASED_RATIO = (0.3, 1 / 0.3)


def mix(
    images_B3HW: Tensor, targets_BC: Tensor, *, mixup: float, cutmix: float
) -> tuple[Tensor, Tensor]:
    """The batch mixed with itself in reverse order, by mixup or CutMix at even odds.

    ``mixup`` and ``cutmix`` are the alphas of their Beta distributions (Zhang et al. 2018; Yun et
    al. 2019); 0 leaves that one out.
    """
    kinds = [(name, alpha) for name, alpha in (("mixup", mixup), ("cutmix", cutmix)) if alpha]
    if not kinds:
        return images_B3HW, targets_BC
    name, alpha = kinds[int(torch.randint(len(kinds), ()))]
    weight = float(torch.distributions.Beta(alpha, alpha).sample())
    others_B3HW = images_B3HW.flip(0)
    if name == "mixup":
        images_B3HW = weight * images_B3HW + (1 - weight) * others_B3HW
    else:
        height, width = images_B3HW.shape[-2:]
        share = (1 - weight) ** 0.5
        rows, columns = _window(height, share), _window(width, share)
        images_B3HW = images_B3HW.clone()
        images_B3HW[..., rows, columns] = others_B3HW[..., rows, columns]
        replaced = (rows.stop - rows.start) * (columns.stop - columns.start)
        weight = 1 - replaced / (height * width)
    return images_B3HW, weight * targets_BC + (1 - weight) * targets_BC.flip(0)


def erase(images_B3HW: Tensor, probability: float) -> Tensor:
    """Fill a rectangle of this share of (normalized) images with noise (Zhong et al. 2020)."""
    images_B3HW = images_B3HW.clone()
    height, width = images_B3HW.shape[-2:]
    low, high = torch.tensor(_ERASED_RATIO).log()
    for image_3HW in images_B3HW:
        if float(torch.rand(())) >= probability:
            continue
        area = float(torch.empty(()).uniform_(*_ERASED_AREA)) * height * width
        ratio = float(torch.empty(()).uniform_(float(low), float(high)).exp())
        tall = min(height, max(1, round((area * ratio) ** 0.5)))
        wide = min(width, max(1, round((area / ratio) ** 0.5)))
        top = int(torch.randint(height - tall + 1, ()))
        left = int(torch.randint(width - wide + 1, ()))
        image_3HW[:, top : top + tall, left : left + wide].normal_()
    return images_B3HW


def _window(length: int, share: float) -> slice:
    """A window of this share around a random center, cut where it leaves the image."""
    half = int(length * share) // 2
    center = int(torch.randint(length, ()))
    return slice(max(0, center - half), min(length, center + half))

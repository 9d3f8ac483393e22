"""RangeAugment: photometric augmentation whose strengths are learned (Mehta et al. 2022).

Each operator's strength is drawn uniformly between two learnable ends, image by image. A loss
draws the augmented images towards a distance from their originals, given as a PSNR, so that the
network itself finds the range that suits its data. It is part of the model, sits before
normalization, is trained by the model's optimizer, and does nothing in evaluation: so it belongs to
the model. Source: arXiv 2212.10553, and ``cvnets/neural_augmentor`` in
apple/ml-cvnets for what the paper leaves open.

Shapes: B batch, H W height and width. Images are in 0..1.
"""

import math

import torch
from torch import Tensor, nn

from clipmill.models.config import RangeAugmentConfig


class LearnableRange(nn.Module):
    """A strength between two ends, each kept inside an interval of its own by a sigmoid."""

    def __init__(
        self,
        low_interval: tuple[float, float],
        high_interval: tuple[float, float],
        start: tuple[float, float],
    ) -> None:
        """``start`` holds the raw values of the two ends, before the sigmoid."""
        super().__init__()
        self.low_interval = low_interval
        self.high_interval = high_interval
        self.raw_low = nn.Parameter(torch.tensor(start[0]))
        self.raw_high = nn.Parameter(torch.tensor(start[1]))

    def ends(self) -> tuple[Tensor, Tensor]:
        """Return the low and the high end."""
        return _within(self.raw_low, self.low_interval), _within(self.raw_high, self.high_interval)

    def draw(self, count: int, generator: torch.Generator | None = None) -> Tensor:
        """Draw ``count`` strengths (count, 1, 1, 1); gradients reach both ends."""
        low, high = self.ends()
        shape = (count, 1, 1, 1)
        share = torch.rand(shape, generator=generator, device=low.device, dtype=low.dtype)
        return low + share * (high - low)


class RangeAugment(nn.Module):
    """Brightness, contrast and noise in random order, each on a random part of the batch."""

    target: Tensor

    def __init__(self, config: RangeAugmentConfig) -> None:
        super().__init__()
        self.config = config
        # Intervals and raw starts: ml-cvnets, the settings of RangeAugment's CLIP recipes.
        self.brightness = LearnableRange((0.1, 0.9), (1.1, 10.0), (0.5, 1.5))
        self.contrast = LearnableRange((0.1, 0.9), (1.1, 10.0), (0.5, 1.5))
        self.noise = LearnableRange((0.0, 5e-5), (1e-4, 1.0), (0.0, 0.1))
        self.register_buffer("target", torch.zeros(()), persistent=False)
        self.set_progress(0.0)

    def forward(self, images_B3HW: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """Return augmented images in 0..1; unchanged images in evaluation.

        ``generator`` must be of the images' device; without one torch's own stream is used.
        """
        if not self.training:
            return images_B3HW
        augmented_B3HW = images_B3HW
        operators = (
            (self.brightness, change_brightness),
            (self.contrast, change_contrast),
            (self.noise, lambda x, m: add_noise(x, m, generator)),
        )
        count = round(self.config.prob * len(images_B3HW))
        for number in _permutation(len(operators), images_B3HW.device, generator).tolist():
            strength, change = operators[number]
            chosen = _permutation(len(images_B3HW), images_B3HW.device, generator)[:count]
            changed = change(augmented_B3HW[chosen], strength.draw(count, generator))
            augmented_B3HW = augmented_B3HW.index_copy(0, chosen, changed.to(augmented_B3HW.dtype))
        return augmented_B3HW.clamp(0, 1)

    def set_progress(self, progress: float) -> None:
        """Set the target of the loss to that at ``progress`` (0..1) through training."""
        # In a tensor, so that a compiled step doesn't hold it for a constant.
        self.target.fill_(self.target_error(progress))

    def loss(self, augmented_B3HW: Tensor, images_B3HW: Tensor) -> Tensor:
        """Return the distance of the images' squared errors from the target.

        Smooth L1 between the mean squared error of each image, in units of 1/255, and the
        target's; mean over the batch, times ``weight`` / 255^2 (ml-cvnets,
        ``loss_fn/neural_augmentation.py``).
        """
        difference = 255 * (augmented_B3HW.float() - images_B3HW.float())
        error_B = difference.square().mean(dim=(1, 2, 3))
        loss: Tensor = nn.functional.smooth_l1_loss(error_B, self.target.expand_as(error_B))
        return loss * self.config.weight / 255**2

    def target_error(self, progress: float) -> float:
        """Return the target mean squared error, in units of 1/255: a cosine from start to end.

        In errors, not in decibels (ml-cvnets).
        """
        start, end = (
            squared_error(psnr_db)
            for psnr_db in (self.config.psnr_start_db, self.config.psnr_end_db)
        )
        return end + (start - end) / 2 * (1 + math.cos(math.pi * progress))


def change_brightness(images_B3HW: Tensor, strength_B111: Tensor) -> Tensor:
    """Scale the pixels; 1 leaves them."""
    return images_B3HW * strength_B111


def change_contrast(images_B3HW: Tensor, strength_B111: Tensor) -> Tensor:
    """Scale the distance from each channel's mean; 1 leaves the pixels."""
    mean_B311 = images_B3HW.mean(dim=(2, 3), keepdim=True)
    return mean_B311 + strength_B111 * (images_B3HW - mean_B311)


def add_noise(
    images_B3HW: Tensor, strength_B111: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Add Gaussian noise of this standard deviation."""
    noise_B3HW = torch.randn(
        images_B3HW.shape, generator=generator, device=images_B3HW.device, dtype=images_B3HW.dtype
    )
    return images_B3HW + noise_B3HW * strength_B111


def squared_error(psnr_db: float) -> float:
    """Return the mean squared error, in units of 1/255, of a peak signal-to-noise ratio."""
    return float(10 ** ((20 * math.log10(255) - psnr_db) / 10))


def _within(raw: Tensor, interval: tuple[float, float]) -> Tensor:
    low, high = interval
    return low + (high - low) * raw.sigmoid()


def _permutation(count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    return torch.randperm(count, generator=generator, device=device)

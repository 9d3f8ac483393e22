"""Learning-rate schedules: pure functions of the step."""

import math
from dataclasses import dataclass
from typing import Literal

from clipmill.config import Config


@dataclass(frozen=True, kw_only=True, slots=True)
class ScheduleConfig(Config):
    """How the learning rate moves between its peak and its minimum."""

    shape: Literal["cosine", "polynomial", "rise-and-fall", "step"] = "cosine"
    """``cosine`` and ``polynomial`` fall after a linear warm-up; ``rise-and-fall`` climbs over the
    first half and falls over the second, each as progress to ``power`` (Xie et al. 2023). ``step``
    falls to a tenth at each milestone, after a linear warm-up."""
    peak: float = 1e-3
    """Highest learning rate."""
    minimum: float = 1e-6
    """Lowest learning rate."""
    warmup_steps: int = 0
    """Steps of the linear warm-up from 0."""
    power: float = 1.0
    """Exponent of the polynomial shapes."""
    milestones: tuple[float, ...] = ()
    """Where ``step`` falls, as shares of all updates, ascending."""

    def at(self, step: int, num_steps: int) -> float:
        """Learning rate of update ``step`` (from 0) of ``num_steps``."""
        if self.shape == "rise-and-fall":
            half = num_steps / 2
            progress = step / half if step < half else (num_steps - step) / half
            share = progress**self.power
            return float(self.minimum + (self.peak - self.minimum) * share)
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        if self.shape == "step":
            passed = sum(step >= round(share * num_steps) for share in self.milestones)
            return float(self.peak * 0.1**passed)
        progress = (step - self.warmup_steps) / max(num_steps - self.warmup_steps, 1)
        if self.shape == "cosine":
            share = (1 + math.cos(math.pi * progress)) / 2
        else:
            share = (1 - progress) ** self.power
        return float(self.minimum + (self.peak - self.minimum) * share)

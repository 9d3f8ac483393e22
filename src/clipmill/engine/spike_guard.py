"""Skipping of updates with a loss spike, or without a finite loss and gradient.

The decision is made on the device, the same on all ranks. The fused optimizer reads it there as a
flag, so a GPU never waits for the host to look at a loss. The host learns of it one update later on
a GPU, and at once on a CPU.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from clipmill.engine.config import SpikeGuardConfig
from clipmill.engine.distributed import DistributedContext

# Decay of the running mean of the loss, and updates before it is used.
_MEAN_DECAY = 0.98
_MIN_UPDATES = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class StepDecision:
    """Decision on one update, as the host knows it."""

    step: int
    """Index of the update, from 0."""
    not_finite: bool
    """Skipped, since loss or gradient is not finite."""
    spike: bool
    """Skipped, since the loss is far above its running mean."""
    consecutive_skips: int
    """Consecutive skipped updates up to this one."""
    stopping: bool
    """True if any rank received SIGTERM."""

    @property
    def skipped(self) -> bool:
        """True if the update left weights and moments as they were."""
        return self.not_finite or self.spike


class LossSpikeGuard:
    """Checks each update by the mean loss over ranks and the norm of the gradient."""

    def __init__(self, config: SpikeGuardConfig, dist: DistributedContext) -> None:
        self._config = config
        self._dist = dist
        # Running mean of the loss, updates in it, and consecutive skips up to now.
        self.memory = torch.zeros(3, dtype=torch.float64, device=dist.device)
        self._pending: tuple[int, Tensor, torch.cuda.Event] | None = None

    def check(
        self, step: int, loss: Tensor, norm: Tensor, *, stopping: bool
    ) -> tuple[Tensor, StepDecision | None]:
        """Return the optimizer's ``found_inf``, and the newest decision known without waiting."""
        stops = torch.full_like(loss, float(stopping), dtype=torch.float64)
        pair = torch.stack([loss.detach().double(), stops])
        loss, stops = (self._dist.all_reduce_sum(pair) / self._dist.world_size).unbind()
        mean, count, num_skips = self.memory.unbind()
        not_finite = ~(torch.isfinite(loss) & torch.isfinite(norm))
        spike = torch.zeros_like(not_finite)
        if self._config.loss_spike_ratio is not None:
            limit = mean * self._config.loss_spike_ratio
            spike = ~not_finite & (count >= _MIN_UPDATES) & (loss > limit)
        skipped = not_finite | spike
        share = torch.where(count == 0, 1.0, 1 - _MEAN_DECAY)
        self.memory = torch.stack(
            [
                torch.where(skipped, mean, mean + (loss - mean) * share),
                count + (~skipped).double(),
                torch.where(skipped, num_skips + 1, 0.0),
            ]
        )
        flags = torch.stack([not_finite.double(), spike.double(), self.memory[2], stops])
        return skipped.float(), self._latest_ready(step, flags)

    def pop_pending(self) -> StepDecision | None:
        """Return the last update's decision if it is still pending; waits for the device."""
        pending, self._pending = self._pending, None
        return None if pending is None else _read(*pending)

    def _latest_ready(self, step: int, flags: Tensor) -> StepDecision | None:
        if not flags.is_cuda:
            return _decision(step, flags)
        earlier = self.pop_pending()
        copy = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
        copy.copy_(flags, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._pending = (step, copy, event)
        return earlier


def _read(step: int, flags: Tensor, event: torch.cuda.Event) -> StepDecision:
    event.synchronize()
    return _decision(step, flags)


def _decision(step: int, flags: Tensor) -> StepDecision:
    not_finite, spike, num_skips, stops = flags.tolist()
    return StepDecision(
        step=step,
        not_finite=bool(not_finite),
        spike=bool(spike),
        consecutive_skips=int(num_skips),
        stopping=stops > 0,
    )

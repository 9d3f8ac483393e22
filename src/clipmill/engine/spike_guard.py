"""Which updates are skipped: decided on the device, alike on all ranks, known to the host later.

The fused optimiser takes a step or none as a flag on its device says, so a GPU never waits for the
host to look at a loss. What the host learns is one update old on a GPU, and fresh on a CPU.
"""

from dataclasses import dataclass
import torch
from torch import Tensor
from clipmill.engine.config import GuardConfig
from clipmill.engine.distributed import Ranks

# How slowly the running mean of the loss follows it, and how many updates it needs to be trusted.
_MEAN_DECAY = 0.98
_MIN_UPDATES = 50


@dataclass(frozen=True, kw_only=True, slots=True)
class Verdict:
    """What became of an update, as the host knows it."""

    step: int
    """Which update, from 0."""
    not_finite: bool
    """Skipped, since loss or gradient is no number."""
    spike: bool
    """Skipped, since the loss is far above its running mean."""
    skipped_in_row: int
    """Updates skipped one after another, this one the last."""
    stopping: bool
    """Whether any rank was told to stop."""

    @property
    def skipped(self) -> bool:
        """Whether the update left weights and moments as they were."""
        return self.not_finite or self.spike


class Guard:
    """Judges each update by the mean loss over ranks and the norm of the gradient."""

    def __init__(self, config: GuardConfig, here: Ranks) -> None:
        self._config = config
        self._here = here
        # Running mean of the loss, updates in it, and how many were skipped in a row up to now.
        self.memory = torch.zeros(3, dtype=torch.float64, device=here.device)
        self._pending: tuple[int, Tensor, torch.cuda.Event] | None = None

    def judge(
        self, step: int, loss: Tensor, norm: Tensor, *, stopping: bool
    ) -> tuple[Tensor, Verdict | None]:
        """The optimiser's ``found_inf``, and the newest verdict that the host can have unwaited."""
        told = torch.full_like(loss, float(stopping), dtype=torch.float64)
        pair = torch.stack([loss.detach().double(), told])
        loss, told = (self._here.total(pair) / self._here.world_size).unbind()
        mean, count, in_row = self.memory.unbind()
        not_finite = ~(torch.isfinite(loss) & torch.isfinite(norm))
        spike = torch.zeros_like(not_finite)
        if self._config.spike_ratio is not None:
            limit = mean * self._config.spike_ratio
            spike = ~not_finite & (count >= _MIN_UPDATES) & (loss > limit)
        skipped = not_finite | spike
        share = torch.where(count == 0, 1.0, 1 - _MEAN_DECAY)
        self.memory = torch.stack(
            [
                torch.where(skipped, mean, mean + (loss - mean) * share),
                count + (~skipped).double(),
                torch.where(skipped, in_row + 1, 0.0),
            ]
        )
        flags = torch.stack([not_finite.double(), spike.double(), self.memory[2], told])
        return skipped.float(), self._known(step, flags)

    def last(self) -> Verdict | None:
        """The verdict on the last update, if the host hasn't had it yet; waits for the device."""
        pending, self._pending = self._pending, None
        return None if pending is None else _read(*pending)

    def _known(self, step: int, flags: Tensor) -> Verdict | None:
        if not flags.is_cuda:
            return _verdict(step, flags)
        earlier = self.last()
        copy = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True)
        copy.copy_(flags, non_blocking=True)
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        self._pending = (step, copy, event)
        return earlier


def _read(step: int, flags: Tensor, event: torch.cuda.Event) -> Verdict:
    event.synchronize()
    return _verdict(step, flags)


def _verdict(step: int, flags: Tensor) -> Verdict:
    not_finite, spike, in_row, told = flags.tolist()
    return Verdict(
        step=step,
        not_finite=bool(not_finite),
        spike=bool(spike),
        skipped_in_row=int(in_row),
        stopping=told > 0,
    )

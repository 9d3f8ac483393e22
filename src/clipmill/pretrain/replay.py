"""Running a module twice on one batch as if it had run once.

Cached-feature accumulation (GradCache; Gao et al. 2021) passes each piece of a batch through the
towers without gradients first, and again with them once the features' gradients are known.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


@contextlib.contextmanager
def without_statistics(module: nn.Module) -> Iterator[None]:
    """Batch norms see their batch as in training, but don't move their running statistics."""
    norms = [
        m
        for m in module.modules()
        if isinstance(m, nn.modules.batchnorm._BatchNorm)  # noqa: SLF001
    ]
    kept = [norm.track_running_stats for norm in norms]
    for norm in norms:
        norm.track_running_stats = False
    try:
        yield
    finally:
        for norm, value in zip(norms, kept, strict=True):
            norm.track_running_stats = value


def random_state(device: torch.device) -> list[Tensor]:
    """Where the random streams of the CPU and of ``device`` stand."""
    state = [torch.get_rng_state()]
    if device.type == "cuda":
        state.append(torch.cuda.get_rng_state(device))
    return state


def set_random_state(state: list[Tensor], device: torch.device) -> None:
    """Draw again, from here on, what was drawn after :func:`random_state`."""
    torch.set_rng_state(state[0])
    if device.type == "cuda":
        torch.cuda.set_rng_state(state[1], device)

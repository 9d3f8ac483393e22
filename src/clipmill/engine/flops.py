"""Model FLOPs utilisation: what a step must compute, over what the device could in its time."""

from typing import Any

import torch

from clipmill.engine.objective import Objective

# Dense peaks without sparsity, FLOP/s, of bf16 tensor cores and of fp32 (NVIDIA's data sheets).
_PEAKS = {
    "B200": (2.25e15, 80e12),
    "H200": (989e12, 67e12),
    "H100": (989e12, 67e12),
    "A100": (312e12, 19.5e12),
    "L40S": (362e12, 91.6e12),
    "L4": (121e12, 30.3e12),
    "A10G": (70e12, 31.2e12),
}


def peak_flops(device: torch.device, precision: str) -> float | None:
    """FLOP/s of a known GPU; None for one that isn't, and for a CPU."""
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    for known, (bf16, fp32) in _PEAKS.items():
        if known in name:
            return bf16 if precision == "bf16" else fp32
    return None


@torch.no_grad()
def forward_flops(objective: Objective, batch: Any) -> float:
    """FLOPs of an objective's forward pass; its buffers are left as they were.

    A step's are three times as many, whatever recomputation it chooses to do (the usual count for
    MFU: the backward pass has two products for each of the forward pass).
    """
    from torch.utils.flop_counter import FlopCounterMode

    before = {name: buffer.clone() for name, buffer in objective.named_buffers()}
    with FlopCounterMode(display=False) as counter:
        objective.forward(batch)
    for name, buffer in objective.named_buffers():
        if name in before:
            buffer.copy_(before[name])
    return float(counter.get_total_flops())

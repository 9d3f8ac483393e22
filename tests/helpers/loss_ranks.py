"""What test_loss_at_scale.py computes in one process and in several; a script for each of these."""

import sys
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from clipmill.engine.distributed import DistributedContext, init_distributed
from clipmill.pretrain.clip import SourceMetrics
from clipmill.pretrain.config import DistillationConfig
from clipmill.pretrain.contrastive import ContrastiveLoss

SAMPLES = 16
NAMES = ("image", "real", "synthetic")
CASES = ("softmax", "sigmoid", "distilled")


def computed(case: str, dist: DistributedContext) -> dict[str, Tensor]:
    """Losses, and gradients of features and temperature, of one rank's share of a batch."""
    generator = torch.Generator().manual_seed(0)
    size = SAMPLES // dist.world_size
    own = slice(dist.rank * size, (dist.rank + 1) * size)

    def rows(width: int) -> Tensor:
        return F.normalize(torch.randn(SAMPLES, width, generator=generator), dim=1)[own]

    features = {name: rows(8).requires_grad_() for name in NAMES}
    teachers = {name: torch.cat([rows(6), rows(4)], dim=1) for name in NAMES}
    scale = torch.tensor(14.0, requires_grad=True)
    bias = torch.tensor(-2.0, requires_grad=True) if case == "sigmoid" else None
    distillation = None
    if case == "distilled":
        distillation = DistillationConfig(
            contrastive_weight=0.25, weight=0.75, teacher_widths=(6, 4), teacher_scale=10.0
        )
    kind = "sigmoid" if case == "sigmoid" else "softmax"
    loss = ContrastiveLoss(kind, dist, distillation, with_accuracy=True)
    output = loss(features, scale, bias, teachers if distillation else {})
    found = output.losses
    leaves = features | {"scale": scale} | ({} if bias is None else {"bias": bias})
    gradients = torch.autograd.grad(sum(found.values()), list(leaves.values()))
    named = {f"gradient of {k}": g for k, g in zip(leaves, gradients, strict=True)}
    sources = SourceMetrics(("first", "second"), dist)
    # Ranks have them in different numbers, and the last one none of the second.
    sources.add(torch.tensor([0, 1, 1] + [0] * (SAMPLES - 3))[own], output)
    return {k: v.detach() for k, v in found.items()} | named | sources.read()


def main(folder: Path) -> None:
    """Compute every case as the rank that the environment names."""
    with init_distributed() as dist:
        torch.save({case: computed(case, dist) for case in CASES}, folder / f"{dist.rank}.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))

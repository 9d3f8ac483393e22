"""Memory and time of the contrastive loss at a large batch: ours against open_clip's ClipLoss.

Each runs forward and backward in a process of its own; memory is the most that the process held
above what it held before the loss. Run: ``python benchmarks/contrastive_loss.py [BATCH [WIDTH]]``.
"""

import multiprocessing
import resource
import sys
import time
from multiprocessing.connection import Connection

import torch
from open_clip.loss import ClipLoss
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.nn import functional as F

from clipmill.engine.distributed import DistributedContext
from clipmill.pretrain.contrastive import ContrastiveLoss


def ours(images_BD: Tensor, texts_BD: Tensor, scale: Tensor) -> Tensor:
    """The loss, by way of pieces of the similarity matrix."""
    losses = ContrastiveLoss("softmax", DistributedContext())
    return losses({"image": images_BD, "real": texts_BD}, scale, None, {}).losses["real"]


def theirs(images_BD: Tensor, texts_BD: Tensor, scale: Tensor) -> Tensor:
    """The loss, by way of the whole matrix in both directions."""
    loss: Tensor = ClipLoss()(images_BD, texts_BD, scale)
    return loss


LOSSES = {"clipmill": ours, "open_clip": theirs}


def measure(name: str, batch: int, width: int, results: Connection) -> None:
    """Send bytes, seconds, and what shows that both computed the same."""
    torch.manual_seed(0)
    images, texts = (F.normalize(torch.randn(batch, width), dim=1) for _ in range(2))
    images.requires_grad_()
    texts.requires_grad_()
    scale = torch.tensor(50.0, requires_grad=True)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started = time.perf_counter()
    loss = LOSSES[name](images, texts, scale)
    torch.autograd.backward(loss)
    seconds = time.perf_counter() - started
    held = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024
    assert images.grad is not None
    results.send((held, seconds, loss.item(), images.grad.norm().item()))


def main(batch: int, width: int) -> None:
    """Print the table."""
    spawn = multiprocessing.get_context("spawn")
    found = {}
    for name in LOSSES:
        receiver, sender = spawn.Pipe()
        process = spawn.Process(target=measure, args=(name, batch, width, sender))
        process.start()
        found[name] = receiver.recv()
        process.join()
    table = Table(title=f"Contrastive loss, batch {batch}, width {width}, fp32")
    for heading in ("loss of", "peak MiB", "seconds", "loss", "gradient norm"):
        table.add_column(heading, justify="right")
    for name, (held, seconds, loss, norm) in found.items():
        table.add_row(name, f"{held / 2**20:.0f}", f"{seconds:.1f}", f"{loss:.6f}", f"{norm:.6e}")
    console = Console()
    console.print(table)
    memory, speed = (found["open_clip"][i] / found["clipmill"][i] for i in (0, 1))
    console.print(f"open_clip / clipmill: memory {memory:.1f}, time {speed:.2f}")


if __name__ == "__main__":
    main(*(int(text) for text in (sys.argv[1:] + ["16384", "512"][len(sys.argv) - 1 :])))

"""ViT-B/16 on a GPU, on G and on G + S: utilisation, samples a second, memory.

``python benchmarks/gpu.py --batch 512``. Without a GPU it says so and measures nothing.
"""

import argparse
import sys

import torch
from pretrain import step_seconds
from rich.console import Console
from rich.table import Table
from towers import BASE, hardware, pairs

from clipmill.engine.config import TrainConfig
from clipmill.engine.distributed import ranks
from clipmill.engine.flops import forward_flops, peak_flops
from clipmill.engine.operation import OperationConfig
from clipmill.pretrain.clip_objective import ClipObjective


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument("--micro-batches", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="bf16")
    parser.add_argument("--compile", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("no GPU here: nothing was measured")
    config = TrainConfig(
        steps=100_000,
        batch_size=options.batch,
        micro_batches=options.micro_batches,
        precision=options.precision,
        operation=OperationConfig(compile=options.compile),
    )
    with ranks() as here:
        torch.cuda.reset_peak_memory_stats()
        seconds = step_seconds(BASE, config, here, options.steps)
        peak = peak_flops(here.device, options.precision)
        table = Table(title=f"ViT-B/16, batch {options.batch}, {options.precision}")
        for heading in ("captions", "ms/step", "samples/s", "TFLOP/s", "MFU"):
            table.add_column(heading, justify="left" if heading == "captions" else "right")
        for name, value in seconds.items():
            batch = pairs(BASE, 8, synthetic=name != "G")
            sample = ClipObjective(BASE, here).to(here.device)
            on_gpu = type(batch)(
                batch.images_B3HW.to(here.device),
                batch.real_BT.to(here.device),
                None if batch.synthetic_BT is None else batch.synthetic_BT.to(here.device),
                (),
            )
            rate = 3 * forward_flops(sample, on_gpu) * options.batch / 8 / value
            share = f"{rate / peak:.2f}" if peak else "peak not known"
            cells = (f"{value * 1000:.0f}", f"{options.batch / value:.0f}", f"{rate / 1e12:.0f}")
            table.add_row(name, *cells, share)
        console = Console()
        console.print(table)
        console.print(f"G + S / G step time: {seconds['G + S'] / seconds['G']:.2f}")
        memory = torch.cuda.max_memory_allocated() / 2**30
        console.print(f"peak memory of both models together: {memory:.1f} GiB")
        console.print(hardware())


if __name__ == "__main__":
    main()

"""ViT-B/16 on a GPU, on G and on G + S: utilisation, samples a second, memory.

``python benchmarks/gpu.py --batch 512``, with ``--compile`` also compiled. Each case runs alone,
on batches that lie in pinned memory, so that what a loader takes isn't in it. Utilisation is of the
data sheet's peak; what a plain product of matrices reaches is printed below. Without a GPU it says
so and measures nothing.
"""

import argparse
import gc
import statistics
import sys
import time
from dataclasses import replace

import torch
from rich.console import Console
from rich.table import Table
from towers import BASE, hardware, matmul_flops, pairs

from clipmill.engine.config import RuntimeConfig, TrainConfig
from clipmill.engine.distributed import DistributedContext, init_distributed
from pretrain import build_train_step

_WARM = 3


def measure(
    config: TrainConfig, dist: DistributedContext, steps: int, *, synthetic: bool
) -> tuple[str, ...]:
    """The table's cells for one model: of its times the median."""
    torch.cuda.reset_peak_memory_stats()
    run = build_train_step(BASE, config, dist)
    batch = pairs(BASE, config.batch_size, synthetic=synthetic).pin_memory()
    laps = []
    for step in range(_WARM + steps):
        torch.cuda.synchronize()
        started = time.perf_counter()
        run(step, batch)
        torch.cuda.synchronize()
        laps.append(time.perf_counter() - started)
    seconds = statistics.median(laps[_WARM:])
    rate = (run.flops or 0) / seconds
    return (
        f"{seconds * 1000:.0f}",
        f"{config.batch_size / seconds:.0f}",
        f"{rate / 1e12:.0f}" if rate else "",
        f"{rate / run.peak_flops:.2f}" if run.peak_flops else "peak not known",
        f"{torch.cuda.max_memory_allocated() / 2**30:.1f}",
    )


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
        grad_accum_steps=options.grad_accum_steps,
        precision=options.precision,
    )
    pieces = f" in {options.grad_accum_steps} pieces" if options.grad_accum_steps > 1 else ""
    title = f"ViT-B/16, batch {options.batch}{pieces}, {options.precision}"
    table = Table(title=title, caption=hardware())
    for heading in ("captions", "form", "ms/step", "samples/s", "TFLOP/s", "MFU", "peak GiB"):
        table.add_column(heading, justify="left" if heading in {"captions", "form"} else "right")
    console = Console()
    with init_distributed() as dist:
        for is_compiled in (False, True) if options.compile else (False,):
            form = "compiled" if is_compiled else "eager"
            runtime = RuntimeConfig(compile=is_compiled)
            for captions in ("G", "G + S"):
                cells = measure(
                    replace(config, runtime=runtime),
                    dist,
                    options.steps,
                    synthetic=captions == "G + S",
                )
                table.add_row(captions, form, *cells)
                console.print(f"{captions}, {form}: {cells[0]} ms", style="dim")
                gc.collect()
                torch.cuda.empty_cache()
        plain = matmul_flops(dist.device, torch.bfloat16, 8192)
    console.print(table)
    console.print(f"a plain product of bf16 matrices of side 8192: {plain / 1e12:.0f} TFLOP/s")


if __name__ == "__main__":
    main()

"""What a CLIP run costs beside its arithmetic: ``python benchmarks/pretrain.py``.

Prints the step time of G + S over that of G (CLIP-QC trains on real and synthetic captions
together), the utilisation against a plain product of matrices, the stall of a checkpoint, and the
time from a saved state to the first step. Steps of what is compared alternate.
"""

import argparse
import statistics
import tempfile
import time

import torch
from rich.console import Console
from rich.table import Table
from towers import BASE, SMALL, hardware, matmul_flops, pairs, synchronize

from clipmill.engine.checkpoint import Checkpointer, TrainProgress
from clipmill.engine.config import TrainConfig
from clipmill.engine.distributed import DistributedContext, init_distributed
from clipmill.engine.metrics import forward_flops
from clipmill.engine.trainer import TrainStep
from clipmill.models.config import ClipConfig
from clipmill.pretrain.clip import ClipObjective

_CHECKPOINT_STEPS = 100


def build_train_step(model: ClipConfig, config: TrainConfig, dist: DistributedContext) -> TrainStep:
    """A fresh model and what trains it."""
    torch.manual_seed(config.seed)
    return TrainStep(ClipObjective(model, dist).to(dist.device).train(), config, dist)


def step_seconds(
    model: ClipConfig, config: TrainConfig, dist: DistributedContext, steps: int
) -> dict[str, float]:
    """Median seconds of a step on one kind of caption and on both, of usual and of full lengths."""
    batches = {
        f"{kind}{lengths}": pairs(
            model, config.batch_size, synthetic=kind == "G + S", is_padded=bool(lengths)
        )
        for lengths in ("", ", whole context")
        for kind in ("G", "G + S")
    }
    train_steps = {name: build_train_step(model, config, dist) for name in batches}
    laps: dict[str, list[float]] = {name: [] for name in batches}
    for step in range(steps + 1):
        for name, batch in batches.items():
            synchronize(dist.device)
            started = time.perf_counter()
            train_steps[name](step, batch)
            synchronize(dist.device)
            if step:
                laps[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in laps.items()}


def checkpoint(config: TrainConfig, dist: DistributedContext, steps: int) -> dict[str, float]:
    """Seconds: of a step, of one while a state is written, of the stall, of a resume."""
    batch = pairs(SMALL, config.batch_size)
    run = build_train_step(SMALL, config, dist)
    plain, busy, stalls = [], [], []

    def lap(step: int) -> float:
        started = time.perf_counter()
        run(step, batch)
        return time.perf_counter() - started

    lap(0)
    with tempfile.TemporaryDirectory() as folder:
        states = Checkpointer(folder, run.state, dist, keep_last=2)
        for step in range(1, steps + 1):
            plain.append(lap(step))
            started = time.perf_counter()
            states.save(TrainProgress(step=step))
            stalls.append(time.perf_counter() - started)
            busy.append(lap(step))
            states.finish(must_succeed=True)
        started = time.perf_counter()
        again = build_train_step(SMALL, config, dist)
        built = time.perf_counter()
        Checkpointer(folder, again.state, dist, keep_last=2).restore()
        restored = time.perf_counter()
        again(steps, batch)
    names = {"step": plain, "step while a state is written": busy, "stall": stalls}
    found = {name: statistics.median(values) for name, values in names.items()}
    found["building the model"] = built - started
    found["state to first step done"] = time.perf_counter() - built
    found["of which loading"] = restored - built
    return found


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--precision", choices=["fp32", "bf16"], default="fp32")
    parser.add_argument("--skip-base", action="store_true", help="leave ViT-B/16 out")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    console = Console()
    config = TrainConfig(steps=1000, batch_size=options.batch, precision=options.precision)
    with init_distributed() as dist:
        model, title = (SMALL, "ViT-Ti/16 at 112 px") if options.skip_base else (BASE, "ViT-B/16")
        seconds = step_seconds(model, config, dist, options.steps)
        table = Table(title=f"{title}, batch {options.batch}, {options.precision}")
        table.add_column("captions")
        table.add_column("s/step", justify="right")
        for name, value in seconds.items():
            table.add_row(name, f"{value:.2f}")
        console.print(table)
        for lengths in ("", ", whole context"):
            ratio = seconds[f"G + S{lengths}"] / seconds[f"G{lengths}"]
            console.print(f"G + S / G step time{lengths}: {ratio:.2f}")
        flops = 3 * forward_flops(
            ClipObjective(model, dist).to(dist.device), pairs(model, options.batch)
        )
        dtype = torch.bfloat16 if options.precision == "bf16" else torch.float32
        peak = matmul_flops(dist.device, dtype, 2048)
        console.print(
            f"G: {flops / seconds['G'] / 1e9:.0f} GFLOP/s of a plain product's {peak / 1e9:.0f}: "
            f"utilisation {flops / seconds['G'] / peak:.2f}"
        )
        found = checkpoint(config, dist, options.steps)
        for name, value in found.items():
            console.print(f"{name}: {value * 1000:.0f} ms")
        extra = found["stall"] + max(found["step while a state is written"] - found["step"], 0)
        share = extra / (_CHECKPOINT_STEPS * found["step"])
        console.print(f"a checkpoint every {_CHECKPOINT_STEPS} steps: {100 * share:.2f} % of time")
    console.print(hardware())


if __name__ == "__main__":
    main()

"""One process against two over gloo, on one global batch: ``python benchmarks/scaling.py``.

Each rank has one thread. Prints steps a second and the ratio; two is what two free cores could do.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time

import torch
from rich.console import Console
from towers import SMALL, hardware, pairs

from clipmill.engine.config import TrainConfig
from clipmill.engine.distributed import init_distributed
from clipmill.processes import free_ports
from pretrain import build_train_step


def child(batch_size: int, steps: int) -> None:
    """A rank; the first one prints its seconds a step."""
    torch.set_num_threads(1)
    config = TrainConfig(steps=1000, batch_size=batch_size)
    with init_distributed() as dist:
        run = build_train_step(SMALL, config, dist)
        batch = pairs(SMALL, dist.per_rank_batch_size(batch_size, 1), seed=dist.rank)
        laps = []
        for step in range(steps + 1):
            started = time.perf_counter()
            run(step, batch)
            laps.append(time.perf_counter() - started)
        if dist.rank == 0:
            print(json.dumps(laps[1:]))


def measured(world_size: int) -> float:
    """Median seconds of a step with so many ranks."""
    common = {
        **os.environ,
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_ports(1)[0]),
        "GLOO_SOCKET_IFNAME": "lo",
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, __file__, *sys.argv[1:], "--child"],
            env={**common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
        )
        for rank in range(world_size)
    ]
    told = [process.communicate()[0] for process in processes]
    seconds: list[float] = json.loads(told[0].splitlines()[-1])
    return statistics.median(seconds)


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.batch, options.steps)
        return
    one, two = (measured(number) for number in (1, 2))
    console = Console()
    console.print(f"1 process: {one * 1000:.0f} ms a step; 2 processes: {two * 1000:.0f} ms")
    console.print(f"speed of 2 over 1: {one / two:.2f}")
    console.print(hardware())


if __name__ == "__main__":
    main()

"""How many scenes a second one core draws, and at what size: ``python benchmarks/scenes.py``.

Set OMP_NUM_THREADS=1 on a machine that does other work. Times are of the whole ``draw()``: world,
picture, masks, depth, captions.
"""

import os
import platform
import time
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from clipmill.scenes import SceneConfig, draw

_ROUNDS = 5


def hardware() -> str:
    """The processor, its number of cores, and the versions that matter."""
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text().splitlines()
        if line.startswith("model name")
    ]
    processor = names[0] if names else platform.processor()
    return (
        f"{processor}, {os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; "
        f"Python {platform.python_version()}, numpy {np.__version__}"
    )


def seconds_per_scene(config: SceneConfig, count: int) -> float:
    """The best of a few rounds of ``count`` scenes: noise only ever adds."""
    draw(config, 0)
    rounds = []
    for _ in range(_ROUNDS):
        start = time.perf_counter()
        for index in range(count):
            draw(config, index)
        rounds.append((time.perf_counter() - start) / count)
    return min(rounds)


def main() -> None:
    """Print the table."""
    table = Table(title="Procedural scenes, one core", caption=hardware())
    for heading in ("size", "supersample", "images/s", "ms/image"):
        table.add_column(heading, justify="right")
    for size, supersample, count in (
        (64, 2, 100),
        (64, 1, 100),
        (128, 2, 40),
        (256, 2, 15),
        (512, 2, 4),
        (1024, 2, 1),
    ):
        seconds = seconds_per_scene(SceneConfig(size=size, supersample=supersample), count)
        table.add_row(str(size), str(supersample), f"{1 / seconds:.1f}", f"{1000 * seconds:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()

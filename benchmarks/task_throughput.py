"""Images a second of whole task networks on this machine: encoder, neck and head.

As served, one image at a time: eager, with the encoder's branches fused, and compiled after that.
Rounds of what is compared alternate; random weights. ``python benchmarks/task_throughput.py``.
"""

import argparse
import itertools
import statistics
import time
from collections.abc import Callable

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from towers import hardware

from clipmill.models.encoders import open_encoder
from clipmill.models.reparameterise import reparameterised
from clipmill.recipes.registry import recipe
from clipmill.tasks.finetune import FinetuneConfig
from clipmill.tasks.registry import task_named

NETWORKS = {
    "ViT-B/16 + UperNet": ("open_clip:ViT-B-16", "upernet-vit-b16"),
    "MCi0 + SemanticFPN": ("timm:fastvit_mci0", "semantic-fpn-mci0"),
    "MCi1 + SemanticFPN": ("timm:fastvit_mci1", "semantic-fpn-mci1"),
    "MCi2 + SemanticFPN": ("timm:fastvit_mci2", "semantic-fpn-mci2"),
    # So small that what follows the network counts.
    "miniature + UperNet": ("timm:test_resnet", "upernet-miniature"),
    "ViT-B/16 + depth": ("open_clip:ViT-B-16", "depth-vit-b16"),
    "MCi0 + UperNet": ("timm:fastvit_mci0", "upernet-vit-b16"),
    "MCi0 + depth": ("timm:fastvit_mci0", "depth-vit-b16"),
}
_NUM_CLASSES = 150  # ADE20K's


def network(encoder: str, name: str) -> nn.Module:
    """The network that such a fine-tuning would serve."""
    config = recipe(name, FinetuneConfig)
    classes = tuple(str(number) for number in range(_NUM_CLASSES))
    torch.manual_seed(0)
    made = task_named(config.task).network(config.model, open_encoder(encoder).config, classes)
    return made.eval()


def seconds(run: Callable[[Tensor], object], image: Tensor) -> tuple[float, float]:
    """Of one image, on the wall and of the processor."""
    started = time.perf_counter(), time.process_time()
    run(image)
    return time.perf_counter() - started[0], time.process_time() - started[1]


@torch.inference_mode()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="side of the image, pixels")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    image = torch.rand(1, 3, options.size, options.size)
    title = f"{options.size} x {options.size} pixels, one image at a time, fp32"
    table = Table(title=title, caption=hardware())
    for heading in ("network", "form", "M parameters", "images/s", "images/CPU s", "speed"):
        table.add_column(heading, justify="left" if heading in {"network", "form"} else "right")
    for name in options.networks:
        eager = network(*NETWORKS[name])
        forms: dict[str, nn.Module] = {"eager": eager, "fused": reparameterised(eager)}
        if options.compile:
            forms["compiled"] = torch.compile(forms["fused"])
        for run in forms.values():
            run(image)
        laps: dict[str, list[tuple[float, float]]] = {form: [] for form in forms}
        for _, (form, run) in itertools.product(range(options.rounds), forms.items()):
            laps[form].append(seconds(run, image))
        medians = {f: [statistics.median(s) for s in zip(*x, strict=True)] for f, x in laps.items()}
        for form, (wall, cpu) in medians.items():
            millions = sum(p.numel() for p in forms[form].parameters()) / 1e6
            speed = medians["eager"][1] / cpu
            figures = (f"{millions:.2f}", f"{1 / wall:.2f}", f"{1 / cpu:.2f}", f"{speed:.2f}x")
            table.add_row(name, form, *figures)
    Console().print(table)


if __name__ == "__main__":
    main()

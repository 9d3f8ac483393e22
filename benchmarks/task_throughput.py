"""Images a second of whole task networks on this machine: encoder, neck and head.

Eager; with the encoder's branches fused; as served, which is fused, channels last, each image of a
batch by itself; compiled; and where onnxruntime is installed, exported to ONNX. Rounds of what is
compared alternate; random weights. ``python benchmarks/task_throughput.py``. On a GPU a batch is
served as one, and what bf16 and TF32 would give is told in place of ONNX: ``--batch 32``.
"""

import argparse
import importlib.util
import itertools
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial

import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from towers import hardware, synchronize

from clipmill.models.execution import InferenceThreadPool, fuse_branches
from clipmill.models.pretrained import open_encoder
from clipmill.recipes.registry import get_recipe
from clipmill.tasks.finetune import FinetuneConfig
from clipmill.tasks.registry import get_task

NETWORKS = {
    "ViT-B/16 + UperNet": ("random:open_clip/ViT-B-16", "upernet-vit-b16"),
    "MCi0 + SemanticFPN": ("random:timm/fastvit_mci0", "semantic-fpn-mci0"),
    "MCi1 + SemanticFPN": ("random:timm/fastvit_mci1", "semantic-fpn-mci1"),
    "MCi2 + SemanticFPN": ("random:timm/fastvit_mci2", "semantic-fpn-mci2"),
    # So small that what follows the network counts.
    "tiny + UperNet": ("random:timm/test_resnet", "upernet-tiny"),
    "ViT-B/16 + depth": ("random:open_clip/ViT-B-16", "depth-vit-b16"),
    "MCi0 + UperNet": ("random:timm/fastvit_mci0", "upernet-vit-b16"),
    "MCi0 + depth": ("random:timm/fastvit_mci0", "depth-vit-b16"),
}
_NUM_CLASSES = 150  # ADE20K's
_DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")


def network(encoder: str, name: str) -> nn.Module:
    """The network that such a fine-tuning would serve."""
    config = get_recipe(name, FinetuneConfig)
    classes = tuple(str(number) for number in range(_NUM_CLASSES))
    torch.manual_seed(0)
    made = get_task(config.task).build_inference_model(
        config.model, open_encoder(encoder).config, classes
    )
    return made.to(_DEVICE).eval()


def served(network: nn.Module) -> Callable[[Tensor], object]:
    """As :class:`~clipmill.tasks.predictor.Predictor` runs it."""
    network, threads = network.to(memory_format=torch.channels_last), InferenceThreadPool()

    @torch.inference_mode()
    def one(images_B3HW: Tensor) -> object:
        return network(images_B3HW.contiguous(memory_format=torch.channels_last))

    if _DEVICE.type == "cuda":
        return one
    return lambda images_B3HW: threads.map(one, torch.split(images_B3HW, 1))


def in_bf16(run: Callable[[Tensor], object], images_B3HW: Tensor) -> object:
    """Under autocast."""
    with torch.autocast(_DEVICE.type, torch.bfloat16):
        return run(images_B3HW)


def in_tf32(run: Callable[[Tensor], object], images_B3HW: Tensor) -> object:
    """With products of fp32 matrices rounded to TF32, as convolutions' are by default."""
    torch.set_float32_matmul_precision("high")
    try:
        return run(images_B3HW)
    finally:
        torch.set_float32_matmul_precision("highest")


def exported(network: nn.Module, images_B3HW: Tensor, threads: int) -> Callable[[Tensor], object]:
    """By ONNX Runtime, for batches and images of this size alone."""
    import onnxruntime

    with tempfile.NamedTemporaryFile(suffix=".onnx") as file:
        torch.onnx.export(network, (images_B3HW,), file.name, dynamo=True, external_data=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(file.name, options)
    name = session.get_inputs()[0].name
    return lambda images_B3HW: session.run(None, {name: images_B3HW.numpy()})


def seconds(run: Callable[[Tensor], object], images: Tensor) -> tuple[float, float]:
    """Of one batch, on the wall and of the processor."""
    synchronize(_DEVICE)
    started = time.perf_counter(), time.process_time()
    run(images)
    synchronize(_DEVICE)
    return time.perf_counter() - started[0], time.process_time() - started[1]


@torch.inference_mode()
def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--size", type=int, default=512, help="side of the image, pixels")
    parser.add_argument("--batch", type=int, default=1, help="images at once")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--compile", action=argparse.BooleanOptionalAction, default=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    images = torch.rand(options.batch, 3, options.size, options.size, device=_DEVICE)
    title = f"{options.batch} x {options.size} x {options.size} pixels, fp32"
    table = Table(title=title, caption=hardware())
    for heading in ("network", "form", "M parameters", "images/s", "images/CPU s", "speed"):
        table.add_column(heading, justify="left" if heading in {"network", "form"} else "right")
    for name in options.networks:
        eager = network(*NETWORKS[name])
        fused = fuse_branches(eager)
        forms: dict[str, Callable[[Tensor], object]] = {"eager": eager, "fused": fused}
        forms["served"] = served(fuse_branches(eager))
        if options.compile:
            forms["compiled"] = torch.compile(fused)
        if _DEVICE.type == "cuda":
            forms["served, TF32"] = partial(in_tf32, forms["served"])
            forms["served, bf16"] = partial(in_bf16, forms["served"])
        elif importlib.util.find_spec("onnxruntime"):
            forms["ONNX"] = exported(fused, images, options.threads)
        for run in forms.values():
            run(images)
        laps: dict[str, list[tuple[float, float]]] = {form: [] for form in forms}
        for _, (form, run) in itertools.product(range(options.rounds), forms.items()):
            laps[form].append(seconds(run, images))
        medians = {f: [statistics.median(s) for s in zip(*x, strict=True)] for f, x in laps.items()}
        for form, (wall, cpu) in medians.items():
            millions = sum(p.numel() for p in (eager if form == "eager" else fused).parameters())
            rates = (options.batch / wall, options.batch / cpu, medians["eager"][0] / wall)
            figures = (f"{millions / 1e6:.2f}", *(f"{rate:.2f}" for rate in rates))
            table.add_row(name, form, *figures)
    Console().print(table)


if __name__ == "__main__":
    main()

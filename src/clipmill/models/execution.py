"""Running a network: fused branches, memory layout, chunks, windows over images, CPU threads.

:func:`run_in_chunks` keeps output tensors below 2**30 elements, since a GPU's resize kernels use
32-bit indices. :class:`InferenceThreadPool` runs the images of a batch each on its own threads: a
batch's maps exceed the CPU caches that one image's fit in, and one thread's share of an operator is
too little to be worth sharing (``benchmarks/task_throughput.py --batch 8`` measures it).

On a CPU :func:`to_channels_last` avoids a bug: oneDNN 3.12 (torch 2.14.1) writes past its workspace
in the backward pass of one kind of convolution (kernel 1x1, a stride, no padding, channels last,
fewer input channels than a vector register holds: 8 of AVX2, 16 of AVX-512;
uxlfoundation/oneDNN#6035). The stems of MobileOne, FastViT, MCi and RepVGG have one, of three
channels. It corrupts memory at any image size that the stride divides; below 80 pixels it seldom
crashes, so that it goes unnoticed. Such a convolution reads only every stride-th pixel, so it is
computed as one of stride 1 on those pixels, which is exact.

Shapes: B batch, C output channels, H W image.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipmill.processes import available_cpus, lower_thread_priority

ModuleT = TypeVar("ModuleT", bound=nn.Module)
Item = TypeVar("Item")
Result = TypeVar("Result")

MAX_ELEMENTS = 2**30
"""Elements of one map at most. Bilinear resizing of channels-last tensors on a GPU counts in 32
bits (torch 2.11: ``upsample_bilinear2d_nhwc``); half of that is 4 GB of fp32, and fills any GPU."""


def run_in_chunks(run: Callable[[Tensor], Tensor], batch: Tensor, elements: int) -> Tensor:
    """Apply ``run`` to a batch (B, ...) in chunks of limited output.

    ``elements`` is the size of the largest map of one item. ``run`` must treat items independently.
    """
    pieces = torch.split(batch, max(1, MAX_ELEMENTS // elements))
    return run(batch) if len(pieces) == 1 else torch.cat([run(piece) for piece in pieces])


def fuse_branches(module: ModuleT) -> ModuleT:
    """Return a copy in evaluation mode whose branches and batch norms are single convolutions.

    Outputs are equal up to rounding; it can't be trained any more. A module without
    such branches is copied as it is. MobileOne's and FastViT's blocks, and so the MCi
    encoders of MobileCLIP, are made of them.
    """
    from timm.utils import reparameterize_model

    was_training = module.training
    module.eval()  # fused branches hold running statistics, never a batch's
    try:
        fused: ModuleT = reparameterize_model(module, inplace=False)
    finally:
        module.train(was_training)
    return fused


_MAX_UNSAFE_CHANNELS = 16


def to_channels_last(module: ModuleT) -> ModuleT:
    """Lay a module's weights out channels last, in place, and make it safe to train on a CPU.

    A weight's layout alone makes oneDNN run a convolution channels last, whatever its images' is.
    """
    for child in module.modules():
        if isinstance(child, nn.Conv2d) and _is_unsafe(child):
            child.register_forward_pre_hook(partial(_subsample, child.stride))
            child.stride = (1, 1)
    return module.to(memory_format=torch.channels_last)


def _is_unsafe(convolution: nn.Conv2d) -> bool:
    return (
        convolution.weight.device.type == "cpu"
        and convolution.kernel_size == (1, 1)
        and max(convolution.stride) > 1
        and convolution.padding in {(0, 0), "valid"}
        and convolution.groups == 1
        and convolution.in_channels < _MAX_UNSAFE_CHANNELS
    )


def _subsample(
    stride: tuple[int, ...], module: nn.Module, inputs: tuple[Tensor, ...]
) -> tuple[Tensor]:
    """Return the pixels that a strided 1x1 convolution reads."""
    del module
    (images_BCHW,) = inputs
    return (images_BCHW[..., :: stride[0], :: stride[1]],)


def set_num_threads(number: int = 0) -> None:
    """Set PyTorch's number of threads; 0 takes its default, within the container's CPU limit."""
    torch.set_num_threads(number or min(torch.get_num_threads(), available_cpus()))


class InferenceThreadPool:
    """PyTorch's threads, shared out among the images of a batch."""

    def __init__(self) -> None:
        self._num_threads = torch.get_num_threads()
        self._pool = cache(self._new_pool)

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """Return ``function`` of each item; an exception of one is raised once all have ended."""
        num_workers = min(len(items), self._num_threads)
        if num_workers < 2:
            return [function(item) for item in items]
        pool = self._pool(self._num_threads // num_workers)
        futures = [pool.submit(function, item) for item in items]
        wait(futures)
        # A worker's number is also what threads start with that PyTorch hasn't met yet.
        torch.set_num_threads(self._num_threads)
        return [future.result() for future in futures]

    def _new_pool(self, threads_each: int) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(
            self._num_threads // threads_each,
            thread_name_prefix="image",
            initializer=_start_worker,
            initargs=(threads_each,),
        )


def _start_worker(num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    lower_thread_priority()


def resize_and_run(
    images_B3HW: Tensor, short_side: int, multiple: int, network: Callable[[Tensor], Tensor]
) -> Tensor:
    """Run a dense network with the shorter side resized to ``short_side``.

    Both sides are padded to a multiple of ``multiple``. The output (B, C, H, W) is cropped and
    resized to the images' size.
    """
    height, width = images_B3HW.shape[-2:]
    factor = short_side / min(height, width)
    size = (max(1, round(height * factor)), max(1, round(width * factor)))
    if size != (height, width):
        images_B3HW = F.interpolate(
            images_B3HW, size, mode="bilinear", align_corners=False, antialias=True
        )
    below, right = (-side % multiple for side in size)
    output_BCHW = network(F.pad(images_B3HW, (0, right, 0, below), mode="replicate"))
    output_BCHW = output_BCHW[..., : size[0], : size[1]]
    if size == (height, width):
        return output_BCHW
    return F.interpolate(output_BCHW, (height, width), mode="bilinear", align_corners=False)


def shifted_window_inference(
    images_B3HW: Tensor, num_windows: int, network: Callable[[Tensor], Tensor]
) -> Tensor:
    """Run a dense network on squares along the longer side, and average where they overlap.

    As Xie et al. 2023 test NYUv2 (their ``shift_window_test``): the first square lies at one end,
    the last at the other, the rest evenly between. There are more of them where ``num_windows``
    couldn't cover the image. A square image, or ``num_windows=1``, takes a single pass.
    """
    height, width = images_B3HW.shape[-2:]
    side, spare = min(height, width), abs(height - width)
    if num_windows == 1 or spare == 0:
        return network(images_B3HW)
    along = -1 if width > height else -2
    num_windows = max(num_windows, -(-spare // side) + 1)
    total = count = torch.zeros(())
    for i in range(num_windows):
        start = i * spare // (num_windows - 1)
        output = network(images_B3HW.narrow(along, start, side))
        if i == 0:
            total = output.new_zeros((*output.shape[:-2], height, width))
            count = output.new_zeros((height, width))
        total.narrow(along, start, side).add_(output)
        count.narrow(along, start, side).add_(1)
    return total / count


def sliding_window_inference(
    images_B3HW: Tensor, window: int, stride: int, network: Callable[[Tensor], Tensor]
) -> Tensor:
    """Run a dense network on overlapping windows, and average (mmseg's slide mode).

    Windows are ``stride`` pixels apart; the last of a row or column is moved back to fit. A side
    shorter than the window takes a single, shorter one.
    """
    height, width = images_B3HW.shape[-2:]
    tops, lefts = (_window_starts(side, window, stride) for side in (height, width))
    total = count = torch.zeros(())
    for top in tops:
        for left in lefts:
            rows = slice(top, min(top + window, height))
            columns = slice(left, min(left + window, width))
            output = network(images_B3HW[..., rows, columns])
            if top == left == 0:
                total = output.new_zeros((*output.shape[:-2], height, width))
                count = output.new_zeros((height, width))
            total[..., rows, columns] += output
            count[rows, columns] += 1
    return total / count


def _window_starts(side: int, window: int, stride: int) -> list[int]:
    """Return the first pixel of each window along a side."""
    number = max(side - window + stride - 1, 0) // stride + 1
    return [max(min(i * stride, side - window), 0) for i in range(number)]

"""Running a network well on the device: fused branches, memory layout, chunks, CPU threads.

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
"""

import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache, partial
from typing import Final, TypeVar

import torch
from torch import Tensor, nn

from clipmill.processes import available_cpus

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


# The event loop of the same process, which answers probes and rejects overload, has priority.
_NICENESS: Final = 5


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
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)

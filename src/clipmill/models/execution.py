"""Dense outputs of a batch, of as many images at once as a GPU's kernels can count."""

from collections.abc import Callable
import torch
from torch import Tensor
from typing import TypeVar
from torch import nn
from functools import partial
from torch import Tensor, nn
import os
import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from functools import cache
from typing import Final, TypeVar
from clipmill.processes import available_cpus

MOST_ELEMENTS = 2**30
"""Of one map. Bilinear resizing on a GPU counts in 32 bits where channels lie last (torch 2.11:
``upsample_bilinear2d_nhwc``); half of that is 4 GB of fp32, and fills any GPU."""


def few_at_once(run: Callable[[Tensor], Tensor], batch: Tensor, elements: int) -> Tensor:
    """``run`` of a batch (B, ...), each item of which becomes a map of so many elements on the way.

    Items must not see each other in ``run``.
    """
    pieces = torch.split(batch, max(1, MOST_ELEMENTS // elements))
    return run(batch) if len(pieces) == 1 else torch.cat([run(piece) for piece in pieces])


ModuleT = TypeVar("ModuleT", bound=nn.Module)


def reparameterised(module: ModuleT) -> ModuleT:
    """A copy in evaluation mode whose branches, with their batch norms, are single convolutions.

    Outputs are equal up to rounding; there is nothing to train in it any more. A module without
    such branches comes back as a plain copy. MobileOne's and FastViT's blocks, and so the MCi
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


_FEW_CHANNELS = 16


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
        and convolution.in_channels < _FEW_CHANNELS
    )


def _subsample(
    stride: tuple[int, ...], module: nn.Module, inputs: tuple[Tensor, ...]
) -> tuple[Tensor]:
    """The pixels that a strided 1x1 convolution sees."""
    del module
    (images_BCHW,) = inputs
    return (images_BCHW[..., :: stride[0], :: stride[1]],)


# An event loop beside them, which answers probes and refuses what is too much, goes first.
_NICENESS: Final = 5

Item = TypeVar("Item")
Result = TypeVar("Result")


def use_threads(number: int = 0) -> None:
    """Let PyTorch use so many threads; 0: as many as it would, within the container's CPU limit."""
    torch.set_num_threads(number or min(torch.get_num_threads(), available_cpus()))


class CpuThreads:
    """The threads that PyTorch has when this is made, for several images at once."""

    def __init__(self) -> None:
        self._num_threads = torch.get_num_threads()
        self._pool = cache(self._new_pool)

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> list[Result]:
        """``function`` of each item; what one raises comes through, once all have ended."""
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
            initializer=_begin,
            initargs=(threads_each,),
        )


def _begin(num_threads: int) -> None:
    torch.set_num_threads(num_threads)
    if sys.platform == "linux":  # where a thread has a priority of its own
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)

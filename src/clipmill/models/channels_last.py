"""Convolutions with channels last in memory, which both CPUs and GPUs run fastest.

On a CPU, oneDNN 3.12 (torch 2.14.1) writes past its workspace in the backward pass of one kind of
convolution: kernel 1x1, a stride, no padding, channels last, and fewer input channels than a vector
register holds (8 of AVX2, 16 of AVX-512; uxlfoundation/oneDNN#6035). The stems of MobileOne,
FastViT, MCi and RepVGG have one, of three channels. It corrupts memory at any image size that the
stride divides; below 80 pixels it seldom crashes, so that nobody notices. Such a convolution sees
only every stride-th pixel, so it is computed as one of stride 1 on those pixels, which is exact.
"""

from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn

ModuleT = TypeVar("ModuleT", bound=nn.Module)

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

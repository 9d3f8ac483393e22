"""Dense inference on images of any size, by resizing or by windows.

Shapes: B batch, C output channels, H W image.
"""

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F


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

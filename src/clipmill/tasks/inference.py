"""Pictures of any size through a network that was trained at one."""

from collections.abc import Callable
import torch
from torch import Tensor
from torch.nn import functional as F


def run_at(
    images_B3HW: Tensor, short_side: int, multiple: int, network: Callable[[Tensor], Tensor]
) -> Tensor:
    """``network``'s dense output (B, C, H, W) for images of any size.

    The shorter side is brought to ``short_side``, both are padded up to ``multiple`` for the
    network, and what it gives is cut and resized back.
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


def run_in_squares(
    images_B3HW: Tensor, num_windows: int, network: Callable[[Tensor], Tensor]
) -> Tensor:
    """``network``'s dense output of squares along the longer side, averaged where they overlap.

    As Xie et al. 2023 test NYUv2 (their ``shift_window_test``): the first square lies at one end,
    the last at the other, the rest evenly between. Where that many couldn't cover the image there
    are more of them. A square image, or ``num_windows`` of 1, is seen whole.
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
        found = network(images_B3HW.narrow(along, start, side))
        if i == 0:
            total = found.new_zeros((*found.shape[:-2], height, width))
            count = found.new_zeros((height, width))
        total.narrow(along, start, side).add_(found)
        count.narrow(along, start, side).add_(1)
    return total / count


def run_in_windows(
    images_B3HW: Tensor, window: int, stride: int, network: Callable[[Tensor], Tensor]
) -> Tensor:
    """``network``'s dense output of overlapping windows, averaged (mmseg's sliding test).

    Windows are ``stride`` pixels apart; the last of a row or column is moved back to fit. An
    image smaller than the window is seen as it is, along that side.
    """
    height, width = images_B3HW.shape[-2:]
    tops, lefts = (_starts(side, window, stride) for side in (height, width))
    total = count = torch.zeros(())
    for top in tops:
        for left in lefts:
            rows = slice(top, min(top + window, height))
            columns = slice(left, min(left + window, width))
            found = network(images_B3HW[..., rows, columns])
            if top == left == 0:
                total = found.new_zeros((*found.shape[:-2], height, width))
                count = found.new_zeros((height, width))
            total[..., rows, columns] += found
            count[rows, columns] += 1
    return total / count


def _starts(side: int, window: int, stride: int) -> list[int]:
    """Where windows along a side begin."""
    number = max(side - window + stride - 1, 0) // stride + 1
    return [max(min(i * stride, side - window), 0) for i in range(number)]

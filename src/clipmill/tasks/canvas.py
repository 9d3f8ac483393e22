"""Pictures of any size through a network that was trained at one."""

from collections.abc import Callable

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

"""A plain ViT for large pictures: attention within windows, and a few global blocks.

Exploring Plain Vision Transformer Backbones for Object Detection (Li et al. 2022,
arXiv:2203.16527), section 3: windows of the pretraining's grid; global attention in the last block
of each quarter.

Shapes: B batch, D width, h w the map's height and width, s a window's side.
"""

from torch import Tensor
from torch.nn import functional as F

from clipmill.models.dense import DenseEncoder, TimmEncoder, ViTEncoder, skip_block
from clipmill.models.config import EncoderConfig


class WindowedViTEncoder(ViTEncoder):
    """:class:`ViTEncoder` without its class token, whose weights it takes."""

    def __init__(self, config: EncoderConfig, drop_path: float) -> None:
        super().__init__(config, drop_path)
        # A token without a place belongs to no window.
        del self.trunk.class_embedding
        self.pruned = frozenset({"trunk.class_embedding"})
        blocks = config.vision.layers
        self.global_blocks = frozenset((n + 1) * blocks // 4 - 1 for n in range(4))
        """Numbers of the blocks that attend everywhere: 2, 5, 8 and 11 of twelve."""

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        """One map (B, D, H / patch, W / patch)."""
        patches_BDhw = self.trunk.conv1(self.normalize(images_B3HW))
        height, width = patches_BDhw.shape[-2:]
        tokens_BND = patches_BDhw.flatten(2).transpose(1, 2)
        tokens_BND = self.trunk.ln_pre(tokens_BND + self._positions(height, width)[1:])
        for number, block in enumerate(self.trunk.transformer.resblocks):
            if number in self.global_blocks:
                seen_BND = block(tokens_BND)
            else:
                windows, grid = to_windows(tokens_BND.unflatten(1, (height, width)), self._grid)
                seen_BND = from_windows(block(windows), grid, height, width).flatten(1, 2)
            drop = self._drop[number] if self.training else 0.0
            tokens_BND = skip_block(tokens_BND, seen_BND, drop)
        map_BDN = self.norm(tokens_BND).transpose(1, 2)
        return [map_BDN.reshape(-1, self.channels[0], height, width)]


def build_detector(config: EncoderConfig, *, drop_path: float = 0.0) -> DenseEncoder:
    """The encoder for detection, with fresh weights: our ViT in windows, timm's models as ever."""
    return (TimmEncoder if config.vision.timm_model else WindowedViTEncoder)(config, drop_path)


def to_windows(map_BhwD: Tensor, side: int) -> tuple[Tensor, tuple[int, int]]:
    """Windows (B * rows * columns, s * s, D) of the map filled up with zeros; rows, columns."""
    height, width, channels = map_BhwD.shape[1:]
    padded = F.pad(map_BhwD, (0, 0, 0, -width % side, 0, -height % side))
    rows, columns = padded.shape[1] // side, padded.shape[2] // side
    cut = padded.reshape(-1, rows, side, columns, side, channels).transpose(2, 3)
    return cut.reshape(-1, side * side, channels), (rows, columns)


def from_windows(windows: Tensor, grid: tuple[int, int], height: int, width: int) -> Tensor:
    """The map (B, h, w, D) that was cut into these windows."""
    rows, columns = grid
    side = int(windows.shape[1] ** 0.5)
    whole = windows.reshape(-1, rows, columns, side, side, windows.shape[-1]).transpose(2, 3)
    return whole.reshape(-1, rows * side, columns * side, windows.shape[-1])[:, :height, :width]

"""A timm model as CoCa's image tower: a pooled embedding, and a token for each place of a map.

Shapes: B batch, N tokens, D width of a token, E embedding width.
"""

import torch
from torch import Tensor, nn

from clipmill.errors import ConfigError


class TimmTokens(nn.Module):
    """Images (B, 3, H, W) to (pooled (B, E), tokens (B, N, D)), as CoCa asks of its tower."""

    def __init__(
        self, name: str, *, image_size: int, stride: int, width: int, embed_dim: int
    ) -> None:
        """Build the model with fresh weights.

        Raises:
            ConfigError: the model has no map of that stride.
        """
        import timm

        super().__init__()
        self.trunk = timm.create_model(name, num_classes=0)
        strides = [stage["reduction"] for stage in self.trunk.feature_info]
        if stride not in strides:
            raise ConfigError(
                f"{name} has no map of stride {stride}",
                expected=f"one of {', '.join(map(str, strides))}",
                action="change token_stride",
            )
        self._index = len(strides) - 1 - strides[::-1].index(stride)
        # Nothing above the map is run, so nothing above it is kept.
        self.trunk.prune_intermediate_layers([self._index], prune_norm=True)
        side = image_size // stride
        self.to_tokens = nn.Linear(self.trunk.feature_info[self._index]["num_chs"], width)
        self.positions = nn.Parameter(0.02 * torch.randn(side * side, width))
        self.norm = nn.LayerNorm(width)
        self.to_embedding = nn.Linear(width, embed_dim, bias=False)

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, Tensor]:
        """The mean token, projected, and the tokens."""
        (map_BDhw,) = self.trunk.forward_intermediates(
            images_B3HW, indices=[self._index], intermediates_only=True
        )
        tokens_BND = self.to_tokens(map_BDhw.flatten(2).transpose(1, 2)) + self.positions
        tokens_BND = self.norm(tokens_BND)
        return self.to_embedding(tokens_BND.mean(dim=1)), tokens_BND

"""The dense-encoder interface: any image tower as a list of feature maps with strides.

Shapes: B batch, D width, h w a map's height and width, N tokens.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipmill.errors import ConfigError
from clipmill.models.config import EncoderConfig
from clipmill.models.preprocess import Normalize
from clipmill.models.towers import build_vit, check_timm_model
from clipmill.models.config import VisionConfig


class Encoder(nn.Module, ABC):
    """A pretrained image tower, its tensors under ``trunk.`` (and ``norm.``), in layers."""

    pruned: frozenset[str] = frozenset()
    """Tensors of the pretrained tower that aren't needed here and that this module doesn't have."""
    num_layers: int
    """Layers for layer-wise learning-rate decay: 0 is the stem, ``num_layers`` the top."""
    stride: int = 1
    """What the sides of images must be multiples of, pixels."""

    def check_side(self, side: int) -> None:
        """Refuse square images of a side that the stride doesn't divide (ConfigError)."""
        if side % self.stride:
            below = side - side % self.stride
            sizes = " or ".join(str(s) for s in (below, below + self.stride) if s)
            raise ConfigError(
                f"images of {side} pixels a side, on an encoder of stride {self.stride}",
                expected=f"a multiple of {self.stride}",
                action=f"change the size in the recipe to {sizes}, or take another encoder",
            )

    @abstractmethod
    def layer_of(self, parameter: str) -> int:
        """Which layer a parameter (by its name in this module) belongs to: 0 .. num_layers."""


class DenseEncoder(Encoder):
    """Images (B, 3, H, W) in 0..1 to maps (B, channels[i], H / strides[i], W / strides[i])."""

    strides: tuple[int, ...]
    """Stride of each map, pixels, ascending."""
    channels: tuple[int, ...]
    """Width of each map."""

    @abstractmethod
    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        """The maps, finest first."""


class ViTTokens(Encoder):
    """open_clip's ViT up to its last norm."""

    def __init__(self, config: EncoderConfig, drop_path: float) -> None:
        super().__init__()
        self.normalize = Normalize(config.mean, config.std)
        self.trunk = build_vit(config.vision)
        self.trunk.proj = None
        self.trunk.ln_post = nn.Identity()
        self.norm = nn.LayerNorm(config.vision.width, eps=1e-5)
        self.num_layers = config.vision.layers + 1
        self.stride = config.vision.patch_size
        self._grid = config.vision.image_size // config.vision.patch_size
        blocks = config.vision.layers
        self._drop = [drop_path * i / max(blocks - 1, 1) for i in range(blocks)]

    def tokens(self, images_B3HW: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Normalised tokens (B, 1 + h * w, D), the class token first, and (h, w)."""
        patches_BDhw = self.trunk.conv1(self.normalize(images_B3HW))
        height, width = patches_BDhw.shape[-2:]
        tokens_BND = patches_BDhw.flatten(2).transpose(1, 2)
        class_B1D = self.trunk.class_embedding.expand(tokens_BND.shape[0], 1, -1)
        tokens_BND = torch.cat([class_B1D, tokens_BND], dim=1) + self._positions(height, width)
        tokens_BND = self.trunk.ln_pre(tokens_BND)
        for block, drop in zip(self.trunk.transformer.resblocks, self._drop, strict=True):
            tokens_BND = skip_block(tokens_BND, block(tokens_BND), drop if self.training else 0.0)
        return self.norm(tokens_BND), (height, width)

    def layer_of(self, parameter: str) -> int:
        """Patches and positions are layer 0, block i is layer i + 1, the last norm the top."""
        if "resblocks." in parameter:
            return int(parameter.split("resblocks.")[1].split(".", maxsplit=1)[0]) + 1
        return self.num_layers if parameter.startswith("norm.") else 0

    def _positions(self, height: int, width: int) -> Tensor:
        """Position embeddings (1 + h * w, D), interpolated where the grid differs."""
        positions: Tensor = self.trunk.positional_embedding
        if (height, width) == (self._grid, self._grid):
            return positions
        grid_1Dhw = positions[1:].T.reshape(1, -1, self._grid, self._grid)
        grid_1Dhw = F.interpolate(grid_1Dhw, (height, width), mode="bicubic", antialias=True)
        return torch.cat([positions[:1], grid_1Dhw[0].flatten(1).T])


class ViTEncoder(ViTTokens, DenseEncoder):
    """open_clip's ViT: one map, from the last block, class token left out."""

    def __init__(self, config: EncoderConfig, drop_path: float) -> None:
        super().__init__(config, drop_path)
        self.strides = (config.vision.patch_size,)
        self.channels = (config.vision.width,)

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        """One map (B, D, H / patch, W / patch)."""
        tokens_BND, (height, width) = self.tokens(images_B3HW)
        return [tokens_BND[:, 1:].transpose(1, 2).reshape(-1, self.channels[0], height, width)]


class TimmEncoder(DenseEncoder):
    """Any timm model: its stages' maps, or the last block's for a plain ViT."""

    def __init__(self, config: EncoderConfig, drop_path: float) -> None:
        super().__init__()
        self.normalize = Normalize(config.mean, config.std)
        self.trunk = timm_trunk(config.vision, drop_path)
        stages = self.trunk.feature_info
        by_stride = {stage["reduction"]: i for i, stage in enumerate(stages)}
        self._indices = sorted(by_stride.values())[-4:]
        self.strides = tuple(stages[i]["reduction"] for i in self._indices)
        self.channels = tuple(stages[i]["num_chs"] for i in self._indices)
        self.stride = max(self.strides)
        self.num_layers = len(stages)
        before = set(self.trunk.state_dict())
        self.trunk.prune_intermediate_layers(self._indices)
        self.pruned = frozenset(f"trunk.{name}" for name in before - set(self.trunk.state_dict()))
        self._layers = layers_of(self.trunk, [stage["module"] for stage in stages])

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        """The last map of each stride, four at most."""
        maps: list[Tensor] = self.trunk.forward_intermediates(
            self.normalize(images_B3HW), indices=self._indices, norm=True, intermediates_only=True
        )
        return maps

    def layer_of(self, parameter: str) -> int:
        """The stem is layer 0; a stage's parameters carry its number, from 1."""
        return self._layers[parameter.removeprefix("trunk.")]


def build_dense(config: EncoderConfig, *, drop_path: float = 0.0) -> DenseEncoder:
    """The encoder, with fresh weights."""
    return (TimmEncoder if config.vision.timm_model else ViTEncoder)(config, drop_path)


def timm_trunk(vision: VisionConfig, drop_path: float) -> Any:
    """A timm model without a classifier, for images of any size.

    Raises:
        ConfigError: timm has no such model.
    """
    import timm

    check_timm_model(vision)
    pool = "" if vision.pool == "default" else vision.pool
    options: dict[str, Any] = {**vision.timm_args, "num_classes": 0, "drop_path_rate": drop_path}
    if pool and vision.head in {"classifier", "none"}:
        options["global_pool"] = pool  # a ViT's last norm depends on it
    try:
        trunk = timm.create_model(vision.timm_model, dynamic_img_size=True, **options)
    except TypeError:  # it has no such option, since any size fits it, or none but its own
        trunk = timm.create_model(vision.timm_model, **options)
    if pool and vision.head in {"projection", "mlp"}:
        trunk.reset_classifier(0, global_pool=pool)  # as open_clip does below a projection
    return trunk


def layers_of(trunk: nn.Module, stages: Sequence[str]) -> dict[str, int]:
    """Layer by parameter's name: what lies between two stages goes with the later one."""
    layers, reached = {}, 0
    for name, _ in trunk.named_parameters():
        own = [n for n, stage in enumerate(stages, start=1) if name.startswith(f"{stage}.")]
        between = min(reached + 1, len(stages)) if reached else 0
        layers[name] = own[0] if own else between
        reached = max(reached, *own, 0)
    return layers


def skip_block(before: Tensor, after: Tensor, rate: float) -> Tensor:
    """Skip a block's whole update for a share ``rate`` of samples (Huang et al. 2016)."""
    if rate == 0.0:
        return after
    kept = torch.rand(after.shape[0], 1, 1, device=after.device) >= rate
    return before + (after - before) * kept / (1 - rate)

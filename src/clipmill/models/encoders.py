"""Image encoders: a pretrained tower as dense feature maps, or as one vector per image.

Vision transformers are open_clip's (``ViT*``), all other towers timm's (``Timm*``). For detection a
plain ViT attends within windows of the pretraining's grid, and globally in the last block of each
quarter (ViTDet: Li et al. 2022, arXiv:2203.16527, section 3).

Shapes: B batch, D width, h w a map's height and width, N tokens, s a window's side.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from clipmill.errors import ConfigError
from clipmill.models.config import CLIP_MEAN, CLIP_STD, EncoderConfig, VisionConfig
from clipmill.models.towers import build_vit, check_timm_model

MAX_CACHE_BYTES = 4 * 2**30
"""Memory limit of :class:`FeatureCache`; images beyond it are encoded each time."""


class Normalize(nn.Module):
    """``(images - mean) / std`` by channel, of images in 0..1; has no state to save."""

    mean_C11: Tensor
    std_C11: Tensor

    def __init__(
        self,
        mean: tuple[float, float, float] = CLIP_MEAN,
        std: tuple[float, float, float] = CLIP_STD,
    ) -> None:
        super().__init__()
        self.register_buffer("mean_C11", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("std_C11", torch.tensor(std)[:, None, None], persistent=False)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return normalized images of the same shape and memory layout."""
        normalized: Tensor = (images_B3HW - self.mean_C11) / self.std_C11
        return normalized


class Encoder(nn.Module, ABC):
    """A pretrained image tower, its tensors under ``trunk.`` (and ``norm.``), in layers."""

    pruned: frozenset[str] = frozenset()
    """Tensors of the pretrained tower that this module doesn't have, since it doesn't need them."""
    num_layers: int
    """Layers for layer-wise learning-rate decay: 0 is the stem, ``num_layers`` the top."""
    stride: int = 1
    """Number that an image's sides must be multiples of, pixels."""

    def validate_image_size(self, side: int) -> None:
        """Refuse square images of a side that the stride doesn't divide (ConfigError)."""
        if side % self.stride:
            below = side - side % self.stride
            sizes = " or ".join(str(s) for s in (below, below + self.stride) if s)
            raise ConfigError(
                f"images of {side} pixels a side, on an encoder of stride {self.stride}",
                expected=f"a multiple of {self.stride}",
                action=f"change the size in the recipe to {sizes}, or choose another encoder",
            )

    @abstractmethod
    def layer_id(self, parameter: str) -> int:
        """Return the layer (0 .. num_layers) of a parameter, by its name in this module."""


class DenseEncoder(Encoder):
    """Images (B, 3, H, W) in 0..1 to maps (B, channels[i], H / strides[i], W / strides[i])."""

    strides: tuple[int, ...]
    """Stride of each map, pixels, ascending."""
    channels: tuple[int, ...]
    """Width of each map."""

    @abstractmethod
    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        """Return the maps, finest first."""


class ViTTrunk(Encoder):
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
        """Return normalized tokens (B, 1 + h * w, D), the class token first, and (h, w)."""
        patches_BDhw = self.trunk.conv1(self.normalize(images_B3HW))
        height, width = patches_BDhw.shape[-2:]
        tokens_BND = patches_BDhw.flatten(2).transpose(1, 2)
        class_B1D = self.trunk.class_embedding.expand(tokens_BND.shape[0], 1, -1)
        tokens_BND = torch.cat([class_B1D, tokens_BND], dim=1) + self._positions(height, width)
        tokens_BND = self.trunk.ln_pre(tokens_BND)
        for block, drop in zip(self.trunk.transformer.resblocks, self._drop, strict=True):
            tokens_BND = apply_drop_path(
                tokens_BND, block(tokens_BND), drop if self.training else 0.0
            )
        return self.norm(tokens_BND), (height, width)

    def layer_id(self, parameter: str) -> int:
        """Return 0 for patches and positions, i + 1 for block i, the top for the last norm."""
        if "resblocks." in parameter:
            return int(parameter.split("resblocks.")[1].split(".", maxsplit=1)[0]) + 1
        return self.num_layers if parameter.startswith("norm.") else 0

    def _positions(self, height: int, width: int) -> Tensor:
        """Return position embeddings (1 + h * w, D), interpolated where the grid differs."""
        positions: Tensor = self.trunk.positional_embedding
        if (height, width) == (self._grid, self._grid):
            return positions
        grid_1Dhw = positions[1:].T.reshape(1, -1, self._grid, self._grid)
        grid_1Dhw = F.interpolate(grid_1Dhw, (height, width), mode="bicubic", antialias=True)
        return torch.cat([positions[:1], grid_1Dhw[0].flatten(1).T])


class ViTEncoder(ViTTrunk, DenseEncoder):
    """open_clip's ViT: one map, from the last block, class token left out."""

    def __init__(self, config: EncoderConfig, drop_path: float) -> None:
        super().__init__(config, drop_path)
        self.strides = (config.vision.patch_size,)
        self.channels = (config.vision.width,)

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        """Return one map (B, D, H / patch, W / patch)."""
        tokens_BND, (height, width) = self.tokens(images_B3HW)
        return [tokens_BND[:, 1:].transpose(1, 2).reshape(-1, self.channels[0], height, width)]


class TimmEncoder(DenseEncoder):
    """Any timm model: its stages' maps, or the last block's for a plain ViT."""

    def __init__(self, config: EncoderConfig, drop_path: float) -> None:
        super().__init__()
        self.normalize = Normalize(config.mean, config.std)
        self.trunk = timm_trunk(config.vision, drop_path)
        stages = self.trunk.feature_info
        self._indices, self.strides, self.channels = dense_levels(self.trunk)
        self.stride = max(self.strides)
        self.num_layers = len(stages)
        before = set(self.trunk.state_dict())
        self.trunk.prune_intermediate_layers(self._indices)
        self.pruned = frozenset(f"trunk.{name}" for name in before - set(self.trunk.state_dict()))
        self._layers = layer_ids_by_name(self.trunk, [stage["module"] for stage in stages])

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        """Return the last map of each stride, four at most."""
        maps: list[Tensor] = self.trunk.forward_intermediates(
            self.normalize(images_B3HW), indices=self._indices, norm=True, intermediates_only=True
        )
        return maps

    def layer_id(self, parameter: str) -> int:
        """Return 0 for the stem, and the stage's number (from 1) for a stage's parameters."""
        return self._layers[parameter.removeprefix("trunk.")]


def build_dense(config: EncoderConfig, *, drop_path: float = 0.0) -> DenseEncoder:
    """Build the dense encoder with random weights."""
    return (TimmEncoder if config.vision.timm_model else ViTEncoder)(config, drop_path)


def timm_trunk(vision: VisionConfig, drop_path: float) -> Any:
    """Build a timm model without its classifier, for images of any size.

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


def dense_levels(trunk: Any) -> tuple[list[int], tuple[int, ...], tuple[int, ...]]:
    """Return indices, strides (pixels) and widths of a timm model's maps: the last of each stride.

    Of the last four strides at most, ascending.
    """
    stages = trunk.feature_info
    by_stride = {stage["reduction"]: i for i, stage in enumerate(stages)}
    indices = sorted(by_stride.values())[-4:]
    strides = tuple(stages[i]["reduction"] for i in indices)
    return indices, strides, tuple(stages[i]["num_chs"] for i in indices)


def layer_ids_by_name(trunk: nn.Module, stages: Sequence[str]) -> dict[str, int]:
    """Return the layer by parameter name; parameters between two stages go with the later one."""
    layers, reached = {}, 0
    for name, _ in trunk.named_parameters():
        own = [n for n, stage in enumerate(stages, start=1) if name.startswith(f"{stage}.")]
        between = min(reached + 1, len(stages)) if reached else 0
        layers[name] = own[0] if own else between
        reached = max(reached, *own, 0)
    return layers


def apply_drop_path(before: Tensor, after: Tensor, rate: float) -> Tensor:
    """Drop a residual block for a share ``rate`` of samples (Huang et al. 2016)."""
    if rate == 0.0:
        return after
    kept = torch.rand(after.shape[0], 1, 1, device=after.device) >= rate
    return before + (after - before) * kept / (1 - rate)


class PooledEncoder(Encoder):
    """Images (B, 3, H, W) in 0..1 to vectors (B, ``width``), as they were before projection."""

    width: int
    """Width of a vector."""

    @abstractmethod
    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return the vectors."""


class PooledViT(ViTTrunk, PooledEncoder):
    """open_clip's ViT: the class token after the last norm; positions fit any grid."""

    def __init__(self, config: EncoderConfig, drop_path: float) -> None:
        super().__init__(config, drop_path)
        self.width = config.vision.width

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return the class token."""
        tokens_BND, _ = self.tokens(images_B3HW)
        return tokens_BND[:, 0]


class PooledTimm(PooledEncoder):
    """Any timm model, pooled its own way; its classifier is left out."""

    def __init__(self, config: EncoderConfig, drop_path: float) -> None:
        super().__init__()
        self.normalize = Normalize(config.mean, config.std)
        self.trunk = timm_trunk(config.vision, drop_path)
        with torch.no_grad():
            side = 2 * self.trunk.feature_info[-1]["reduction"]
            was_training = self.trunk.training
            self.width = self.trunk.eval()(torch.zeros(1, 3, side, side)).shape[1]
            self.trunk.train(was_training)
        stages = [stage["module"] for stage in self.trunk.feature_info]
        self.num_layers = len(stages)
        self._layers = layer_ids_by_name(self.trunk, stages)

    def forward(self, images_B3HW: Tensor) -> Tensor:
        """Return the model's own pooled features."""
        pooled_BD: Tensor = self.trunk(self.normalize(images_B3HW))
        return pooled_BD

    def layer_id(self, parameter: str) -> int:
        """Return 0 for the stem, and the stage's number (from 1) for a stage's parameters."""
        return self._layers[parameter.removeprefix("trunk.")]


def build_pooled(config: EncoderConfig, *, drop_path: float = 0.0) -> PooledEncoder:
    """Build the pooled encoder with random weights."""
    return (PooledTimm if config.vision.timm_model else PooledViT)(config, drop_path)


class WindowedViTEncoder(ViTEncoder):
    """:class:`ViTEncoder` without its class token, whose weights it takes."""

    def __init__(self, config: EncoderConfig, drop_path: float) -> None:
        super().__init__(config, drop_path)
        # A token without a position belongs to no window.
        del self.trunk.class_embedding
        self.pruned = frozenset({"trunk.class_embedding"})
        blocks = config.vision.layers
        self.global_blocks = frozenset((n + 1) * blocks // 4 - 1 for n in range(4))
        """Numbers of the blocks that attend everywhere: 2, 5, 8 and 11 of twelve."""

    def forward(self, images_B3HW: Tensor) -> list[Tensor]:
        """Return one map (B, D, H / patch, W / patch)."""
        patches_BDhw = self.trunk.conv1(self.normalize(images_B3HW))
        height, width = patches_BDhw.shape[-2:]
        tokens_BND = patches_BDhw.flatten(2).transpose(1, 2)
        tokens_BND = self.trunk.ln_pre(tokens_BND + self._positions(height, width)[1:])
        for number, block in enumerate(self.trunk.transformer.resblocks):
            if number in self.global_blocks:
                updated_BND = block(tokens_BND)
            else:
                windows, grid = to_windows(tokens_BND.unflatten(1, (height, width)), self._grid)
                updated_BND = from_windows(block(windows), grid, height, width).flatten(1, 2)
            drop = self._drop[number] if self.training else 0.0
            tokens_BND = apply_drop_path(tokens_BND, updated_BND, drop)
        map_BDN = self.norm(tokens_BND).transpose(1, 2)
        return [map_BDN.reshape(-1, self.channels[0], height, width)]


def build_detection_encoder(config: EncoderConfig, *, drop_path: float = 0.0) -> DenseEncoder:
    """Build the detection encoder with random weights: a windowed ViT, or any timm model."""
    return (TimmEncoder if config.vision.timm_model else WindowedViTEncoder)(config, drop_path)


def to_windows(map_BhwD: Tensor, side: int) -> tuple[Tensor, tuple[int, int]]:
    """Cut a zero-padded map into windows (B * rows * columns, s * s, D); and (rows, columns)."""
    height, width, channels = map_BhwD.shape[1:]
    padded = F.pad(map_BhwD, (0, 0, 0, -width % side, 0, -height % side))
    rows, columns = padded.shape[1] // side, padded.shape[2] // side
    cut = padded.reshape(-1, rows, side, columns, side, channels).transpose(2, 3)
    return cut.reshape(-1, side * side, channels), (rows, columns)


def from_windows(windows: Tensor, grid: tuple[int, int], height: int, width: int) -> Tensor:
    """Join windows to the map (B, h, w, D) that they were cut from."""
    rows, columns = grid
    side = int(windows.shape[1] ** 0.5)
    joined = windows.reshape(-1, rows, columns, side, side, windows.shape[-1]).transpose(2, 3)
    return joined.reshape(-1, rows * side, columns * side, windows.shape[-1])[:, :height, :width]


class FeatureCache:
    """Cache of a frozen encoder's maps, so that each image is encoded once."""

    def __init__(self, encoder: DenseEncoder, *, max_bytes: int = MAX_CACHE_BYTES) -> None:
        self._encoder = encoder
        self._max_bytes = max_bytes
        self._num_bytes = 0
        self._maps: dict[int, list[Tensor]] = {}

    @torch.no_grad()
    def __call__(self, images_B3HW: Tensor, keys_B: Tensor) -> list[Tensor]:
        """Return the encoder's maps (B, D, h, w), finest first; equal keys mean equal images."""
        keys = keys_B.tolist()
        new = [number for number, key in enumerate(keys) if key not in self._maps]
        fresh: dict[int, list[Tensor]] = {}
        if new:
            maps = self._encoder(images_B3HW[new])
            for row, number in enumerate(new):
                fresh[keys[number]] = [map_BDhw[row].clone() for map_BDhw in maps]
            for key, maps_of_image in fresh.items():
                size = sum(map_Dhw.nbytes for map_Dhw in maps_of_image)
                if self._num_bytes + size <= self._max_bytes:
                    self._num_bytes += size
                    self._maps[key] = maps_of_image
        rows = [self._maps.get(key) or fresh[key] for key in keys]
        return [torch.stack(level) for level in zip(*rows, strict=True)]

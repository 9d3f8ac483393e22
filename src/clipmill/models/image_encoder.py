"""Any pretrained image tower as a module that returns pooled and dense features in one pass.

Shapes: B images, S the tower's image side, H W an image's sides, D width, h w a map's sides.
"""

from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor, nn

from clipmill.models.config import EncoderConfig
from clipmill.models.encoders import PooledViT, build_pooled, dense_levels
from clipmill.models.preprocess import tower_image
from clipmill.models.pretrained import open_encoder

if TYPE_CHECKING:
    from clipmill.models.encoders import PooledEncoder


class ImageFeatures(NamedTuple):
    """Features of a batch of images."""

    pooled: Tensor
    """One vector per image (B, D), before CLIP's projection."""
    dense: list[Tensor]
    """Maps (B, D, h, w), finest first: one of a plain ViT, up to four of other towers."""


class ImageEncoder(nn.Module):
    """A pretrained image tower: images (B, 3, H, W) in 0..1 to :class:`ImageFeatures`.

    Preprocessing: :meth:`preprocess` resizes an image as the weights' own training did;
    normalization by mean and standard deviation is a part of the module. Images may have any sides
    that are multiples of ``stride``; positions of a ViT are interpolated.
    """

    def __init__(self, config: EncoderConfig) -> None:
        """Build the tower with random weights."""
        super().__init__()
        self.config = config
        """Architecture and preprocessing."""
        self.tower: PooledEncoder = build_pooled(config)
        """The tower; its parameters can be trained."""
        self.image_size = config.vision.image_size
        """Side S of a preprocessed image, pixels."""
        self.width = self.tower.width
        """Width D of a pooled vector."""
        if isinstance(self.tower, PooledViT):
            self._indices: list[int] = []
            self.strides: tuple[int, ...] = (config.vision.patch_size,)
            """Stride of each map, pixels."""
            self.channels: tuple[int, ...] = (config.vision.width,)
            """Width D of each map."""
        else:
            self._indices, self.strides, self.channels = dense_levels(self.tower.trunk)
        self.stride = max(self.strides)
        """Number that an image's sides must be multiples of, pixels."""

    def preprocess(self, image: Image.Image) -> Tensor:
        """Return an image (3, S, S) in 0..1, resized and cropped as the weights' own images."""
        pixels_SS3 = tower_image(image.convert("RGB"), self.config.vision)
        return torch.from_numpy(pixels_SS3.copy()).permute(2, 0, 1).float() / 255

    def forward(self, images_B3HW: Tensor) -> ImageFeatures:
        """Return the pooled vectors and the maps."""
        tower: Any = self.tower
        if isinstance(tower, PooledViT):
            tokens_BND, (height, width) = tower.tokens(images_B3HW)
            map_BDN = tokens_BND[:, 1:].transpose(1, 2)
            map_BDhw = map_BDN.reshape(*map_BDN.shape[:2], height, width)
            return ImageFeatures(tokens_BND[:, 0], [map_BDhw])
        last, maps = tower.trunk.forward_intermediates(
            tower.normalize(images_B3HW), indices=self._indices, norm=True
        )
        return ImageFeatures(tower.trunk.forward_head(last, pre_logits=True), maps)


def load_encoder(address: str, *, seed: int = 0) -> ImageEncoder:
    """Load the image tower at an address as a module in evaluation mode.

    Preprocessing: ``encoder.preprocess(image)`` turns a PIL image into (3, S, S) in 0..1, resized
    as the weights' own images were. The module normalizes its input itself.

    Args:
        address: A URI that ``pretrain_clip`` returned, ``open_clip:NAME/TAG``, ``timm:NAME``,
            ``hf:ORG/NAME``, ``file:PATH`` or ``random:LIBRARY/NAME``; see docs/weights.md.
        seed: Seed of random weights.

    Returns:
        A module whose output has ``pooled`` (B, D) and ``dense``, a list of maps (B, D, h, w).

    Raises:
        ConfigError: there is no such form, model or weights.
        NotFoundError: nothing lies there, or it can't be downloaded.
        ArtifactError: something without an image tower lies there, or the weights don't fit.

    Example:
        >>> encoder = clipmill.load_encoder("random:open_clip/ViT-S-32-alt")
        >>> features = encoder(encoder.preprocess(Image.open("image.jpg"))[None])
        >>> features.pooled.shape, [level.shape for level in features.dense]
        (torch.Size([1, 384]), [torch.Size([1, 384, 7, 7])])
    """
    source = open_encoder(address)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        encoder = ImageEncoder(source.config)
    source.load_weights(encoder.tower)
    return encoder.eval()

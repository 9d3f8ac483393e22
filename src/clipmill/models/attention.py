"""Attention distance and divergence of a ViT's heads.

Do Vision Transformers See Like Convolutional Neural Networks? (Raghu et al. 2021) measured the
distance, Revealing the Dark Secrets of Masked Image Modeling (Xie et al. 2023) the divergence too;
CLIP-QC, Figure 3, compares caption qualities by them.

Shapes: B batch, L layers, H heads, N tokens, P patches.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from clipmill.errors import ConfigError


@dataclass(frozen=True, kw_only=True, slots=True)
class AttentionStatistics:
    """Means over queries and images, class token and registers left out."""

    distance_LH: Tensor
    """Attention-weighted distance between the centers of query's and key's patches, pixels."""
    divergence_L: Tensor
    """Kullback-Leibler divergence between two heads' attention, mean over ordered pairs, nats."""
    num_images: int
    """Images that were looked at."""
    patch_size: int
    """Side of a patch, pixels."""
    image_size: int
    """Side of an image, pixels."""

    @property
    def head_distance_std_L(self) -> Tensor:
        """Standard deviation of the heads' distances, pixels: the diversity of a layer's heads."""
        return self.distance_LH.std(dim=1, correction=0)


class AttentionMeter:
    """Adds up attention statistics over batches of images."""

    def __init__(self, encoder: nn.Module, *, patch_size: int) -> None:
        """``encoder`` takes images (B, 3, S, S) in 0..1, cut into patches of ``patch_size``.

        Raises:
            ConfigError: it has no attention that can be seen.
        """
        self._encoder = encoder.eval()
        self._patch_size = patch_size
        self._num_images = self._image_size = 0
        self._distances: list[Tensor] = []
        self._divergences: list[Tensor] = []
        if not any(map(_watcher, encoder.modules())):
            raise ConfigError(
                f"{type(encoder).__name__} has no attention over patches",
                expected="a plain ViT: of ours, open_clip's, or one of timm's",
                action="give another encoder; convolutions and windows have no attention map",
            )

    @torch.no_grad()
    def add(self, images_B3SS: Tensor) -> None:
        """Look at a batch of square images, all of one size.

        Raises:
            ConfigError: attention is over other tokens than the image's patches.
        """
        side = images_B3SS.shape[-1] // self._patch_size
        distance_PP = patch_distances(side).to(images_B3SS.device) * self._patch_size
        number = 0

        def see(maps_BHNN: Tensor) -> None:
            nonlocal number
            maps_BHPP = _of_patches(maps_BHNN, side * side)
            distance_H = (maps_BHPP * distance_PP).sum(-1).mean(-1).sum(0)
            divergence = _pairwise_kl(maps_BHPP) * len(maps_BHPP)
            if number == len(self._distances):
                self._distances.append(torch.zeros_like(distance_H, dtype=torch.float64))
                self._divergences.append(torch.zeros((), dtype=torch.float64))
            self._distances[number] += distance_H
            self._divergences[number] += divergence.cpu()
            number += 1

        with capture_attention(self._encoder, see):
            self._encoder(images_B3SS)
        self._num_images += len(images_B3SS)
        self._image_size = images_B3SS.shape[-1]

    def result(self) -> AttentionStatistics:
        """The statistics of all images so far, of which there is one at least."""
        return AttentionStatistics(
            distance_LH=torch.stack(self._distances).cpu() / self._num_images,
            divergence_L=torch.stack(self._divergences) / self._num_images,
            num_images=self._num_images,
            patch_size=self._patch_size,
            image_size=self._image_size,
        )


@contextmanager
def capture_attention(model: nn.Module, see: Callable[[Tensor], None]) -> Iterator[None]:
    """Hand ``see`` each layer's attention (B, H, N, N), rows summing to 1, as the model runs.

    Watches ``nn.MultiheadAttention`` (open_clip) and timm's attention modules, biases of relative
    positions included; while it lasts, these compute attention step by step.
    """
    with ExitStack() as stack:
        for module in model.modules():
            watch = _watcher(module)
            if watch:
                stack.enter_context(watch(module, see))
        yield


def patch_distances(side: int) -> Tensor:
    """Distances (P, P) between the centers of a square grid's patches, in patches."""
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    centers_P2 = torch.stack([rows.flatten(), columns.flatten()], dim=1).double()
    return torch.cdist(centers_P2, centers_P2).float()


_Watch = Callable[[Any, Callable[[Tensor], None]], Any]


def _watcher(module: nn.Module) -> _Watch | None:
    if isinstance(module, nn.MultiheadAttention):
        return _hook_multihead
    # What timm's attention modules have in common: probabilities pass through ``attn_drop``.
    if isinstance(getattr(module, "attn_drop", None), nn.Module) and hasattr(module, "fused_attn"):
        return _hook_timm
    return None


@contextmanager
def _hook_multihead(module: nn.MultiheadAttention, see: Callable[[Tensor], None]) -> Iterator[None]:
    def ask(_: nn.Module, inputs: Any, named: dict[str, Any]) -> Any:
        return inputs, named | {"need_weights": True, "average_attn_weights": False}

    before = module.register_forward_pre_hook(ask, with_kwargs=True)
    after = module.register_forward_hook(lambda _, __, output: see(output[1]))
    with before, after:
        yield


@contextmanager
def _hook_timm(module: Any, see: Callable[[Tensor], None]) -> Iterator[None]:
    was_fused, module.fused_attn = module.fused_attn, False
    try:
        with module.attn_drop.register_forward_hook(lambda _, __, maps: see(maps)):
            yield
    finally:
        module.fused_attn = was_fused


def _of_patches(maps_BHNN: Tensor, num_patches: int) -> Tensor:
    """Attention (B, H, P, P) among patches alone, its rows summing to 1 again."""
    # Class token and registers precede the patches.
    others = maps_BHNN.shape[-1] - num_patches
    if others not in range(num_patches) or maps_BHNN.shape[-2] != maps_BHNN.shape[-1]:
        raise ConfigError(
            f"attention is over {maps_BHNN.shape[-1]} tokens, of {num_patches} patches",
            expected="a plain ViT, each of whose blocks sees all patches",
            action="give another encoder, or images of the size that it was made for",
        )
    maps_BHPP = maps_BHNN[..., others:, others:].float()
    return maps_BHPP / maps_BHPP.sum(-1, keepdim=True)


def _pairwise_kl(maps_BHPP: Tensor) -> Tensor:
    """Mean over images, queries and ordered pairs of heads."""
    heads = maps_BHPP.shape[1]
    if heads == 1:
        return maps_BHPP.new_zeros(())
    # Heads that agree differ by less than single precision leaves of sums this long.
    maps_BHPP = maps_BHPP.double()
    # A probability that underflowed is nothing to the sum, but its logarithm would be.
    logs_BHPP = maps_BHPP.clamp_min(torch.finfo(torch.float64).tiny).log()
    crossed_HH = torch.einsum("bhqk,bgqk->hg", maps_BHPP, logs_BHPP)
    own_H1 = crossed_HH.diagonal()[:, None]
    queries = maps_BHPP.shape[0] * maps_BHPP.shape[2]
    return (own_H1 - crossed_HH).sum() / (queries * heads * (heads - 1))

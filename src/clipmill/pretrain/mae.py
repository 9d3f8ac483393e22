"""Masked-autoencoder pretraining on a dataset's images: CLIP's baseline without captions.

The model is He et al.'s (2022) over open_clip's ViT, so that CLIP can start from it. The encoder is
the image tower of a :class:`ClipConfig` without input norm; the decoder is dropped after
pretraining. Two things differ from the paper's code, and change no function that it can represent:
patches have no bias of their own (positions carry it, once they are learned), and norms add 1e-5,
as CLIP's do, where the paper's add 1e-6.

Shapes: B batch, N patches, n visible ones, D width, d decoder width, P numbers of a patch, h w the
grid's height and width, p patch side.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from clipmill.data.dataset import Dataset
from clipmill.data.loading.dataloader import PairBatch, PairDataLoader
from clipmill.data.loading.view import View, ViewConfig
from clipmill.data.transforms.augmentation import CropTransform
from clipmill.engine.distributed import DistributedContext
from clipmill.engine.objective import Objective
from clipmill.engine.result import result_uri, save_run, state_uri, under_prefix
from clipmill.engine.trainer import train
from clipmill.models.checkpoint import has_checkpoint
from clipmill.models.config import MaeConfig
from clipmill.models.encoders import Normalize
from clipmill.models.towers import build_vit
from clipmill.pretrain.config import MaePretrainConfig
from clipmill.stage_records import ProgressCallback


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Reconstruction:
    """Output of a masked autoencoder for a batch."""

    loss: Tensor
    """Mean squared error on masked patches, normalized each by itself."""
    patches_BNP: Tensor
    """Predicted patches, normalized; within a patch rows, columns, then channels."""
    is_masked_BN: Tensor
    """Mask of the patches that the encoder didn't see."""


class MaskedAutoencoder(nn.Module):
    """Normalized images (B, 3, H, W) to their reconstruction from a few patches."""

    positions_Nd: Tensor

    def __init__(self, config: MaeConfig) -> None:
        from open_clip.transformer import LayerNorm, Transformer

        super().__init__()
        vision = config.vision
        grid = vision.image_size // vision.patch_size
        self.visual = build_vit(vision)
        self.visual.proj = None
        positions_ND = sine_positions(grid, vision.width)
        self.visual.positional_embedding = nn.Parameter(positions_ND, requires_grad=False)
        width = config.decoder_width
        self.to_decoder = nn.Linear(vision.width, width)
        self.mask_token = nn.Parameter(torch.zeros(width))
        self.decoder = Transformer(width, config.decoder_layers, config.decoder_heads)
        self.norm = LayerNorm(width)
        self.to_pixels = nn.Linear(width, vision.patch_size**2 * 3)
        self.register_buffer("positions_Nd", sine_positions(grid, width), persistent=False)
        self._config = config
        self._initialize()

    def forward(self, images_B3HW: Tensor, noise_BN: Tensor | None = None) -> Reconstruction:
        """Hide the patches with the highest noise (drawn if it isn't given), and predict them."""
        patches_BND = self.visual.conv1(images_B3HW).flatten(2).transpose(1, 2)
        batch, num_patches, _ = patches_BND.shape
        if noise_BN is None:
            noise_BN = torch.rand(batch, num_patches, device=images_B3HW.device)
        num_visible = int(num_patches * (1 - self._config.mask_ratio))
        shuffled_BN = noise_BN.argsort(dim=1)
        positions_BN = shuffled_BN.argsort(dim=1)
        tokens_BnD = self._encode(patches_BND, shuffled_BN[:, :num_visible])
        predicted_BNP = self._decode(tokens_BnD, positions_BN)
        is_masked_BN = positions_BN >= num_visible
        target_BNP = _patches(images_B3HW, self._config.vision.patch_size)
        error_BN = (predicted_BNP.float() - _normalized(target_BNP.float())).square().mean(-1)
        return Reconstruction(
            loss=error_BN[is_masked_BN].mean(),
            patches_BNP=predicted_BNP,
            is_masked_BN=is_masked_BN,
        )

    def _encode(self, patches_BND: Tensor, visible_Bn: Tensor) -> Tensor:
        """The class token and visible patches through the tower."""
        positions = self.visual.positional_embedding
        patches_BnD = _take(patches_BND + positions[1:], visible_Bn)
        class_B1D = (self.visual.class_embedding + positions[0]).expand(len(patches_BnD), 1, -1)
        tokens = self.visual.ln_pre(torch.cat([class_B1D.to(patches_BnD.dtype), patches_BnD], 1))
        encoded: Tensor = self.visual.ln_post(self.visual.transformer(tokens))
        return encoded

    def _decode(self, tokens_BnD: Tensor, positions_BN: Tensor) -> Tensor:
        """Every patch, predicted from the class token and visible patches, in its own position."""
        tokens_Bnd = self.to_decoder(tokens_BnD)
        batch, num_seen, width = tokens_Bnd.shape
        num_masked = 1 + positions_BN.shape[1] - num_seen
        masked = self.mask_token.to(tokens_Bnd.dtype).expand(batch, num_masked, width)
        patches_BNd = _take(torch.cat([tokens_Bnd[:, 1:], masked], dim=1), positions_BN)
        decoder_input = torch.cat([tokens_Bnd[:, :1], patches_BNd], dim=1) + self.positions_Nd
        decoded: Tensor = self.to_pixels(self.norm(self.decoder(decoder_input)))
        return decoded[:, 1:]

    def _initialize(self) -> None:
        """The paper's start: Xavier for matrices, the patch kernel as one, 0.02 for tokens."""
        for name, parameter in self.named_parameters():
            if name.endswith(("class_embedding", "mask_token")):
                nn.init.normal_(parameter, std=0.02)
            elif name.endswith("bias"):
                nn.init.zeros_(parameter)
            elif parameter.ndim > 1 and parameter.requires_grad:
                nn.init.xavier_uniform_(parameter.data.flatten(1))


def sine_positions(grid: int, width: int) -> Tensor:
    """Fixed positions (1 + grid * grid, width): zeros for the class token, then row by row.

    The first half of the width tells the column, the second the row; each half holds sines, then
    cosines, of the coordinate at frequencies from 1 to 1 / 10,000 (He et al. 2022).
    """
    quarter = width // 4
    frequencies = 10_000.0 ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    angles_gq = torch.arange(grid, dtype=torch.float64)[:, None] * frequencies
    waves_gd = torch.cat([angles_gq.sin(), angles_gq.cos()], dim=1)
    columns_hwd = waves_gd[None].expand(grid, grid, -1)
    rows_hwd = waves_gd[:, None].expand(grid, grid, -1)
    positions = torch.cat([columns_hwd, rows_hwd], dim=2).flatten(0, 1)
    return torch.cat([positions.new_zeros(1, positions.shape[1]), positions]).float()


def _take(rows_BND: Tensor, positions_Bn: Tensor) -> Tensor:
    return rows_BND.gather(1, positions_Bn[..., None].expand(-1, -1, rows_BND.shape[2]))


def _patches(images_B3HW: Tensor, side: int) -> Tensor:
    """Patches (B, N, P), row by row; within one rows, columns, then channels."""
    batch, channels, height, width = images_B3HW.shape
    h, w = height // side, width // side
    cut = images_B3HW.reshape(batch, channels, h, side, w, side)
    return cut.permute(0, 2, 4, 3, 5, 1).reshape(batch, h * w, side * side * channels)


def _normalized(patches_BNP: Tensor) -> Tensor:
    """Each patch at mean 0 and variance 1 (the paper's better target)."""
    variance = patches_BNP.var(dim=-1, keepdim=True)
    return (patches_BNP - patches_BNP.mean(dim=-1, keepdim=True)) / (variance + 1e-6).sqrt()


def pretrain_mae(
    config: MaePretrainConfig, dataset: str, store: str, *, report: ProgressCallback
) -> str:
    """Train on the images of the dataset at a URI; return the checkpoint's URI, under ``store``.

    An existing checkpoint is returned at once; an unfinished run is resumed.
    """
    view = View(Dataset.open(dataset), ViewConfig(captions="real", subset_fraction=config.fraction))
    uri = result_uri(store, "encoders", "mae", config, view.parents)
    if has_checkpoint(uri):
        return uri
    result = train(
        partial(MaeObjective, config),
        partial(_dataloader, config, view),
        config.train,
        name="mae",
        checkpoint_uri=state_uri(uri),
        report=report,
    )
    return save_run(
        uri,
        result,
        kind="mae",
        architecture=config.model.to_json(),
        config=config,
        parents=view.parents,
        summary={
            "seen samples": f"{config.train.num_seen_samples:,}",
            "seed": str(config.train.seed),
        },
        tensors=under_prefix(result.tensors, "mae."),
    )


def _dataloader(
    config: MaePretrainConfig, view: View, start_step: int, dist: DistributedContext
) -> Iterator[PairBatch]:
    return iter(
        PairDataLoader(
            view,
            config.dataloader,
            batch_size=config.train.batch_size,
            seed=config.train.seed,
            transform=CropTransform(config.model.vision.image_size, config.random_resized_crop),
            tokenize=_no_tokens,
            start_step=start_step,
            rank=dist.rank,
            world_size=dist.world_size,
        )
    )


def _no_tokens(texts: Sequence[str]) -> Tensor:
    return torch.zeros(len(texts), 1, dtype=torch.int64)


class MaeObjective(Objective):
    """Mean squared error on masked patches; half of the images are mirrored (He et al. 2022)."""

    def __init__(self, config: MaePretrainConfig, dist: DistributedContext) -> None:
        super().__init__()
        del dist  # the loss is a mean over images, on whichever rank
        self.normalize = Normalize(config.model.vision.mean, config.model.vision.std)
        self.mae = MaskedAutoencoder(config.model)

    def forward(self, batch: PairBatch) -> dict[str, Tensor]:
        """Return loss ``reconstruction``."""
        images_B3HW = self.normalize(batch.images_B3HW.float() / 255)
        is_mirrored = torch.rand(len(images_B3HW), 1, 1, 1, device=images_B3HW.device) < 0.5
        images_B3HW = torch.where(is_mirrored, images_B3HW.flip(-1), images_B3HW)
        return {"reconstruction": self.mae(images_B3HW).loss}

"""Masked autoencoders: the baseline without captions, at CLIP's seen samples."""

from dataclasses import replace

from clipmill.engine.config import AdamWConfig, TrainConfig
from clipmill.engine.schedule import ScheduleConfig
from clipmill.models.mae_config import MaeConfig
from clipmill.models.towers import VisionConfig
from clipmill.pretrain.mae import MaePretrainConfig
from clipmill.pretrain.pairs import LoadConfig

BATCH_SIZE = 4_096
"""Global batch (He et al. 2022, Table 8)."""
IMAGENET_SAMPLES = 1_281_167


def mae_vit_b16_2_05b() -> MaePretrainConfig:
    """MAE ViT-B/16, 2.05 B seen samples: 1,600 epochs of ImageNet-1K.

    Source: He et al. 2022, Table 8; CLIP-QC, the comparison at matched seen samples.
    Command: ``torchrun --nproc-per-node 8 -m clipmill pretrain-mae --recipe mae-vit-b16-2.05b ...``
    Hardware and hours: not run.
    Expected, on ImageNet-1K: UperNet 48.1 mIoU, NYUv2 RMSE 0.383 m.
    """
    return MaePretrainConfig(
        train=TrainConfig(
            steps=round(2.05e9 / BATCH_SIZE),
            batch_size=BATCH_SIZE,
            schedule=ScheduleConfig(
                peak=1.5e-4 * BATCH_SIZE / 256,
                minimum=0.0,
                warmup_steps=40 * IMAGENET_SAMPLES // BATCH_SIZE,
            ),
            optimizer=AdamWConfig(betas=(0.9, 0.95), epsilon=1e-8, weight_decay=0.05),
            precision="bf16",
        )
    )


def mae_vit_b16_5b() -> MaePretrainConfig:
    """MAE ViT-B/16, 5 B seen samples.

    Source: CLIP-QC, the comparison at matched seen samples; derived from
    :func:`mae_vit_b16_2_05b`.
    Hardware and hours: not run.
    Expected, on IG-3B: UperNet 47.2 mIoU, NYUv2 RMSE 0.348 m.
    """
    full = mae_vit_b16_2_05b()
    return replace(full, train=replace(full.train, steps=round(5e9 / BATCH_SIZE)))


def mae_miniature() -> MaePretrainConfig:
    """A masked autoencoder on the tower of ``clip-vit-miniature``, for two cores.

    Source: ours, derived from :func:`mae_vit_b16_2_05b`.
    Command: ``clipmill pretrain-mae --recipe mae-miniature ...``
    Hardware and time: see docs/log.md.
    """
    full = mae_vit_b16_2_05b()
    return replace(
        full,
        model=MaeConfig(
            vision=VisionConfig(
                image_size=64,
                patch_size=8,
                width=128,
                layers=4,
                head_width=32,
                has_input_norm=False,
            ),
            decoder_width=64,
            decoder_layers=2,
            decoder_heads=4,
        ),
        load=LoadConfig(num_workers=0),
        train=replace(
            full.train,
            steps=300,
            batch_size=32,
            schedule=ScheduleConfig(peak=1e-3, minimum=0.0, warmup_steps=20),
            precision="fp32",
            checkpoint_steps=50,
            log_steps=10,
            num_threads=1,
        ),
    )

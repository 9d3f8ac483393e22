"""CLIP pretraining: the paper's recipe, and the miniature that two CPU cores can run."""

from dataclasses import replace

from clipmill.engine.config import AdamWConfig, TrainConfig
from clipmill.engine.schedule import ScheduleConfig
from clipmill.models.towers import ClipConfig, TextConfig, VisionConfig
from clipmill.pretrain.clip import PretrainConfig
from clipmill.pretrain.pairs import LoadConfig


def clip_vit_b16() -> PretrainConfig:
    """ViT-B/16, 12.8 B seen samples.

    Source: CLIP-QC, Table 11, but for RangeAugment (target 40, 20), which is not built yet.
    Command: ``torchrun --nproc-per-node 8 -m clipmill pretrain --recipe clip-vit-b16 ...``
    Hardware and hours: not run.
    Expected, on DataCompDR: UperNet 53.9 mIoU, NYUv2 RMSE 0.339 m (CLIP-QC, Table 1).
    """
    return PretrainConfig(
        train=TrainConfig(
            steps=200_000,
            batch_size=65_536,
            micro_batches=4,
            schedule=ScheduleConfig(peak=1e-3, minimum=1e-6, warmup_steps=2_000),
            optimizer=AdamWConfig(betas=(0.9, 0.95), weight_decay=0.2),
            average_decay=0.9995,
            precision="bf16",
            checkpoint_steps=1_000,
            log_steps=50,
        )
    )


def clip_vit_miniature() -> PretrainConfig:
    """A ViT of 0.9 M parameters at 64 px: the same functions on two cores.

    Source: ours, derived from :func:`clip_vit_b16`.
    Command: ``clipmill pretrain --recipe clip-vit-miniature ...``
    Hardware and time: see docs/log.md.
    """
    full = clip_vit_b16()
    return replace(
        full,
        model=ClipConfig(
            embed_dim=128,
            vision=VisionConfig(image_size=64, patch_size=8, width=128, layers=4, head_width=32),
            text=TextConfig(context_length=20, vocab_size=2048, width=128, heads=4, layers=1),
        ),
        load=LoadConfig(num_workers=0),
        train=replace(
            full.train,
            steps=300,
            batch_size=32,
            micro_batches=1,
            schedule=ScheduleConfig(peak=3e-3, minimum=1e-6, warmup_steps=20),
            average_decay=0.98,
            precision="fp32",
            checkpoint_steps=50,
            log_steps=10,
            num_threads=1,
        ),
    )


def clip_miniature() -> PretrainConfig:
    """A convolutional tower of 0.4 M parameters at 64 px: what the demo trains in a minute.

    Ten thousand pictures teach it what a ViT needs many more for.

    Source: ours, derived from :func:`clip_vit_miniature`.
    Command: ``clipmill pretrain --recipe clip-miniature ...``
    Hardware and time: see docs/log.md.
    """
    vit = clip_vit_miniature()
    vision = VisionConfig(image_size=64, timm_model="test_resnet")
    return replace(vit, model=replace(vit.model, vision=vision))

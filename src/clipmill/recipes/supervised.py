"""Supervised encoders: the baseline of the mobile tables."""

from dataclasses import replace

from clipmill.engine.config import AdamWConfig, TrainConfig
from clipmill.engine.schedule import ScheduleConfig
from clipmill.models.towers import VisionConfig
from clipmill.pretrain.supervised import SupervisedConfig
from clipmill.recipes.mae import IMAGENET_SAMPLES

BATCH_SIZE = 1_024
"""Global batch: 8 GPUs of 128 (apple/ml-fastvit)."""


def supervised_mci0() -> SupervisedConfig:
    """MCi0 on ImageNet-1K's labels, 300 epochs.

    Source: apple/ml-fastvit, README and the defaults of ``train.py`` without distillation, whose
    encoders MCi0 to MCi2 derive from; CLIP-QC doesn't give its own.
    Command: ``clipmill pretrain-supervised --recipe supervised-mci0 --data FOLDER``
    Hardware and hours: not run.
    Expected: SemanticFPN 44.8 mIoU; Mask R-CNN 41.8 / 38.0 mAP (CLIP-QC, mobile tables).
    """
    epoch = IMAGENET_SAMPLES // BATCH_SIZE
    return SupervisedConfig(
        vision=VisionConfig(image_size=256, timm_model="fastvit_mci0"),
        train=TrainConfig(
            steps=300 * epoch,
            batch_size=BATCH_SIZE,
            schedule=ScheduleConfig(peak=1e-3, minimum=1e-5, warmup_steps=5 * epoch),
            optimizer=AdamWConfig(betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.05),
            average_decay=0.9995,
            precision="bf16",
        ),
    )


def supervised_mci1() -> SupervisedConfig:
    """MCi1 on ImageNet-1K's labels, 300 epochs.

    Source: as :func:`supervised_mci0`.
    Hardware and hours: not run.
    Expected: SemanticFPN 47.7 mIoU; Mask R-CNN 45.2 / 40.6 mAP.
    """
    full = supervised_mci0()
    return replace(full, vision=replace(full.vision, timm_model="fastvit_mci1"), drop_path=0.1)


def supervised_mci2() -> SupervisedConfig:
    """MCi2 on ImageNet-1K's labels, 300 epochs.

    Source: as :func:`supervised_mci0`.
    Hardware and hours: not run.
    Expected: SemanticFPN 48.9 mIoU; Mask R-CNN 46.6 / 41.7 mAP.
    """
    full = supervised_mci0()
    return replace(full, vision=replace(full.vision, timm_model="fastvit_mci2"), drop_path=0.1)


def supervised_miniature() -> SupervisedConfig:
    """The convolutional tower of ``clip-miniature`` at 64 px, for two cores.

    Source: ours, derived from :func:`supervised_mci0`.
    """
    full = supervised_mci0()
    return replace(
        full,
        vision=VisionConfig(image_size=64, timm_model="test_resnet"),
        num_workers=0,
        train=replace(
            full.train,
            steps=300,
            batch_size=32,
            schedule=ScheduleConfig(peak=3e-3, minimum=1e-5, warmup_steps=20),
            average_decay=0.98,
            precision="fp32",
            checkpoint_steps=50,
            log_steps=10,
            num_threads=1,
        ),
    )

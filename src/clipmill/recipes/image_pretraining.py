"""Pretraining without captions: masked autoencoders, and supervised mobile encoders.

Baselines of the pretraining comparison at matched seen samples, and of the mobile tables.
"""

from dataclasses import replace

from clipmill.data.loading.config import DataLoaderConfig
from clipmill.engine.config import AdamWConfig, ScheduleConfig, TrainConfig
from clipmill.models.config import MaeConfig, VisionConfig
from clipmill.pretrain.config import MaePretrainConfig, SupervisedConfig

MAE_BATCH_SIZE = 4_096
"""Global batch (He et al. 2022, Table 8)."""
SUPERVISED_BATCH_SIZE = 1_024
"""Global batch: 8 GPUs of 128 (apple/ml-fastvit)."""
IMAGENET_SAMPLES = 1_281_167


def mae_vit_b16_2_05b() -> MaePretrainConfig:
    """MAE ViT-B/16, 2.05 B seen samples: 1,600 epochs of ImageNet-1K.

    Source: He et al. 2022, Table 8; CLIP-QC, the comparison at matched seen samples.
    Command: ``torchrun --nproc-per-node 8 -m clipmill pretrain mae --recipe mae-vit-b16-2.05b ...``
    Hardware and hours: not run.
    Expected, on ImageNet-1K: UperNet 48.1 mIoU, NYUv2 RMSE 0.383 m.
    """
    return MaePretrainConfig(
        train=TrainConfig(
            steps=round(2.05e9 / MAE_BATCH_SIZE),
            batch_size=MAE_BATCH_SIZE,
            schedule=ScheduleConfig(
                lr=1.5e-4 * MAE_BATCH_SIZE / 256,
                min_lr=0.0,
                warmup_steps=40 * IMAGENET_SAMPLES // MAE_BATCH_SIZE,
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
    return replace(full, train=replace(full.train, steps=round(5e9 / MAE_BATCH_SIZE)))


def mae_tiny() -> MaePretrainConfig:
    """A masked autoencoder on the tower of ``clip-vit-tiny``, for two cores.

    Source: ours, derived from :func:`mae_vit_b16_2_05b`.
    Command: ``clipmill pretrain mae --recipe mae-tiny ...``
    Hardware and time: see docs/hardware.md.
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
        dataloader=DataLoaderConfig(num_workers=0),
        train=replace(
            full.train,
            steps=300,
            batch_size=32,
            schedule=ScheduleConfig(lr=1e-3, min_lr=0.0, warmup_steps=20),
            precision="fp32",
            checkpoint_every=50,
            log_every=10,
            num_threads=1,
        ),
    )


def supervised_mci0() -> SupervisedConfig:
    """MCi0 on ImageNet-1K's labels, 300 epochs.

    Source: apple/ml-fastvit, README and the defaults of ``train.py`` without distillation, whose
    encoders MCi0 to MCi2 derive from; CLIP-QC doesn't give its own.
    Command: ``clipmill pretrain supervised --recipe supervised-mci0 --data FOLDER``
    Hardware and hours: not run.
    Expected: SemanticFPN 44.8 mIoU; Mask R-CNN 41.8 / 38.0 mAP (CLIP-QC, mobile tables).
    """
    epoch = IMAGENET_SAMPLES // SUPERVISED_BATCH_SIZE
    return SupervisedConfig(
        vision=VisionConfig(image_size=256, timm_model="fastvit_mci0"),
        train=TrainConfig(
            steps=300 * epoch,
            batch_size=SUPERVISED_BATCH_SIZE,
            schedule=ScheduleConfig(lr=1e-3, min_lr=1e-5, warmup_steps=5 * epoch),
            optimizer=AdamWConfig(betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.05),
            ema_decay=0.9995,
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


def supervised_tiny() -> SupervisedConfig:
    """The convolutional tower of ``clip-tiny`` at 64 px, for two cores.

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
            schedule=ScheduleConfig(lr=3e-3, min_lr=1e-5, warmup_steps=20),
            ema_decay=0.98,
            precision="fp32",
            checkpoint_every=50,
            log_every=10,
            num_threads=1,
        ),
    )

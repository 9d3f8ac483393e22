"""Pretraining of encoders: CLIP as in the paper and for mobile, MAE and supervised baselines.

The baselines have matched seen samples; the mobile encoders train on reinforced data (MobileCLIP,
CVPR 2024).
"""

from dataclasses import replace

from clipmill.data.loading.config import DataLoaderConfig
from clipmill.data.transforms.augmentation import RandomResizedCropConfig, StoredAugmentationConfig
from clipmill.engine.config import AdamWConfig, ScheduleConfig, TrainConfig
from clipmill.models.config import (
    ClipConfig,
    MaeConfig,
    RangeAugmentConfig,
    TextConfig,
    TowerOptions,
    VisionConfig,
)
from clipmill.pretrain.config import (
    DistillationConfig,
    MaePretrainConfig,
    PretrainConfig,
    SupervisedConfig,
    TeacherConfig,
    ValidationConfig,
)

BATCH_SIZE = 65_536
"""Global batch (CLIP-QC, Table 11)."""


def clip_vit_b16_12_8b() -> PretrainConfig:
    """ViT-B/16, 12.8 B seen samples.

    Source: CLIP-QC, Table 11.
    Command: ``torchrun --nproc-per-node 8 -m clipmill pretrain clip --recipe clip-vit-b16-12.8b
    ...``
    Hardware and hours: not run.
    Expected, on DataCompDR: UperNet 53.9 mIoU, NYUv2 RMSE 0.339 m (CLIP-QC, Table 1).
    """
    return PretrainConfig(
        range_augment=RangeAugmentConfig(),
        train=TrainConfig(
            steps=200_000,
            batch_size=BATCH_SIZE,
            grad_accum_steps=4,
            schedule=ScheduleConfig(lr=1e-3, min_lr=1e-6, warmup_steps=2_000),
            optimizer=AdamWConfig(betas=(0.9, 0.95), weight_decay=0.2),
            ema_decay=0.9995,
            precision="bf16",
            checkpoint_every=1_000,
            log_every=50,
        ),
    )


def clip_vit_b16_5b() -> PretrainConfig:
    """ViT-B/16, 5 B seen samples.

    Source: CLIP-QC, Table 11 and the comparison with MAE; derived from
    :func:`clip_vit_b16_12_8b`.
    Hardware and hours: not run.
    Expected, on DataCompDR: UperNet 52.5 mIoU, NYUv2 RMSE 0.351 m.
    """
    return _seeing(clip_vit_b16_12_8b(), 5.0e9)


def clip_vit_b16_2_05b() -> PretrainConfig:
    """ViT-B/16, 2.05 B seen samples.

    Source: CLIP-QC, Table 11 and the comparison with MAE; derived from
    :func:`clip_vit_b16_12_8b`.
    Hardware and hours: not run.
    Expected, on DataCompDR: UperNet 51.7 mIoU, NYUv2 RMSE 0.366 m.
    """
    return _seeing(clip_vit_b16_12_8b(), 2.05e9)


def clip_vit_b16_after_mae() -> PretrainConfig:
    """ViT-B/16 that starts from a masked autoencoder: ``--set init=URI``, 5 B seen samples.

    Source: CLIP-QC, the comparison with MAWS (MAE, then weakly supervised, 10 B together);
    derived from :func:`clip_vit_b16_5b`.
    Hardware and hours: not run.
    Expected, of MAWS on IG-3B: UperNet 50.4 mIoU, NYUv2 RMSE 0.371 m.
    """
    full = clip_vit_b16_5b()
    vision = replace(full.model.vision, has_input_norm=False)
    return replace(full, model=replace(full.model, vision=vision))


def clip_vit_b16_scaling_1_28b() -> PretrainConfig:
    """ViT-B/16, 20k iterations on all of 1.28 B pairs.

    Source: CLIP-QC, data-scaling study (Figure 2); derived from :func:`clip_vit_b16_12_8b`.
    Hardware and hours: not run.
    """
    full = clip_vit_b16_12_8b()
    return replace(full, train=replace(full.train, steps=20_000))


def clip_vit_b16_scaling_128m() -> PretrainConfig:
    """The same on a tenth of the pairs.

    Source: CLIP-QC, Figure 2; derived from :func:`clip_vit_b16_scaling_1_28b`.
    Hardware and hours: not run.
    Expected, on DataComp: detection 44.6 mAP.
    """
    return _on_part(clip_vit_b16_scaling_1_28b(), 0.1)


def clip_vit_b16_scaling_12_8m() -> PretrainConfig:
    """The same on a hundredth of the pairs.

    Source: CLIP-QC, Figure 2; derived from :func:`clip_vit_b16_scaling_1_28b`.
    Hardware and hours: not run.
    Expected, on DataCompDR: detection 44.2 mAP.
    """
    return _on_part(clip_vit_b16_scaling_1_28b(), 0.01)


def clip_vit_b16_scaling_1_28m() -> PretrainConfig:
    """The same on a thousandth of the pairs.

    Source: CLIP-QC, Figure 2; derived from :func:`clip_vit_b16_scaling_1_28b`.
    Hardware and hours: not run.
    """
    return _on_part(clip_vit_b16_scaling_1_28b(), 0.001)


def clip_vit_b16_12m() -> PretrainConfig:
    """ViT-B/16 on a set of 12 M pairs: 30k iterations at batch 8,192.

    Source: MobileCLIP's run on DataCompDR-12M, at CLIP-QC's Table 11; derived from
    :func:`clip_vit_b16_12_8b`.
    Hardware and hours: not run.
    Expected, on DataComp-12M with CoCa's captions, G+S: UperNet 47.8 mIoU.
    """
    full = clip_vit_b16_12_8b()
    schedule = replace(full.train.schedule, warmup_steps=1_000)
    return replace(
        full,
        train=replace(
            full.train, steps=30_000, batch_size=8_192, grad_accum_steps=1, schedule=schedule
        ),
    )


def clip_vit_b32_12_8b() -> PretrainConfig:
    """ViT-B/32, 12.8 B seen samples.

    Source: open_clip's ViT-B-32, with CLIP-QC's Table 11.
    Hardware and hours: not run.
    """
    full = clip_vit_b16_12_8b()
    return replace(
        full,
        model=ClipConfig(vision=VisionConfig(patch_size=32)),
        train=replace(full.train, grad_accum_steps=2),
    )


def clip_vit_l14_12_8b() -> PretrainConfig:
    """ViT-L/14, 12.8 B seen samples.

    Source: open_clip's ViT-L-14, with CLIP-QC's Table 11.
    Hardware and hours: not run.
    """
    full = clip_vit_b16_12_8b()
    return replace(
        full,
        model=ClipConfig(
            embed_dim=768,
            vision=VisionConfig(patch_size=14, width=1024, layers=24),
            text=TextConfig(width=768, heads=12),
        ),
        tower_options=TowerOptions(gradient_checkpointing=True),
        train=replace(full.train, grad_accum_steps=16),
    )


def clip_vit_s16_12_8b() -> PretrainConfig:
    """ViT-S/16, 12.8 B seen samples.

    Source: open_clip's ViT-S-16, with CLIP-QC's Table 11.
    Hardware and hours: not run.
    """
    full = clip_vit_b16_12_8b()
    return replace(
        full,
        model=ClipConfig(
            embed_dim=384,
            vision=VisionConfig(width=384),
            text=TextConfig(width=384, heads=6),
        ),
        train=replace(full.train, grad_accum_steps=2),
    )


def clip_vit_ti16_12_8b() -> PretrainConfig:
    """ViT-Ti/16, 12.8 B seen samples.

    Source: DeiT-Ti's image tower (Touvron et al. 2021) with a text tower half as wide as
    ViT-B/16's; CLIP-QC's Table 11.
    Hardware and hours: not run.
    """
    full = clip_vit_b16_12_8b()
    return replace(
        full,
        model=ClipConfig(
            embed_dim=256,
            vision=VisionConfig(width=192),
            text=TextConfig(width=256, heads=4),
        ),
        train=replace(full.train, grad_accum_steps=1),
    )


def siglip_vit_b16_12_8b() -> PretrainConfig:
    """ViT-B/16 with SigLIP's loss, 12.8 B seen samples.

    Source: Zhai et al. 2023 for the loss; all else from :func:`clip_vit_b16_12_8b`.
    Hardware and hours: not run.
    """
    full = clip_vit_b16_12_8b()
    return replace(full, model=replace(full.model, loss="sigmoid"))


def clip_vit_tiny() -> PretrainConfig:
    """A ViT of 0.9 M parameters at 64 px: the same functions on two cores.

    Source: ours, derived from :func:`clip_vit_b16_12_8b`.
    Command: ``clipmill pretrain clip --recipe clip-vit-tiny ...``
    Hardware and time: see docs/hardware.md.
    """
    full = clip_vit_b16_12_8b()
    return replace(
        full,
        model=ClipConfig(
            embed_dim=128,
            vision=VisionConfig(image_size=64, patch_size=8, width=128, layers=4, head_width=32),
            text=TextConfig(context_length=64, vocab_size=2048, width=64, heads=2, layers=1),
        ),
        range_augment=None,
        dataloader=DataLoaderConfig(num_workers=0),
        train=replace(
            full.train,
            steps=300,
            batch_size=32,
            grad_accum_steps=1,
            schedule=ScheduleConfig(lr=3e-3, min_lr=1e-6, warmup_steps=20),
            ema_decay=0.98,
            precision="fp32",
            checkpoint_every=50,
            log_every=10,
            num_threads=1,
        ),
    )


def clip_tiny() -> PretrainConfig:
    """A convolutional tower of 0.23 M parameters at 64 px: what the demo trains in two minutes.

    Tens of thousands of images teach it what a ViT needs many more for. Some pairs are held out,
    to see whether it learned anything.

    Source: ours, derived from :func:`clip_vit_tiny`.
    Command: ``clipmill pretrain clip --recipe clip-tiny ...``
    Hardware and time: see docs/hardware.md.
    """
    vit = clip_vit_tiny()
    vision = VisionConfig(image_size=64, timm_model="test_byobnet")
    batch_size, steps = 64, 800
    return replace(
        vit,
        model=replace(vit.model, vision=vision),
        view=replace(vit.view, subset_fraction=0.92),
        validation=ValidationConfig(every=200, num_pairs=320),
        train=replace(
            vit.train,
            steps=steps,
            batch_size=batch_size,
            schedule=ScheduleConfig(lr=2e-3, min_lr=1e-6, warmup_steps=50),
            checkpoint_every=200,
        ),
    )


def _seeing(config: PretrainConfig, num_samples: float) -> PretrainConfig:
    """The same for as many updates as show this many samples."""
    steps = round(num_samples / config.train.batch_size)
    return replace(config, train=replace(config.train, steps=steps))


def _on_part(config: PretrainConfig, fraction: float) -> PretrainConfig:
    """The same on this part of the samples; a smaller part is inside any larger one."""
    return replace(config, view=replace(config.view, subset_fraction=fraction))


def clip_mci0_12_8b() -> PretrainConfig:
    """MCi0, distilled, 12.8 B seen samples of DataCompDR-1B.

    Source: CLIP-QC, Table 11; towers of open_clip's MobileCLIP2-S0, since it has no MobileCLIP-S0;
    losses, clipping and checkpointing of apple/ml-mobileclip.
    Command: ``clipmill pretrain clip DATASET --recipe clip-mci0-12.8b --captions both
    --caption-layer captions/... --set distillation.layer=teacher/...``
    Hardware and hours: not run.
    Expected: SemanticFPN 48.1 mIoU; Mask R-CNN 44.2 / 39.5 mAP (CLIP-QC, mobile tables).
    """
    return _distilled(clip_vit_b16_12_8b(), "fastvit_mci0")


def clip_mci1_12_8b() -> PretrainConfig:
    """MCi1, distilled, 12.8 B seen samples of DataCompDR-1B.

    Source: as :func:`clip_mci0_12_8b`; towers of open_clip's MobileCLIP-S1.
    Hardware and hours: not run.
    Expected: SemanticFPN 49.8 mIoU; Mask R-CNN 47.7 / 42.5 mAP.
    """
    return _distilled(clip_vit_b16_12_8b(), "fastvit_mci1")


def clip_mci2_12_8b() -> PretrainConfig:
    """MCi2, distilled, 12.8 B seen samples of DataCompDR-1B.

    Source: as :func:`clip_mci0_12_8b`; towers of open_clip's MobileCLIP-S2.
    Hardware and hours: not run.
    Expected: SemanticFPN 52.2 mIoU; Mask R-CNN 49.5 / 43.6 mAP.
    """
    return _distilled(clip_vit_b16_12_8b(), "fastvit_mci2")


def clip_mci0_12m() -> PretrainConfig:
    """MCi0, distilled, on DataCompDR-12M: 30k iterations at batch 8,192.

    Source: apple/ml-mobileclip's 12M run, with the towers of :func:`clip_mci0_12_8b`.
    Hardware and hours: not run.
    """
    return _distilled(clip_vit_b16_12m(), "fastvit_mci0")


def clip_vit_b16_distilled_12_8b() -> PretrainConfig:
    """ViT-B/16, distilled as MobileCLIP's own ViT-B/16 on DataCompDR-1B.

    Source: apple/ml-mobileclip (weights 0.25 and 0.75); CLIP-QC's ViT-B/16 rows don't distil.
    Hardware and hours: not run.
    """
    full = clip_vit_b16_12_8b()
    weights = DistillationConfig(contrastive_weight=0.25, weight=0.75)
    return replace(full, range_augment=None, distillation=weights)


def clip_mci0_tiny() -> PretrainConfig:
    """MCi0 at 64 px with the tiny recipe's text tower, for two cores.

    Source: ours, derived from :func:`clip_mci0_12_8b` and ``clip-vit-tiny``.
    Hardware and time: see docs/hardware.md.
    """
    small = clip_vit_tiny()
    vision = replace(clip_mci0_12_8b().model.vision, image_size=64)
    return replace(
        small,
        model=replace(small.model, vision=vision),
        range_augment=None,
        distillation=DistillationConfig(teacher_widths=(128,)),
        train=replace(small.train, steps=60),
    )


def teacher_datacompdr() -> TeacherConfig:
    """DataCompDR's ensemble: two ViT-L/14, 30 augmentations a sample.

    Source: apple/ml-mobileclip (12M release).
    Command: ``clipmill data embed-teacher DATASET --caption-layer captions/...``
    Hardware and hours: not run.
    """
    return TeacherConfig(
        models=("open_clip:ViT-L-14/openai", "open_clip:ViT-L-14/datacomp_xl_s13b_b90k")
    )


def teacher_tiny() -> TeacherConfig:
    """One small teacher (``--set models=["URI"]``) and gentle augmentations, for two cores.

    Source: ours, derived from :func:`teacher_datacompdr`.
    """
    crop = RandomResizedCropConfig(scale=(0.5, 1.0))
    return TeacherConfig(
        num_augmentations=4,
        augmentation=StoredAugmentationConfig(crop=crop, num_operations=1),
    )


def _distilled(config: PretrainConfig, timm_model: str) -> PretrainConfig:
    """The run with a mobile encoder's towers and distillation alone (weights 0 and 1)."""
    vision = VisionConfig(
        image_size=256,
        timm_model=timm_model,
        head="classifier",
        mean=(0.0, 0.0, 0.0),
        std=(1.0, 1.0, 1.0),
    )
    train = config.train
    return replace(
        config,
        model=ClipConfig(vision=vision, text=TextConfig(is_causal=False)),
        tower_options=TowerOptions(gradient_checkpointing=False),
        range_augment=None,
        distillation=DistillationConfig(contrastive_weight=0.0, weight=1.0),
        train=replace(train, optimizer=replace(train.optimizer, clip_norm=1.0)),
    )


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

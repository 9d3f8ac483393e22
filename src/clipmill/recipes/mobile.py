"""Mobile encoders on reinforced data (MobileCLIP, CVPR 2024)."""

from dataclasses import replace

from clipmill.data.transforms.augmentation import RandomResizedCropConfig, StoredAugmentationConfig
from clipmill.models.config import ClipConfig, TextConfig, TowerOptions, VisionConfig
from clipmill.pretrain.config import DistillationConfig, PretrainConfig, TeacherConfig
from clipmill.recipes.clip import clip_vit_b16_12_8b, clip_vit_b16_12m, clip_vit_tiny


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

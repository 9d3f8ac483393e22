"""Detection with instance masks: the paper's recipes, and tiny variants."""

from dataclasses import replace

from clipmill.engine.config import AdamWConfig, ScheduleConfig, TrainConfig
from clipmill.tasks.config import DetectionConfig
from clipmill.tasks.finetune import FinetuneConfig

# 117,266 images of train2017 have objects, 118,287 in all; all train here, at batch 16.
_STEPS_OF_AN_EPOCH = 7_393
_WARMUP_STEPS = 500  # mmdet's schedules; the paper gives none


def mask_rcnn_1x() -> FinetuneConfig:
    """Mask R-CNN on COCO, 12 epochs: ViTDet's pyramid for a ViT, an FPN for mobile encoders.

    Source: CLIP-QC, Table 13; one point of its sweep (drop path 0.0 to 0.3 by 0.05, rate 5e-4,
    2e-4 or 1e-4); heads, losses and sampling of mmdet's mask-rcnn configs.
    Command: ``clipmill finetune --recipe mask-rcnn-1x --encoder URI --data COCO``
    Hardware and hours: not run.
    Expected box / mask mAP: ViT-B/16 48.4 / 43.4 from DataComp, 48.9 / 43.6 from DataCompDR
    (CLIP-QC, Table 1); MCi0 44.2 / 39.5, MCi1 47.7 / 42.5, MCi2 49.5 / 43.6 from DataCompDR.
    """
    return FinetuneConfig(
        task="detection",
        model=DetectionConfig(),
        train=TrainConfig(
            steps=12 * _STEPS_OF_AN_EPOCH,
            batch_size=16,
            schedule=ScheduleConfig(
                name="step", lr=1e-4, warmup_steps=_WARMUP_STEPS, milestones=(8 / 12, 11 / 12)
            ),
            optimizer=AdamWConfig(betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.1),
            precision="bf16",
        ),
    )


def cascade_mask_rcnn_3x() -> FinetuneConfig:
    """Cascade Mask R-CNN on COCO, 36 epochs.

    Source: CLIP-QC, Table 13, as :func:`mask_rcnn_1x`; mmdet's cascade-mask-rcnn configs.
    Command: ``clipmill finetune --recipe cascade-mask-rcnn-3x --encoder URI --data COCO``
    Hardware and hours: not run.
    Expected box / mask mAP: 53.9 / 46.4 from DataComp, 54.6 / 47.1 from DataCompDR, both of
    12.8 B seen samples; MAE on IN-1K 54.0 / 46.7 (CLIP-QC, comparison with MAE).
    """
    once = mask_rcnn_1x()
    train = once.train
    return replace(
        once,
        model=DetectionConfig(num_stages=3),
        train=replace(
            train,
            steps=36 * _STEPS_OF_AN_EPOCH,
            schedule=replace(train.schedule, milestones=(27 / 36, 33 / 36)),
            optimizer=replace(train.optimizer, weight_decay=0.05),
        ),
    )


def mask_rcnn_tiny() -> FinetuneConfig:
    """Mask R-CNN at 64 px, under two minutes of one core.

    Source: ours, derived from :func:`mask_rcnn_1x`.
    Command: ``clipmill finetune --recipe mask-rcnn-tiny --encoder URI --data URI``
    Hardware and time: see docs/hardware.md.
    """
    return _tiny(mask_rcnn_1x(), num_stages=1, steps=500)


def cascade_mask_rcnn_tiny() -> FinetuneConfig:
    """Cascade Mask R-CNN at 64 px, under two minutes of one core.

    Source: ours, derived from :func:`cascade_mask_rcnn_3x`.
    Command: ``clipmill finetune --recipe cascade-mask-rcnn-tiny --encoder URI --data URI``
    Hardware and time: see docs/hardware.md.
    """
    return _tiny(cascade_mask_rcnn_3x(), num_stages=3, steps=250)


def _tiny(full: FinetuneConfig, *, num_stages: int, steps: int) -> FinetuneConfig:
    return replace(
        full,
        model=DetectionConfig(
            image_size=64,
            scale=(0.8, 1.25),
            drop_path=0.0,
            neck_channels=32,
            roi_hidden_dim=64,
            num_stages=num_stages,
            anchor_scale=4.0,
            init_std=0.1,
            num_proposals=100,
            rois_per_image=32,
            num_workers=0,
        ),
        train=replace(
            full.train,
            steps=steps,
            batch_size=8,
            schedule=replace(full.train.schedule, lr=2e-3, warmup_steps=20),
            optimizer=replace(full.train.optimizer, clip_norm=10.0),
            precision="fp32",
            checkpoint_every=30,
            log_every=10,
            num_threads=1,
        ),
    )

"""Fine-tuning for segmentation, depth and detection: the paper's recipes, sweeps, tiny variants."""

from dataclasses import replace

from clipmill.engine.config import AdamWConfig, ScheduleConfig, TrainConfig
from clipmill.tasks.config import (
    DepthConfig,
    DetectionConfig,
    PhotometricConfig,
    SegmentationConfig,
)
from clipmill.tasks.finetune import FinetuneConfig
from clipmill.tasks.sweep import SweepConfig

# In minutes, shapes are learnt sooner without.
_AS_THEY_ARE = PhotometricConfig(probability=0.0)
_SMALL_AND_CACHED = ("model.crop_size=64", "model.cache_features=true", "model.num_workers=0")


def upernet_vit_b16() -> FinetuneConfig:
    """UperNet on ADE20K.

    Source: CLIP-QC, Table 14; one point of its sweep (drop path 0.0 to 0.2, rate 5e-4 to 1e-4).
    Command: ``clipmill finetune --recipe upernet-vit-b16 --encoder URI --data FOLDER``
    Hardware and hours: not run.
    Expected: 52.5 mIoU from DataComp, 53.9 from DataCompDR (CLIP-QC, Table 1).
    """
    return FinetuneConfig(
        task="segmentation",
        model=SegmentationConfig(),
        train=TrainConfig(
            steps=160_000,
            batch_size=16,
            schedule=ScheduleConfig(name="polynomial", lr=1e-4, min_lr=0.0, warmup_steps=1_500),
            optimizer=AdamWConfig(betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.01),
            precision="bf16",
        ),
    )


def upernet_tiny() -> FinetuneConfig:
    """UperNet at 64 px, half a minute of one core.

    Source: ours, derived from :func:`upernet_vit_b16`.
    Command: ``clipmill finetune --recipe upernet-tiny --encoder URI --data URI``
    Hardware and time: see docs/hardware.md.
    """
    full = upernet_vit_b16()
    return replace(
        full,
        model=SegmentationConfig(
            crop_size=64,
            scale=(0.45, 0.65),
            photometric=_AS_THEY_ARE,
            classifier_std=0.1,
            drop_path=0.0,
            pyramid_channels=48,
            head_channels=48,
            auxiliary_channels=32,
            num_workers=0,
        ),
        train=replace(
            full.train,
            steps=300,
            batch_size=16,
            schedule=ScheduleConfig(name="polynomial", lr=4e-3, min_lr=0.0, warmup_steps=20),
            precision="fp32",
            checkpoint_every=30,
            log_every=10,
            num_threads=1,
        ),
    )


def semantic_fpn_mci0() -> FinetuneConfig:
    """SemanticFPN on ADE20K, with MCi0.

    Source: CLIP-QC, Table 14; one point of its sweep (drop path 0.0 to 0.2, rate 5e-4 to 1e-4).
    Command: ``clipmill finetune --recipe semantic-fpn-mci0 --encoder URI --data FOLDER``
    Hardware and hours: not run.
    Expected: 44.8 mIoU from a supervised encoder, 48.1 from CLIP on DataCompDR (CLIP-QC, mobile
    tables).
    """
    full = upernet_vit_b16()
    schedule = ScheduleConfig(name="polynomial", lr=2e-4, min_lr=0.0, warmup_steps=0)
    optimizer = replace(full.train.optimizer, weight_decay=5e-4)
    return replace(
        full,
        model=SegmentationConfig(head="semantic-fpn", head_channels=128),
        train=replace(
            full.train, steps=40_000, batch_size=64, schedule=schedule, optimizer=optimizer
        ),
    )


def semantic_fpn_mci1() -> FinetuneConfig:
    """SemanticFPN on ADE20K, with MCi1.

    Source: CLIP-QC, Table 14; another point of the sweep than :func:`semantic_fpn_mci0`.
    Hardware and hours: not run.
    Expected: 47.7 mIoU from a supervised encoder, 49.8 from CLIP on DataCompDR.
    """
    wider = SegmentationConfig(head="semantic-fpn", head_channels=128, drop_path=0.15)
    return replace(semantic_fpn_mci0(), model=wider)


def semantic_fpn_mci2() -> FinetuneConfig:
    """SemanticFPN on ADE20K, with MCi2.

    Source: CLIP-QC, Table 14; another point of the sweep than :func:`semantic_fpn_mci0`.
    Hardware and hours: not run.
    Expected: 48.9 mIoU from a supervised encoder, 52.2 from CLIP on DataCompDR.
    """
    wider = SegmentationConfig(head="semantic-fpn", head_channels=128, drop_path=0.2)
    return replace(semantic_fpn_mci0(), model=wider)


def semantic_fpn_tiny() -> FinetuneConfig:
    """SemanticFPN at 64 px, for an encoder of stages, half a minute of one core.

    Source: ours, derived from :func:`semantic_fpn_mci0` and :func:`upernet_tiny`.
    Command: ``clipmill finetune --recipe semantic-fpn-tiny --encoder URI --data URI``
    Hardware and time: see docs/hardware.md.
    """
    return upernet_tiny().override(["model.head=semantic-fpn", "train.steps=400"])


def depth_vit_b16() -> FinetuneConfig:
    """Depth on NYUv2: 25 epochs of 24,231 images at batch 24.

    Source: CLIP-QC, Table 15, and Xie et al. 2023; one point of the sweep (drop path 0.0 to 0.2,
    rate 7e-4 to 1e-4).
    Command: ``clipmill finetune --recipe depth-vit-b16 --encoder URI --data nyu_depth_v2``
    Hardware and hours: not run.
    Expected RMSE: 0.358 m from DataComp, 0.339 m from DataCompDR (CLIP-QC, Table 1).
    """
    return FinetuneConfig(
        task="depth",
        model=DepthConfig(),
        train=TrainConfig(
            steps=25_225,
            batch_size=24,
            schedule=ScheduleConfig(name="triangular", lr=5e-4, min_lr=3e-5, power=0.9),
            optimizer=AdamWConfig(
                betas=(0.9, 0.999), epsilon=1e-8, weight_decay=0.05, layer_decay=0.8
            ),
            precision="bf16",
        ),
    )


def depth_tiny() -> FinetuneConfig:
    """Depth at 128 px, half a minute of one core.

    Source: ours, derived from :func:`depth_vit_b16`.
    Command: ``clipmill finetune --recipe depth-tiny --encoder URI --data URI``
    Hardware and time: see docs/hardware.md.
    """
    full = depth_vit_b16()
    return replace(
        full,
        model=DepthConfig(
            crop_size=128,
            photometric=_AS_THEY_ARE,
            init_std=0.1,
            drop_path=0.0,
            head_channels=32,
            num_workers=0,
        ),
        train=replace(
            full.train,
            steps=200,
            batch_size=8,
            schedule=replace(full.train.schedule, lr=2e-3),
            precision="fp32",
            checkpoint_every=30,
            log_every=10,
            num_threads=1,
        ),
    )


def linear_segmentation_vit_b16() -> FinetuneConfig:
    """A linear probe of frozen features on ADE20K: what an encoder's maps say by themselves.

    Source: DINOv2's linear evaluation (Oquab et al. 2023, section 7.4: batch norm and a linear
    layer on frozen features); rate and length ours, the rest from :func:`upernet_vit_b16`.
    Command: ``clipmill finetune --recipe linear-segmentation-vit-b16 --encoder URI --data FOLDER``
    Hardware and hours: not run.
    """
    full = upernet_vit_b16()
    return replace(
        full,
        model=SegmentationConfig(head="linear", freeze_encoder=True, drop_path=0.0),
        train=replace(
            full.train,
            steps=40_000,
            schedule=ScheduleConfig(name="polynomial", lr=1e-3, min_lr=0.0),
        ),
    )


def linear_segmentation_tiny() -> FinetuneConfig:
    """The same at 64 px, features computed once: seconds of one core.

    Source: ours, derived from :func:`linear_segmentation_vit_b16`.
    Command: ``clipmill finetune --recipe linear-segmentation-tiny --encoder URI --data URI``
    Hardware and time: see docs/hardware.md.
    """
    full = linear_segmentation_vit_b16()
    return replace(full, train=_probe_tiny(full.train)).override(_SMALL_AND_CACHED)


def linear_segmentation_dinov3() -> FinetuneConfig:
    """DINOv3's linear segmentation on ADE20K: one number by which frozen encoders are compared.

    Source: DINOv3 (Siméoni et al. 2025), whose repository has the settings in
    eval/segmentation/configs/config-ade20k-linear-training.yaml: batch norm and a linear layer on
    the last map, dropout 0.1 in eval/segmentation/models/heads/linear_head.py. There the batch norm
    has weights of its own, which the linear layer here makes up for.
    Command: ``clipmill finetune --recipe linear-segmentation-dinov3 --encoder URI --data ADE20K``
    Hardware and hours: not run.
    """
    full = linear_segmentation_vit_b16()
    return replace(
        full,
        model=SegmentationConfig(
            head="linear",
            freeze_encoder=True,
            drop_path=0.0,
            linear_dropout=0.1,
            linear_loss="image",
            photometric=_AS_THEY_ARE,
            cat_max_ratio=1.0,
            test_mode="slide",
        ),
        train=replace(
            full.train,
            steps=40_000,
            batch_size=16,
            schedule=ScheduleConfig(name="cosine", lr=1e-3, min_lr=0.0, warmup_steps=1_500),
            optimizer=AdamWConfig(betas=(0.9, 0.999), epsilon=1e-8, weight_decay=1e-3),
            precision="fp32",
        ),
    )


def linear_depth_dinov3() -> FinetuneConfig:
    """DINOv3's linear depth on NYUv2: one number by which frozen encoders are compared.

    Source: DINOv3 (Siméoni et al. 2025), whose repository has the settings in
    eval/depth/configs/config-nyu.yaml: 256 bins of 1 mm to 10 m, batch norm and a linear layer on
    the last map, SigLoss (variance plus 0.15 times the squared mean), Eigen's crop, averaged with
    the mirrored image. Training crops are squares of 480 here (416 x 544 there), not rotated.
    Command: ``clipmill finetune --recipe linear-depth-dinov3 --encoder URI --data nyu_depth_v2``
    Hardware and hours: not run.
    """
    full = linear_depth_vit_b16()
    return replace(
        full,
        model=DepthConfig(
            head="linear",
            freeze_encoder=True,
            drop_path=0.0,
            position_side=0,
            num_bins=256,
            linear_dropout=0.1,
            linear_loss="image",
            silog_lambda=0.85,
            cutdepth_period=0,
            num_test_windows=1,
        ),
        train=replace(
            full.train,
            steps=38_400,
            batch_size=16,
            schedule=ScheduleConfig(name="cosine", lr=3e-4, min_lr=0.0, warmup_steps=12_800),
            optimizer=AdamWConfig(
                betas=(0.9, 0.99), epsilon=1e-8, weight_decay=1e-4, clip_norm=35.0
            ),
            precision="fp32",
        ),
    )


def linear_depth_vit_b16() -> FinetuneConfig:
    """A linear probe of frozen features on NYUv2, with a bias by position.

    Source: DINOv2's linear evaluation (Oquab et al. 2023, section 7.4), with Xie et al.'s loss and
    range in place of its bins; rate and length ours, the rest from :func:`depth_vit_b16`.
    Command: ``clipmill finetune --recipe linear-depth-vit-b16 --encoder URI --data nyu_depth_v2``
    Hardware and hours: not run.
    """
    full = depth_vit_b16()
    return replace(
        full,
        model=DepthConfig(
            head="linear",
            freeze_encoder=True,
            drop_path=0.0,
            flip_augment_test=False,
            num_test_windows=1,
        ),
        train=replace(full.train, schedule=replace(full.train.schedule, lr=1e-3)),
    )


def linear_depth_tiny() -> FinetuneConfig:
    """The same at 64 px, features computed once: seconds of one core.

    Source: ours, derived from :func:`linear_depth_vit_b16`.
    Command: ``clipmill finetune --recipe linear-depth-tiny --encoder URI --data URI``
    Hardware and time: see docs/hardware.md.
    """
    full = linear_depth_vit_b16()
    return replace(full, train=_probe_tiny(full.train)).override(_SMALL_AND_CACHED)


def _probe_tiny(train: TrainConfig) -> TrainConfig:
    """A linear head's training on features that are there: rate and length found by hand."""
    return replace(
        train,
        steps=300,
        batch_size=32,
        schedule=ScheduleConfig(name="polynomial", lr=2e-2, min_lr=0.0, warmup_steps=10),
        optimizer=AdamWConfig(betas=(0.9, 0.999), epsilon=1e-8, weight_decay=1e-2),
        precision="fp32",
        checkpoint_every=300,
        log_every=10,
        num_threads=1,
    )


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


DROP_PATH, RATE = "model.drop_path", "train.schedule.lr"
_TO_20 = (0.0, 0.05, 0.1, 0.15, 0.2)
_TO_30 = (*_TO_20, 0.25, 0.3)


def sweep_upernet_vit_b16() -> SweepConfig:
    """UperNet on ADE20K, fifteen points.

    Source: CLIP-QC, Table 14; the halving is ours (``--set rungs=[1.0]`` trains all in whole).
    Command: ``clipmill sweep --recipe sweep-upernet-vit-b16 --encoder URI --data FOLDER``
    Hardware and hours: not run.
    """
    return SweepConfig(
        finetune=upernet_vit_b16(), grid={DROP_PATH: _TO_20, RATE: (5e-4, 2e-4, 1e-4)}
    )


def sweep_semantic_fpn() -> SweepConfig:
    """SemanticFPN on ADE20K, fifteen points, for any of MCi0 to MCi2.

    Source: CLIP-QC, Table 14; the halving is ours.
    Command: ``clipmill sweep --recipe sweep-semantic-fpn --encoder URI --data FOLDER``
    Hardware and hours: not run.
    """
    return SweepConfig(
        finetune=semantic_fpn_mci0(), grid={DROP_PATH: _TO_20, RATE: (5e-4, 2e-4, 1e-4)}
    )


def sweep_mask_rcnn_1x() -> SweepConfig:
    """Mask R-CNN on COCO, twenty-one points.

    Source: CLIP-QC, Table 13; the halving is ours.
    Command: ``clipmill sweep --recipe sweep-mask-rcnn-1x --encoder URI --data FOLDER``
    Hardware and hours: not run.
    """
    return SweepConfig(finetune=mask_rcnn_1x(), grid={DROP_PATH: _TO_30, RATE: (5e-4, 2e-4, 1e-4)})


def sweep_cascade_mask_rcnn_3x() -> SweepConfig:
    """Cascade Mask R-CNN on COCO, twenty-one points.

    Source: CLIP-QC, Table 13; the halving is ours.
    Command: ``clipmill sweep --recipe sweep-cascade-mask-rcnn-3x --encoder URI --data FOLDER``
    Hardware and hours: not run.
    """
    return SweepConfig(
        finetune=cascade_mask_rcnn_3x(), grid={DROP_PATH: _TO_30, RATE: (5e-4, 2e-4, 1e-4)}
    )


def sweep_depth_vit_b16() -> SweepConfig:
    """Depth on NYUv2, twenty points.

    Source: CLIP-QC, Table 15; the halving is ours.
    Command: ``clipmill sweep --recipe sweep-depth-vit-b16 --encoder URI --data nyu_depth_v2``
    Hardware and hours: not run.
    """
    return SweepConfig(
        finetune=depth_vit_b16(), grid={DROP_PATH: _TO_20, RATE: (7e-4, 5e-4, 2e-4, 1e-4)}
    )


def sweep_depth_tiny() -> SweepConfig:
    """Four points of depth at 64 px, the better two in whole.

    Source: ours, derived from :func:`sweep_depth_vit_b16`.
    Command: ``clipmill sweep --recipe sweep-depth-tiny --encoder URI --data URI``
    Hardware and time: not run.
    """
    return SweepConfig(
        finetune=depth_tiny(),
        grid={DROP_PATH: (0.0, 0.1), RATE: (4e-3, 2e-3)},
        rungs=(0.25, 1.0),
        reduction_fraction=0.5,
    )


def sweep_upernet_tiny() -> SweepConfig:
    """Four points of UperNet at 64 px, the better two in whole.

    Source: ours, derived from :func:`sweep_upernet_vit_b16`.
    Command: ``clipmill sweep --recipe sweep-upernet-tiny --encoder URI --data URI``
    Hardware and time: not run.
    """
    return SweepConfig(
        finetune=upernet_tiny(),
        grid={DROP_PATH: (0.0, 0.1), RATE: (8e-3, 4e-3)},
        rungs=(0.25, 1.0),
        reduction_fraction=0.5,
    )

"""mmseg's and mmdet's own training: their models, data sets, pipelines and ``Runner``.

Built from the configs in their wheels, changed to what a tiny recipe of ours says, with our encoder
as the backbone: the network is one, the loop and the loading are theirs.
"""

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import imgaug  # noqa: F401  # of mmdet.datasets, which needs all of it: not lazily
from torch import Tensor, nn

from clipmill.engine.config import TrainConfig
from clipmill.models.config import EncoderConfig
from clipmill.models.encoders import build_dense
from clipmill.openmmlab.ops import importing_openmmlab
from clipmill.tasks.config import DetectionConfig, SegmentationConfig

with importing_openmmlab():
    import mmdet.datasets
    import mmdet.models
    import mmseg.datasets
    import mmseg.models
    from mmengine.config import Config
    from mmengine.hooks import Hook
    from mmengine.registry import MODELS
    from mmengine.runner import Runner

# Our encoders take pixels in 0..1, and normalize them themselves.
_PIXELS = {"mean": [0.0] * 3, "std": [255.0] * 3, "bgr_to_rgb": True}


@MODELS.register_module()
class Backbone(nn.Module):
    """An encoder of ours; ``encoder`` is its config as JSON."""

    def __init__(self, encoder: dict[str, Any]) -> None:
        super().__init__()
        self.encoder = build_dense(EncoderConfig.from_json(encoder))

    def forward(self, images_B3HW: Tensor) -> tuple[Tensor, ...]:
        """Its maps."""
        return tuple(self.encoder(images_B3HW))


def segmentation(
    config: SegmentationConfig,
    train: TrainConfig,
    encoder: EncoderConfig,
    folder: Path,
    classes: tuple[str, ...],
    lap: Callable[[], None],
    scratch: str,
) -> "Runner":
    """A runner of mmseg's UperNet on an ADE20K folder."""
    channels = build_dense(encoder).channels
    norm = {"type": "BN", "requires_grad": True}
    common = {"norm_cfg": norm, "num_classes": len(classes)}
    changes = {
        "decode_head": {**common, "in_channels": channels, "channels": config.head_channels},
        "auxiliary_head": {
            **common,
            "in_channels": channels[2],
            "channels": config.auxiliary_channels,
        },
    }
    model = _model(mmseg, "upernet_r50", encoder, changes)
    size = (config.crop_size, config.crop_size)
    model.data_preprocessor.update(_PIXELS, size=size)
    pipeline = [
        {"type": "LoadImageFromFile"},
        {"type": "LoadAnnotations", "reduce_zero_label": True},
        {"type": "RandomResize", "scale": size, "ratio_range": config.scale, "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": size, "cat_max_ratio": 1.0},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "PhotoMetricDistortion"},
        {"type": "PackSegInputs"},
    ]
    data = {
        "type": "BaseSegDataset",
        "data_root": str(folder),
        "data_prefix": {"img_path": "images/training", "seg_map_path": "annotations/training"},
        "metainfo": {"classes": classes},
        "reduce_zero_label": True,
        "pipeline": pipeline,
    }
    schedule = {
        "type": "PolyLR",
        "power": train.schedule.power,
        "begin": train.schedule.warmup_steps,
        "end": train.steps,
        "eta_min": train.schedule.min_lr,
        "by_epoch": False,
    }
    return _runner("mmseg", model, data, schedule, train, lap, scratch)


def detection(
    config: DetectionConfig,
    train: TrainConfig,
    encoder: EncoderConfig,
    folder: Path,
    classes: tuple[str, ...],
    lap: Callable[[], None],
    scratch: str,
) -> "Runner":
    """A runner of mmdet's Mask R-CNN on a COCO folder."""
    dense = build_dense(encoder)
    strides, width = [dense.strides[0] * 2**level for level in range(5)], config.neck_channels
    align = {"roi_layer.use_torchvision": True, "out_channels": width}
    extractor = {**align, "featmap_strides": strides[:4], "finest_scale": 14 * strides[0]}
    changes = {
        "neck": {"in_channels": list(dense.channels), "out_channels": width},
        "rpn_head": {
            "in_channels": width,
            "feat_channels": width,
            "anchor_generator.scales": [config.anchor_scale],
            "anchor_generator.strides": strides,
        },
        "roi_head.bbox_roi_extractor": extractor,
        "roi_head.mask_roi_extractor": extractor,
        "roi_head.bbox_head": {
            "in_channels": width,
            "fc_out_channels": config.roi_hidden_dim,
            "num_classes": len(classes),
        },
        "roi_head.mask_head": {
            "in_channels": width,
            "conv_out_channels": width,
            "num_classes": len(classes),
        },
        "train_cfg.rpn_proposal": {
            "nms_pre": 2 * config.num_proposals,
            "max_per_img": config.num_proposals,
        },
        "train_cfg.rcnn": {"sampler.num": config.rois_per_image},
    }
    model = _model(mmdet, "mask-rcnn_r50_fpn", encoder, changes)
    model.data_preprocessor.update(_PIXELS)
    size = (config.image_size, config.image_size)
    pipeline = [
        {"type": "LoadImageFromFile"},
        # As bitmaps: run lengths kept as they are would all count as crowds.
        {"type": "LoadAnnotations", "with_bbox": True, "with_mask": True},
        {"type": "RandomResize", "scale": size, "ratio_range": config.scale, "keep_ratio": True},
        {"type": "RandomCrop", "crop_size": size, "crop_type": "absolute", "recompute_bbox": True},
        {"type": "RandomFlip", "prob": 0.5},
        {"type": "Pad", "size": size},
        {"type": "PackDetInputs"},
    ]
    data = {
        "type": "CocoDataset",
        "data_root": str(folder),
        "ann_file": "annotations/instances_train2017.json",
        "data_prefix": {"img": "train2017/"},
        "metainfo": {"classes": classes},
        "pipeline": pipeline,
    }
    schedule = {
        "type": "MultiStepLR",
        "milestones": [round(m * train.steps) for m in train.schedule.milestones],
        "by_epoch": False,
    }
    return _runner("mmdet", model, data, schedule, train, lap, scratch)


def _model(
    package: Any, name: str, encoder: EncoderConfig, changes: dict[str, dict[str, Any]]
) -> Any:
    """The config of that name in the package's wheel, with ``changes`` by their places."""
    spec = importlib.util.find_spec(package.__name__)
    assert spec is not None
    assert spec.submodule_search_locations is not None
    root = Path(spec.submodule_search_locations[0])
    config = Config.fromfile(root / ".mim/configs/_base_/models" / f"{name}.py")
    flat = {f"{where}.{key}": v for where, rows in changes.items() for key, v in rows.items()}
    config.merge_from_dict({f"model.{place}": value for place, value in flat.items()})
    config.model.pop("pretrained", None)
    config.model.backbone = {"type": "mmengine.Backbone", "encoder": encoder.to_json()}
    return config.model


def _runner(
    scope: str,
    model: Any,
    data: dict[str, Any],
    schedule: dict[str, Any],
    train: TrainConfig,
    lap: Callable[[], None],
    scratch: str,
) -> "Runner":
    class Laps(Hook):  # type: ignore[misc]  # untyped
        priority = "VERY_HIGH"

        def before_run(self, _runner: Runner) -> None:
            lap()

        def after_train_iter(self, *_: Any, **__: Any) -> None:
            lap()

    optimizer = train.optimizer
    warmup = {"type": "LinearLR", "start_factor": 1e-6, "by_epoch": False}
    clip = {"max_norm": optimizer.clip_norm} if optimizer.clip_norm else None
    return Runner(
        model=model,
        work_dir=scratch,
        train_dataloader={
            "batch_size": train.batch_size,
            "num_workers": 0,
            "sampler": {"type": "InfiniteSampler", "shuffle": True},
            "dataset": data,
        },
        train_cfg={"type": "IterBasedTrainLoop", "max_iters": train.steps},
        optim_wrapper={
            "type": "OptimWrapper",
            "optimizer": {
                "type": "AdamW",
                "lr": train.schedule.lr,
                "betas": optimizer.betas,
                "eps": optimizer.epsilon,
                "weight_decay": optimizer.weight_decay,
            },
            "clip_grad": clip,
        },
        param_scheduler=[{**warmup, "begin": 0, "end": train.schedule.warmup_steps}, schedule],
        default_hooks={
            "logger": {"type": "LoggerHook", "interval": train.log_every},
            "checkpoint": None,
        },
        custom_hooks=[Laps()],
        default_scope=scope,
        log_level="ERROR",
        randomness={"seed": train.seed},
    )

"""The paper's sweeps: drop path and rate of each fine-tuning."""

from clipmill.recipes.dense import (
    depth_tiny,
    depth_vit_b16,
    semantic_fpn_mci0,
    upernet_tiny,
    upernet_vit_b16,
)
from clipmill.recipes.detection import cascade_mask_rcnn_3x, mask_rcnn_1x
from clipmill.tasks.sweep import SweepConfig

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

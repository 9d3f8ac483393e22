"""The paper's study, at its sizes, on a team's own data: ``--set given.dataset=...`` and so on."""

from dataclasses import replace

from clipmill.recipes.classification import classification_vit_b16, linear_probe_vit_b16
from clipmill.recipes.clip import clip_vit_b16_12_8b, clip_vit_b16_scaling_1_28b
from clipmill.recipes.dense import depth_vit_b16, semantic_fpn_mci0, upernet_vit_b16
from clipmill.recipes.detection import cascade_mask_rcnn_3x, mask_rcnn_1x
from clipmill.recipes.mae import mae_vit_b16_2_05b, mae_vit_b16_5b
from clipmill.recipes.mobile import clip_mci0_12_8b, teacher_datacompdr
from clipmill.recipes.supervised import supervised_mci0
from clipmill.study.config import ConditionConfig, GivenConfig, StudyConfig

LAYER = "synthetic"
"""What the conditions call the caption layer: ``--set given.layers.synthetic=captions/...``."""

_BILLIONS = (2.05, 5.0, 12.8)
_FRACTIONS = (0.001, 0.01, 0.1, 1.0)
_G = ConditionConfig(name="G", encoder="vit")
_BOTH = ConditionConfig(name="G+S", encoder="vit", captions="both", layer=LAYER)
_SOURCES = (_G, replace(_BOTH, name="S", captions="synthetic"), _BOTH)


def _objectives(billions: float) -> tuple[ConditionConfig, ...]:
    """CLIP of so many seen samples, held against the MAE of as many where the paper has one."""
    mae = f"MAE, {billions} B"
    has_mae = billions < _BILLIONS[-1]
    masked = ConditionConfig(name=mae, over=mae, tables=("objectives",), encoder=mae)
    clips = tuple(
        replace(
            condition,
            name=f"{condition.name}, {billions} B seen",
            over=mae if has_mae else "",
            tables=("objectives",),
            budget=billions / _BILLIONS[-1],
        )
        for condition in (_G, _BOTH)
    )
    return (masked, *clips) if has_mae else clips


def study_paper() -> StudyConfig:
    """ViT-B/16 by caption source, MAE and CLIP by seen samples, 1.28 M to 1.28 B pairs.

    Source: CLIP-QC, Tables 2 and 3, Figures 2 and 3. Its best of a sweep of rates is one point here
    (``clipmill sweep`` finds it; ``--set transfers.segmentation.train.schedule.peak=...``).
    Command: ``torchrun --nnodes 8 --nproc-per-node 8 -m clipmill study captions --recipe
    study-paper --store URI --set given.dataset=URI --set given.layers.synthetic=captions/...
    --set given.labels.segmentation=URI`` and so on for detection, depth, classification.
    Hardware and hours: not run.
    """
    return StudyConfig(
        given=GivenConfig(),
        clips={"vit": clip_vit_b16_12_8b(), "scaled": clip_vit_b16_scaling_1_28b()},
        maes={"MAE, 2.05 B": mae_vit_b16_2_05b(), "MAE, 5.0 B": mae_vit_b16_5b()},
        transfers={
            "segmentation": upernet_vit_b16(),
            "depth": depth_vit_b16(),
            "detection": mask_rcnn_1x(),
            "detection, cascade": cascade_mask_rcnn_3x(),
            "classification": classification_vit_b16(),
            "classification, frozen": linear_probe_vit_b16(),
        },
        conditions=(
            *_SOURCES,
            *(c for billions in _BILLIONS for c in _objectives(billions)),
            *(
                replace(
                    condition,
                    name=f"{condition.name}, {fraction:.1%}",
                    tables=("scaling",),
                    encoder="scaled",
                    fraction=fraction,
                )
                for condition in (_G, _BOTH)
                for fraction in _FRACTIONS
            ),
        ),
        attention=("G", "G+S"),
        seeds=(0,),
    )


def study_paper_mobile() -> StudyConfig:
    """MCi0 by labels, and by CLIP with distillation.

    Source: CLIP-QC, the mobile tables (4 and 5); MCi1 and MCi2 by ``--set
    clips.mobile.model.vision.timm_model=fastvit_mci1`` and its like for ``supervised``.
    Command: as for :func:`study_paper`; ``given.labels.classification`` is ImageNet-1K, and
    ``teaching.models`` teach where ``clips.mobile.distillation.layer`` is empty.
    Hardware and hours: not run.
    """
    labels = ConditionConfig(name="labels", tables=("mobile",), encoder="supervised")
    distilled = ConditionConfig(
        name="CLIP, distilled",
        tables=("mobile",),
        encoder="mobile",
        captions="both",
        layer=LAYER,
    )
    return StudyConfig(
        given=GivenConfig(),
        clips={"mobile": clip_mci0_12_8b()},
        supervised={"supervised": supervised_mci0()},
        transfers={"segmentation": semantic_fpn_mci0(), "detection": mask_rcnn_1x()},
        conditions=(labels, distilled),
        teaching=teacher_datacompdr(),
        seeds=(0,),
    )

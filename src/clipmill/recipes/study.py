"""Studies of captions, at the sizes that two cores can answer.

World, sizes and rates were chosen by a pilot, which docs/study.md tells of.
"""

from dataclasses import replace

from clipmill.engine.config import TrainConfig
from clipmill.engine.schedule import ScheduleConfig
from clipmill.pretrain.clip import PretrainConfig
from clipmill.recipes.captioner import coca_miniature, recaption_miniature
from clipmill.recipes.classification import classification_miniature, linear_probe_miniature
from clipmill.recipes.clip import clip_miniature, clip_vit_miniature
from clipmill.recipes.data import scenes_every_task, shards_miniature
from clipmill.recipes.dense import depth_miniature, semantic_fpn_miniature
from clipmill.recipes.detection import mask_rcnn_miniature
from clipmill.recipes.mae import mae_miniature
from clipmill.recipes.supervised import supervised_miniature
from clipmill.study.config import COCA, ConditionConfig, StudyConfig
from clipmill.study.scene_captions import DOSES
from clipmill.tasks.finetune import FinetuneConfig

_STEPS, _BATCH = 1000, 64
_BUDGETS = (0.25, 0.5, 1.0)
_FRACTIONS = (0.01, 0.1)

_REAL = ConditionConfig(name="G", tables=("sources", "objectives", "scaling"))
_BOTH = ConditionConfig(
    name="G+S (CoCa)",
    tables=("sources", "objectives", "scaling"),
    captions="both",
    layer=COCA,
)
_SOURCES = (
    _REAL,
    ConditionConfig(name="S (rewritten text)", captions="synthetic", layer="rewrite"),
    ConditionConfig(name="S (CoCa)", captions="synthetic", layer=COCA),
    _BOTH,
    ConditionConfig(
        name="terse, true",
        tables=("sources", "dose"),
        captions="synthetic",
        layer="terse",
        dose=0.0,
    ),
    ConditionConfig(name="rich, true", captions="synthetic", layer="rich"),
)
_DOSED = tuple(
    ConditionConfig(
        name=f"{percent} % wrong",
        tables=("dose",),
        captions="synthetic",
        layer=f"wrong-{percent}",
        dose=float(percent),
    )
    for percent in DOSES
)
_SCALED = tuple(
    replace(whole, name=f"{whole.name}, {fraction:.0%}", tables=("scaling",), fraction=fraction)
    for whole in (_REAL, _BOTH)
    for fraction in _FRACTIONS
)


def _at(budget: float, name: str) -> str:
    return f"ViT, {name}, {round(_STEPS * _BATCH * budget):,} seen"


_OBJECTIVES = (
    ConditionConfig(name="from scratch", tables=("objectives",), encoder="scratch"),
    ConditionConfig(name="labels", tables=("objectives",), encoder="supervised"),
    *(
        replace(
            condition,
            name=_at(budget, name),
            over=_at(budget, "MAE"),
            tables=("objectives",),
            encoder=encoder,
            budget=budget,
        )
        for budget in _BUDGETS
        for name, encoder, condition in (
            ("MAE", "mae", _REAL),
            ("CLIP G", "vit", _REAL),
            ("CLIP G+S", "vit", _BOTH),
        )
    ),
)


def study_captions() -> StudyConfig:
    """Caption sources, other pretraining, data scaling, dose and response: a night of two cores.

    Source: ours; the questions are those of CLIP-QC, Tables 2 and 3 and Figure 2.
    Command: ``clipmill study captions --store URI --workers 2``
    """
    scenes = replace(
        scenes_every_task(), num_pairs=8192, num_captioning=4096, num_labelled=512, num_test=256
    )
    captioner, mae, labels = coca_miniature(), mae_miniature(), supervised_miniature()
    captioner = replace(captioner, train=_seen(captioner.train))
    return StudyConfig(
        scenes=scenes,
        shards=shards_miniature(),
        captioner=captioner.override(["train.schedule.peak=2e-3", "train.num_threads=1"]),
        recaption=recaption_miniature(),
        clips={"clip": _long(clip_miniature()), "vit": _long(clip_vit_miniature())},
        maes={"mae": replace(mae, train=_seen(mae.train))},
        supervised={"supervised": replace(labels, train=_seen(labels.train))},
        scratch={"scratch": f"timm:{clip_miniature().model.vision.timm_model}"},
        transfers={
            "segmentation": semantic_fpn_miniature(),
            "depth": depth_miniature(),
            "detection": mask_rcnn_miniature(),
            "classification": classification_miniature(),
            "segmentation, frozen": _frozen(semantic_fpn_miniature()),
            "depth, frozen": _frozen(depth_miniature()),
            "detection, frozen": _frozen(mask_rcnn_miniature()),
            "classification, frozen": linear_probe_miniature(),
        },
        conditions=(*_SOURCES, *_OBJECTIVES, *_SCALED, *_DOSED),
        attention=tuple(c.name for c in _OBJECTIVES if c.over and c.budget == 1),
        seeds=(0, 1, 2, 3, 4),
    )


def study_captions_quick() -> StudyConfig:
    """Four of the caption sources of :func:`study_captions`, two seeds, three transfers.

    What it makes is part of the whole study, which doesn't make it again.

    Source: ours.
    Command: ``clipmill study captions --recipe study-captions-quick --store URI --workers 2``
    """
    whole = study_captions()
    transfers = ("segmentation", "depth", "classification, frozen")
    sources = ("G", "S (CoCa)", "G+S (CoCa)", "terse, true")
    return replace(
        whole,
        transfers={name: whole.transfers[name] for name in transfers},
        conditions=tuple(
            replace(c, tables=("sources",)) for c in whole.conditions if c.name in sources
        ),
        attention=(),
        seeds=(0, 1),
    )


def study_from_scratch() -> StudyConfig:
    """What pretraining is worth: each task from a pretrained encoder and from random weights.

    Source: ours.
    Command: ``clipmill study captions --recipe study-from-scratch --store URI --workers 2``
    """
    whole = study_captions()
    tasks = ("segmentation", "depth", "detection", "classification")
    scratch, pretrained = (
        next(c for c in whole.conditions if c.name == name)
        for name in ("from scratch", "terse, true")
    )
    return replace(
        whole,
        transfers={name: whole.transfers[name] for name in tasks},
        conditions=(scratch, replace(pretrained, tables=("objectives",))),
        attention=(),
        seeds=(0, 1, 2),
    )


def _long(config: PretrainConfig) -> PretrainConfig:
    schedule = ScheduleConfig(peak=1e-3, minimum=1e-6, warmup_steps=50)
    return replace(config, train=replace(_seen(config.train), schedule=schedule))


def _seen(train: TrainConfig) -> TrainConfig:
    return replace(train, steps=_STEPS, batch_size=_BATCH)


def _frozen(config: FinetuneConfig) -> FinetuneConfig:
    return config.override(["model.is_frozen=true"])

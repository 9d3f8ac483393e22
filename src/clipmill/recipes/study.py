"""Studies of captions, at the sizes that two cores can answer.

World, sizes and rates were chosen by a pilot, which docs/study/design.md tells of.
"""

from dataclasses import replace

from clipmill.data.loading.view import ViewConfig
from clipmill.engine.config import ScheduleConfig, TrainConfig
from clipmill.pretrain.config import DistillationConfig, PretrainConfig, ValidationConfig
from clipmill.recipes.classification import (
    classification_tiny,
    classification_vit_b16,
    linear_probe_tiny,
    linear_probe_vit_b16,
)
from clipmill.recipes.data import coca_tiny, recaption_tiny, scenes_all_tasks, shards_tiny
from clipmill.recipes.finetune import (
    cascade_mask_rcnn_3x,
    depth_tiny,
    depth_vit_b16,
    mask_rcnn_1x,
    mask_rcnn_tiny,
    semantic_fpn_mci0,
    semantic_fpn_tiny,
    upernet_vit_b16,
)
from clipmill.recipes.pretrain import (
    clip_mci0_12_8b,
    clip_tiny,
    clip_vit_b16_12_8b,
    clip_vit_b16_scaling_1_28b,
    clip_vit_tiny,
    mae_tiny,
    mae_vit_b16_2_05b,
    mae_vit_b16_5b,
    supervised_mci0,
    supervised_tiny,
    teacher_datacompdr,
    teacher_tiny,
)
from clipmill.study.config import (
    COCA,
    ConditionConfig,
    StudyConfig,
    SyntheticDataConfig,
    TableBudget,
    UserDataConfig,
)
from clipmill.study.scene_captions import NOISE_LEVELS
from clipmill.tasks.finetune import FinetuneConfig

LAYER = "synthetic"
"""Caption layer's alias in conditions: ``--set user_data.layers.synthetic=captions/...``."""

_PAPER_BILLIONS = (2.05, 5.0, 12.8)
_PAPER_FRACTIONS = (0.001, 0.01, 0.1, 1.0)
_PAPER_G = ConditionConfig(name="G", encoder="vit")
_PAPER_BOTH = ConditionConfig(name="G+S", encoder="vit", captions="both", layer=LAYER)
_PAPER_SOURCES = (_PAPER_G, replace(_PAPER_BOTH, name="S", captions="synthetic"), _PAPER_BOTH)

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
    _BOTH,
    ConditionConfig(name="S (CoCa)", captions="synthetic", layer=COCA),
    ConditionConfig(name="S (rewritten text)", captions="synthetic", layer="rewrite"),
    ConditionConfig(
        name="terse, true",
        tables=("sources", "dose"),
        captions="synthetic",
        layer="terse",
        caption_noise=0.0,
    ),
    ConditionConfig(name="rich, true", captions="synthetic", layer="rich"),
)
_DOSED = tuple(
    ConditionConfig(
        name=f"{percent} % wrong",
        tables=("dose",),
        captions="synthetic",
        layer=f"wrong-{percent}",
        caption_noise=float(percent),
    )
    for percent in NOISE_LEVELS
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
            baseline=_at(budget, "MAE"),
            tables=("objectives",),
            encoder=encoder,
            compute_budget=budget,
        )
        for budget in _BUDGETS
        for name, encoder, condition in (
            ("MAE", "mae", _REAL),
            ("CLIP G", "vit", _REAL),
            ("CLIP G+S", "vit", _BOTH),
        )
    ),
)
_RESNET = "test_resnet"
_MOBILE = "mobilenetv4_conv_small_035"
_MOBILE_ENCODERS = (
    ConditionConfig(name="mobile, labels", tables=("mobile",), encoder="mobile, supervised"),
    replace(_REAL, name="mobile, CLIP G", tables=("mobile",), encoder="mobile"),
    replace(_BOTH, name="mobile, CLIP G+S", tables=("mobile",), encoder="mobile"),
    replace(
        _BOTH,
        name="mobile, CLIP G+S, distilled",
        tables=("mobile",),
        encoder="mobile, distilled",
    ),
)


def study_captions() -> StudyConfig:
    """Caption sources, other pretraining, mobile encoders, data scaling, dose and response.

    Five seeds and eight transfers for the caption sources, two seeds and six for the rest: a night
    of two cores.

    Source: ours; the questions are those of CLIP-QC, Tables 2 to 5 and Figures 2 and 3.
    Command: ``clipmill study captions --store URI --workers 2``
    """
    clip, vit = (_long(make()) for make in (_clip_resnet, clip_vit_tiny))
    mobile_vision = replace(clip.model.vision, timm_model=_MOBILE, head="classifier")
    mobile = replace(clip, model=replace(clip.model, vision=mobile_vision))
    mae, labels = mae_tiny(), supervised_tiny()
    labels = replace(labels, train=_seen(labels.train))
    return StudyConfig(
        synthetic_data=_drawn(),
        clip_runs={
            "clip": clip,
            "vit": vit,
            "mobile": mobile,
            "mobile, distilled": replace(
                mobile, distillation=DistillationConfig(teacher_widths=(clip.model.embed_dim,))
            ),
        },
        mae_runs={"mae": replace(mae, train=_seen(mae.train))},
        supervised={
            "supervised": labels,
            "mobile, supervised": replace(labels, vision=mobile_vision),
        },
        from_scratch={"scratch": f"random:timm/{_RESNET}"},
        transfers={
            "segmentation": semantic_fpn_tiny(),
            "depth": depth_tiny(),
            "detection": mask_rcnn_tiny(),
            "classification": classification_tiny(),
            "segmentation, frozen": _frozen(semantic_fpn_tiny()),
            "depth, frozen": _frozen(depth_tiny()),
            "detection, frozen": _frozen(mask_rcnn_tiny()),
            "classification, frozen": linear_probe_tiny(),
        },
        conditions=(*_SOURCES, *_OBJECTIVES, *_MOBILE_ENCODERS, *_SCALED, *_DOSED),
        scoring_clip="terse, true",
        teacher=_BOTH.name,
        distillation=teacher_tiny(),
        attention=tuple(c.name for c in _OBJECTIVES if c.baseline and c.compute_budget == 1),
        seeds=(0, 1, 2, 3, 4),
        table_budgets=_rest(seeds=(0, 1)),
    )


def study_captions_quick() -> StudyConfig:
    """Three of the caption sources of :func:`study_captions`, two seeds, three transfers.

    What it makes is part of the whole study, which doesn't make it again.

    Source: ours.
    Command: ``clipmill study captions --recipe study-captions-quick --store URI --workers 2``
    """
    whole = study_captions()
    transfers = ("segmentation", "depth", "classification, frozen")
    sources = ("G", "G+S (CoCa)", "terse, true")
    return replace(
        whole,
        transfers={name: whole.transfers[name] for name in transfers},
        conditions=tuple(
            replace(c, tables=("sources",)) for c in whole.conditions if c.name in sources
        ),
        attention=(),
        seeds=(0, 1),
        table_budgets={},
    )


def study_short() -> StudyConfig:
    """The questions of :func:`study_captions`, with most effort on the caption sources.

    Three seeds and seven transfers for those, one seed and six transfers for the rest, ViTs at two
    budgets: four hours and a half of two cores.

    Source: ours.
    Command: ``clipmill study captions --recipe study-short --store URI --workers 2``
    """
    whole = study_captions()
    without = {name: t for name, t in whole.transfers.items() if name != "detection, frozen"}
    return replace(
        whole,
        transfers=without,
        conditions=tuple(c for c in whole.conditions if c.compute_budget != _BUDGETS[1]),
        seeds=(0, 1, 2),
        table_budgets=_rest(seeds=(0,)),
    )


def study_from_scratch() -> StudyConfig:
    """Value of pretraining: each task from a pretrained encoder and from random weights.

    Source: ours.
    Command: ``clipmill study captions --recipe study-from-scratch --store URI --workers 2``
    """
    whole = study_captions()
    tasks = ("segmentation", "depth", "detection", "classification")
    scratch, pretrained = map(whole.condition, ("from scratch", "terse, true"))
    return replace(
        whole,
        transfers={name: whole.transfers[name] for name in tasks},
        conditions=(scratch, replace(pretrained, tables=("objectives",))),
        scoring_clip="",
        teacher="",
        attention=(),
        seeds=(0, 1, 2),
        table_budgets={},
    )


def _rest(seeds: tuple[int, ...]) -> dict[str, TableBudget]:
    """Transfers of the other tables: no detection, which tells encoders least apart."""
    tasks = ("segmentation", "depth", "classification")
    transfers = (*tasks, *(f"{task}, frozen" for task in tasks))
    effort = TableBudget(seeds=seeds, transfers=transfers)
    return dict.fromkeys(("objectives", "mobile", "scaling", "dose"), effort)


def _clip_resnet() -> PretrainConfig:
    """The demo's recipe on the tower that the pilot chose."""
    return clip_tiny().override([f"model.vision.timm_model={_RESNET}"])


def _drawn() -> SyntheticDataConfig:
    captioner = coca_tiny().override([f"model.clip.vision.timm_model={_RESNET}"])
    captioner = replace(captioner, train=_seen(captioner.train))
    return SyntheticDataConfig(
        scenes=replace(
            scenes_all_tasks(),
            num_pairs=8192,
            num_captioner_pairs=4096,
            num_labeled=512,
            num_test=256,
        ),
        shards=shards_tiny(),
        captioner=captioner.override(["train.schedule.lr=2e-3", "train.num_threads=1"]),
        recaption=recaption_tiny(),
    )


def _long(config: PretrainConfig) -> PretrainConfig:
    """As many samples as all conditions see; every pair trains, for captions are what differs."""
    schedule = ScheduleConfig(lr=1e-3, min_lr=1e-6, warmup_steps=50)
    return replace(
        config,
        view=ViewConfig(),
        validation=ValidationConfig(every=0),
        train=replace(_seen(config.train), schedule=schedule),
    )


def _seen(train: TrainConfig) -> TrainConfig:
    return replace(train, steps=_STEPS, batch_size=_BATCH)


def _frozen(config: FinetuneConfig) -> FinetuneConfig:
    return config.override(["model.freeze_encoder=true"])


def _paper_objectives(billions: float) -> tuple[ConditionConfig, ...]:
    """CLIP of so many seen samples, held against the MAE of as many where the paper has one."""
    mae = f"MAE, {billions} B"
    has_mae = billions < _PAPER_BILLIONS[-1]
    masked = ConditionConfig(name=mae, baseline=mae, tables=("objectives",), encoder=mae)
    clips = tuple(
        replace(
            condition,
            name=f"{condition.name}, {billions} B seen",
            baseline=mae if has_mae else "",
            tables=("objectives",),
            compute_budget=billions / _PAPER_BILLIONS[-1],
        )
        for condition in (_PAPER_G, _PAPER_BOTH)
    )
    return (masked, *clips) if has_mae else clips


def study_paper() -> StudyConfig:
    """ViT-B/16 by caption source, MAE and CLIP by seen samples, 1.28 M to 1.28 B pairs.

    Source: CLIP-QC, Tables 2 and 3, Figures 2 and 3. Its best of a sweep of rates is one point here
    (``clipmill sweep`` finds it; ``--set transfers.segmentation.train.schedule.lr=...``).
    Command: ``torchrun --nnodes 8 --nproc-per-node 8 -m clipmill study captions --recipe
    study-paper --store URI --set user_data.dataset=URI
    --set user_data.layers.synthetic=captions/... --set user_data.labels.segmentation=URI`` and so
    on for detection, depth, classification.
    Hardware and hours: not run.
    """
    return StudyConfig(
        user_data=UserDataConfig(),
        clip_runs={"vit": clip_vit_b16_12_8b(), "scaled": clip_vit_b16_scaling_1_28b()},
        mae_runs={"MAE, 2.05 B": mae_vit_b16_2_05b(), "MAE, 5.0 B": mae_vit_b16_5b()},
        transfers={
            "segmentation": upernet_vit_b16(),
            "depth": depth_vit_b16(),
            "detection": mask_rcnn_1x(),
            "detection, cascade": cascade_mask_rcnn_3x(),
            "classification": classification_vit_b16(),
            "classification, frozen": linear_probe_vit_b16(),
        },
        conditions=(
            *_PAPER_SOURCES,
            *(c for billions in _PAPER_BILLIONS for c in _paper_objectives(billions)),
            *(
                replace(
                    condition,
                    name=f"{condition.name}, {fraction:.1%}",
                    tables=("scaling",),
                    encoder="scaled",
                    fraction=fraction,
                )
                for condition in (_PAPER_G, _PAPER_BOTH)
                for fraction in _PAPER_FRACTIONS
            ),
        ),
        attention=("G", "G+S"),
        seeds=(0,),
    )


def study_paper_mobile() -> StudyConfig:
    """MCi0 by labels, and by CLIP with distillation.

    Source: CLIP-QC, the mobile tables (4 and 5); MCi1 and MCi2 by ``--set
    clip_runs.mobile.model.vision.timm_model=fastvit_mci1`` and its like for ``supervised``.
    Command: as for :func:`study_paper`; ``user_data.labels.classification`` is ImageNet-1K, and
    ``distillation.models`` teach where ``clip_runs.mobile.distillation.layer`` is empty.
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
        user_data=UserDataConfig(),
        clip_runs={"mobile": clip_mci0_12_8b()},
        supervised={"supervised": supervised_mci0()},
        transfers={"segmentation": semantic_fpn_mci0(), "detection": mask_rcnn_1x()},
        conditions=(labels, distilled),
        distillation=teacher_datacompdr(),
        seeds=(0,),
    )

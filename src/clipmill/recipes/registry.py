"""Recipes by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from clipmill.config import Config
from clipmill.errors import ConfigError, suggestion
from clipmill.recipes import (
    captioner,
    classification,
    clip,
    data,
    dense,
    detection,
    image_pretraining,
    mobile,
    study,
    sweeps,
)

ConfigT = TypeVar("ConfigT", bound=Config)


RECIPES: Mapping[str, Callable[[], Config]] = {
    "cascade-mask-rcnn-3x": detection.cascade_mask_rcnn_3x,
    "cascade-mask-rcnn-miniature": detection.cascade_mask_rcnn_miniature,
    "classification-miniature": classification.classification_miniature,
    "classification-vit-b16": classification.classification_vit_b16,
    "classification-vit-b16-384": classification.classification_vit_b16_384,
    "clip-mci0-12.8b": mobile.clip_mci0_12_8b,
    "clip-mci0-12m": mobile.clip_mci0_12m,
    "clip-mci0-miniature": mobile.clip_mci0_miniature,
    "clip-mci1-12.8b": mobile.clip_mci1_12_8b,
    "clip-mci2-12.8b": mobile.clip_mci2_12_8b,
    "clip-miniature": clip.clip_miniature,
    "clip-vit-b16-12.8b": clip.clip_vit_b16_12_8b,
    "clip-vit-b16-12m": clip.clip_vit_b16_12m,
    "clip-vit-b16-2.05b": clip.clip_vit_b16_2_05b,
    "clip-vit-b16-5b": clip.clip_vit_b16_5b,
    "clip-vit-b16-after-mae": clip.clip_vit_b16_after_mae,
    "clip-vit-b16-scaling-1.28b": clip.clip_vit_b16_scaling_1_28b,
    "clip-vit-b16-scaling-1.28m": clip.clip_vit_b16_scaling_1_28m,
    "clip-vit-b16-scaling-12.8m": clip.clip_vit_b16_scaling_12_8m,
    "clip-vit-b16-scaling-128m": clip.clip_vit_b16_scaling_128m,
    "clip-vit-b16-distilled-12.8b": mobile.clip_vit_b16_distilled_12_8b,
    "clip-vit-b32-12.8b": clip.clip_vit_b32_12_8b,
    "clip-vit-l14-12.8b": clip.clip_vit_l14_12_8b,
    "clip-vit-miniature": clip.clip_vit_miniature,
    "clip-vit-s16-12.8b": clip.clip_vit_s16_12_8b,
    "clip-vit-ti16-12.8b": clip.clip_vit_ti16_12_8b,
    "coca-miniature": captioner.coca_miniature,
    "coca-vit-l14": captioner.coca_vit_l14,
    "depth-miniature": dense.depth_miniature,
    "linear-segmentation-vit-b16": dense.linear_segmentation_vit_b16,
    "linear-segmentation-miniature": dense.linear_segmentation_miniature,
    "linear-depth-vit-b16": dense.linear_depth_vit_b16,
    "linear-depth-miniature": dense.linear_depth_miniature,
    "depth-vit-b16": dense.depth_vit_b16,
    "export": data.export,
    "linear-probe-miniature": classification.linear_probe_miniature,
    "linear-probe-vit-b16": classification.linear_probe_vit_b16,
    "mae-miniature": image_pretraining.mae_miniature,
    "mae-vit-b16-2.05b": image_pretraining.mae_vit_b16_2_05b,
    "mae-vit-b16-5b": image_pretraining.mae_vit_b16_5b,
    "mask-rcnn-1x": detection.mask_rcnn_1x,
    "mask-rcnn-miniature": detection.mask_rcnn_miniature,
    "recaption-beam": captioner.recaption_beam,
    "recaption-blip": captioner.recaption_blip,
    "recaption-coca": captioner.recaption_coca,
    "recaption-git": captioner.recaption_git,
    "recaption-miniature": captioner.recaption_miniature,
    "recaption-rewrite-laclip": captioner.recaption_rewrite_laclip,
    "recaption-vlm-vecap": captioner.recaption_vlm_vecap,
    "retrieval": classification.retrieval,
    "scenes-every-task": data.scenes_every_task,
    "scenes-miniature": data.scenes_miniature,
    "score-basic": data.score_basic,
    "score-clip": data.score_clip,
    "score-clip-l14": data.score_clip_l14,
    "score-concepts": data.score_concepts,
    "select-best-captions": data.select_best_captions,
    "select-clip-top30": data.select_clip_top30,
    "select-datacomp-basic": data.select_datacomp_basic,
    "select-deduplicated": data.select_deduplicated,
    "select-laion2b": data.select_laion2b,
    "select-metaclip": data.select_metaclip,
    "select-miniature": data.select_miniature,
    "select-mixed-captions": data.select_mixed_captions,
    "semantic-fpn-mci0": dense.semantic_fpn_mci0,
    "semantic-fpn-mci1": dense.semantic_fpn_mci1,
    "semantic-fpn-mci2": dense.semantic_fpn_mci2,
    "semantic-fpn-miniature": dense.semantic_fpn_miniature,
    "shards": data.shards,
    "shards-miniature": data.shards_miniature,
    "siglip-vit-b16-12.8b": clip.siglip_vit_b16_12_8b,
    "study-captions": study.study_captions,
    "study-captions-quick": study.study_captions_quick,
    "study-from-scratch": study.study_from_scratch,
    "study-paper": study.study_paper,
    "study-paper-mobile": study.study_paper_mobile,
    "study-brief": study.study_brief,
    "supervised-mci0": image_pretraining.supervised_mci0,
    "supervised-mci1": image_pretraining.supervised_mci1,
    "supervised-mci2": image_pretraining.supervised_mci2,
    "supervised-miniature": image_pretraining.supervised_miniature,
    "sweep-cascade-mask-rcnn-3x": sweeps.sweep_cascade_mask_rcnn_3x,
    "sweep-depth-miniature": sweeps.sweep_depth_miniature,
    "sweep-depth-vit-b16": sweeps.sweep_depth_vit_b16,
    "sweep-mask-rcnn-1x": sweeps.sweep_mask_rcnn_1x,
    "sweep-semantic-fpn": sweeps.sweep_semantic_fpn,
    "sweep-upernet-miniature": sweeps.sweep_upernet_miniature,
    "sweep-upernet-vit-b16": sweeps.sweep_upernet_vit_b16,
    "teacher-datacompdr": mobile.teacher_datacompdr,
    "teacher-miniature": mobile.teacher_miniature,
    "upernet-miniature": dense.upernet_miniature,
    "upernet-vit-b16": dense.upernet_vit_b16,
    "zero-shot": classification.zero_shot,
    "zero-shot-imagenet": classification.zero_shot_imagenet,
}
"""Function of each recipe, whose return annotation is the type of its config."""


def get_recipe(name: str, kind: type[ConfigT], overrides: Sequence[str] = ()) -> ConfigT:
    """Return the config of a recipe with overrides applied.

    Raises:
        ConfigError: there is no such recipe, its config isn't of type ``kind``, or an override is
            wrong.
    """
    known = list_recipes(kind)
    if name in known:
        config = RECIPES[name]()
        assert isinstance(config, kind)  # mypy checks the annotation
        return config.override(overrides)
    raise ConfigError(
        f"{name!r} is a recipe of another command"
        if name in RECIPES
        else f"there is no recipe {name!r}",
        expected="a name that `clipmill recipes` lists"
        if len(known) == len(RECIPES)
        else f"one of {', '.join(known)}",
        action=suggestion(name, known, otherwise="choose one of these"),
    )


def list_recipes(kind: type[Config] = Config) -> list[str]:
    """Return the names of the recipes whose config is of type ``kind``, sorted."""
    return sorted(name for name in RECIPES if issubclass(recipe_type(name), kind))


def recipe_type(name: str) -> type[Config]:
    """Return the type of a recipe's config without building it; ``Config`` of an unknown name."""
    return RECIPES[name].__annotations__["return"] if name in RECIPES else Config

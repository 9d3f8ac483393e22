"""Recipes by name, by the command that takes them, and by task."""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cache
from typing import Any, Final, TypeVar

from clipmill.config import Config, flatten
from clipmill.deprecations import current_recipe
from clipmill.errors import ConfigError, suggestion
from clipmill.recipes import classification, data, finetune, pretrain, study

ConfigT = TypeVar("ConfigT", bound=Config)


RECIPES: Mapping[str, Callable[[], Config]] = {
    "cascade-mask-rcnn-3x": finetune.cascade_mask_rcnn_3x,
    "cascade-mask-rcnn-tiny": finetune.cascade_mask_rcnn_tiny,
    "classification-tiny": classification.classification_tiny,
    "classification-vit-b16": classification.classification_vit_b16,
    "classification-vit-b16-384": classification.classification_vit_b16_384,
    "clip-mci0-12.8b": pretrain.clip_mci0_12_8b,
    "clip-mci0-12m": pretrain.clip_mci0_12m,
    "clip-mci0-tiny": pretrain.clip_mci0_tiny,
    "clip-mci1-12.8b": pretrain.clip_mci1_12_8b,
    "clip-mci2-12.8b": pretrain.clip_mci2_12_8b,
    "clip-tiny": pretrain.clip_tiny,
    "clip-vit-b16-12.8b": pretrain.clip_vit_b16_12_8b,
    "clip-vit-b16-12m": pretrain.clip_vit_b16_12m,
    "clip-vit-b16-2.05b": pretrain.clip_vit_b16_2_05b,
    "clip-vit-b16-5b": pretrain.clip_vit_b16_5b,
    "clip-vit-b16-after-mae": pretrain.clip_vit_b16_after_mae,
    "clip-vit-b16-scaling-1.28b": pretrain.clip_vit_b16_scaling_1_28b,
    "clip-vit-b16-scaling-1.28m": pretrain.clip_vit_b16_scaling_1_28m,
    "clip-vit-b16-scaling-12.8m": pretrain.clip_vit_b16_scaling_12_8m,
    "clip-vit-b16-scaling-128m": pretrain.clip_vit_b16_scaling_128m,
    "clip-vit-b16-distilled-12.8b": pretrain.clip_vit_b16_distilled_12_8b,
    "clip-vit-b32-12.8b": pretrain.clip_vit_b32_12_8b,
    "clip-vit-l14-12.8b": pretrain.clip_vit_l14_12_8b,
    "clip-vit-tiny": pretrain.clip_vit_tiny,
    "clip-vit-s16-12.8b": pretrain.clip_vit_s16_12_8b,
    "clip-vit-ti16-12.8b": pretrain.clip_vit_ti16_12_8b,
    "coca-tiny": data.coca_tiny,
    "coca-vit-l14": data.coca_vit_l14,
    "depth-tiny": finetune.depth_tiny,
    "linear-segmentation-dinov3": finetune.linear_segmentation_dinov3,
    "linear-segmentation-vit-b16": finetune.linear_segmentation_vit_b16,
    "linear-segmentation-tiny": finetune.linear_segmentation_tiny,
    "linear-depth-dinov3": finetune.linear_depth_dinov3,
    "linear-depth-vit-b16": finetune.linear_depth_vit_b16,
    "linear-depth-tiny": finetune.linear_depth_tiny,
    "depth-vit-b16": finetune.depth_vit_b16,
    "export": data.export,
    "linear-probe-tiny": classification.linear_probe_tiny,
    "linear-probe-vit-b16": classification.linear_probe_vit_b16,
    "mae-tiny": pretrain.mae_tiny,
    "mae-vit-b16-2.05b": pretrain.mae_vit_b16_2_05b,
    "mae-vit-b16-5b": pretrain.mae_vit_b16_5b,
    "mask-rcnn-1x": finetune.mask_rcnn_1x,
    "mask-rcnn-tiny": finetune.mask_rcnn_tiny,
    "recaption-beam": data.recaption_beam,
    "recaption-blip": data.recaption_blip,
    "recaption-coca": data.recaption_coca,
    "recaption-git": data.recaption_git,
    "recaption-tiny": data.recaption_tiny,
    "rewrite-laclip": data.rewrite_laclip,
    "recaption-vlm-vecap": data.recaption_vlm_vecap,
    "retrieval": classification.retrieval,
    "scenes-all-tasks": data.scenes_all_tasks,
    "scenes-tiny": data.scenes_tiny,
    "score-aesthetic": data.score_aesthetic,
    "score-basic": data.score_basic,
    "score-clip": data.score_clip,
    "score-clip-l14": data.score_clip_l14,
    "score-concepts": data.score_concepts,
    "score-embedding": data.score_embedding,
    "score-nsfw": data.score_nsfw,
    "score-relevance": data.score_relevance,
    "score-watermark": data.score_watermark,
    "select-best-captions": data.select_best_captions,
    "select-clip-top30": data.select_clip_top30,
    "select-curated": data.select_curated,
    "select-datacomp-basic": data.select_datacomp_basic,
    "select-deduplicated": data.select_deduplicated,
    "select-laion2b": data.select_laion2b,
    "select-metaclip": data.select_metaclip,
    "select-semdedup": data.select_semdedup,
    "select-tiny": data.select_tiny,
    "select-mixed-captions": data.select_mixed_captions,
    "semantic-fpn-mci0": finetune.semantic_fpn_mci0,
    "semantic-fpn-mci1": finetune.semantic_fpn_mci1,
    "semantic-fpn-mci2": finetune.semantic_fpn_mci2,
    "semantic-fpn-tiny": finetune.semantic_fpn_tiny,
    "shards": data.shards,
    "shards-tiny": data.shards_tiny,
    "siglip-vit-b16-12.8b": pretrain.siglip_vit_b16_12_8b,
    "study-captions": study.study_captions,
    "study-captions-quick": study.study_captions_quick,
    "study-from-scratch": study.study_from_scratch,
    "study-paper": study.study_paper,
    "study-paper-mobile": study.study_paper_mobile,
    "study-short": study.study_short,
    "supervised-mci0": pretrain.supervised_mci0,
    "supervised-mci1": pretrain.supervised_mci1,
    "supervised-mci2": pretrain.supervised_mci2,
    "supervised-tiny": pretrain.supervised_tiny,
    "sweep-cascade-mask-rcnn-3x": finetune.sweep_cascade_mask_rcnn_3x,
    "sweep-depth-tiny": finetune.sweep_depth_tiny,
    "sweep-depth-vit-b16": finetune.sweep_depth_vit_b16,
    "sweep-mask-rcnn-1x": finetune.sweep_mask_rcnn_1x,
    "sweep-semantic-fpn": finetune.sweep_semantic_fpn,
    "sweep-upernet-tiny": finetune.sweep_upernet_tiny,
    "sweep-upernet-vit-b16": finetune.sweep_upernet_vit_b16,
    "teacher-datacompdr": pretrain.teacher_datacompdr,
    "teacher-tiny": pretrain.teacher_tiny,
    "upernet-tiny": finetune.upernet_tiny,
    "upernet-vit-b16": finetune.upernet_vit_b16,
    "zero-shot": classification.zero_shot,
    "zero-shot-imagenet": classification.zero_shot_imagenet,
}
"""Function of each recipe, whose return annotation is the type of its config."""


def get_recipe(name: str, kind: type[ConfigT], overrides: Sequence[str] = ()) -> ConfigT:
    """Return the config of a recipe with overrides applied.

    Raises:
        ConfigError: there is no such recipe, its config isn't of type ``kind``, or an override is
            wrong.

    Example:
        >>> overrides = ["train.steps=1000", "view.captions=synthetic"]
        >>> config = clipmill.get_recipe("clip-tiny", clipmill.PretrainConfig, overrides)
        >>> config.train.steps, config.view.captions
        (1000, 'synthetic')
    """
    name = current_recipe(name)
    known = list_recipes(kind)
    if name in known:
        config = RECIPES[name]()
        assert isinstance(config, kind)  # mypy checks the annotation
        return config.override(overrides)
    raise ConfigError(
        f"{name!r} is a recipe of another command"
        if name in RECIPES
        else f"there is no recipe {name!r}",
        expected="a name that `clipmill recipes list` prints"
        if len(known) == len(RECIPES)
        else f"one of {', '.join(known)}",
        action=suggestion(name, known, otherwise="choose one of these"),
    )


def list_recipes(kind: type[Config] = Config) -> list[str]:
    """Return the names of the recipes whose config is of type ``kind``, sorted.

    Example:
        >>> clipmill.list_recipes(clipmill.FinetuneConfig)
        [...'depth-tiny', ...'upernet-tiny', ...]
    """
    return sorted(name for name in RECIPES if issubclass(recipe_type(name), kind))


def recipe_type(name: str) -> type[Config]:
    """Return the type of a recipe's config without building it; ``Config`` of an unknown name."""
    name = current_recipe(name)
    return RECIPES[name].__annotations__["return"] if name in RECIPES else Config


def describe_recipe(name: str) -> str:
    """Return the docstring of a recipe as plain text: description, source, command, hardware."""
    text = inspect.cleandoc(RECIPES[current_recipe(name)].__doc__ or "").replace("``", "`")
    names = {function.__name__: recipe for recipe, function in RECIPES.items()}
    return re.sub(r":func:`(\w+)`", lambda match: f"`{names.get(match[1], match[1])}`", text)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeInfo:
    """Entry of the list of recipes."""

    name: str
    """Name."""
    stage: str
    """Stage that takes it: an item of ``STAGES``."""
    task: str
    """Task of a fine-tuning or sweep; empty for other recipes."""
    description: str
    """First line of its docstring."""


STAGES: Final[Mapping[str, str]] = {
    "generate-scenes": "data generate-scenes",
    "shard": "data shard",
    "train-captioner": "data train-captioner",
    "recaption": "data recaption",
    "score": "data score",
    "select": "data select",
    "embed-teacher": "data embed-teacher",
    "export": "data export",
    "pretrain-clip": "pretrain clip",
    "pretrain-mae": "pretrain mae",
    "pretrain-supervised": "pretrain supervised",
    "finetune": "finetune",
    "sweep": "sweep",
    "zero-shot": "eval zero-shot",
    "retrieval": "eval retrieval",
    "study": "study captions",
}
"""Command of each stage that takes recipes, in the order of a project."""

_STAGE_OF_TYPE: Final = {
    "ScenesSourceConfig": "generate-scenes",
    "ShardConfig": "shard",
    "CocaTrainConfig": "train-captioner",
    "CaptionersConfig": "recaption",
    "ScoreConfig": "score",
    "SelectConfig": "select",
    "TeacherConfig": "embed-teacher",
    "ExportConfig": "export",
    "PretrainConfig": "pretrain-clip",
    "MaePretrainConfig": "pretrain-mae",
    "SupervisedConfig": "pretrain-supervised",
    "FinetuneConfig": "finetune",
    "SweepConfig": "sweep",
    "ZeroShotConfig": "zero-shot",
    "RetrievalConfig": "retrieval",
    "StudyConfig": "study",
}


def describe_recipes(stage: str = "", task: str = "") -> list[RecipeInfo]:
    """Return all recipes, or those of a stage and of a task, by stage and name.

    ``stage`` may be the beginning of several, such as ``pretrain``.

    Raises:
        ConfigError: there is no such stage, or no recipe of such a task.
    """
    if stage and not any(_matches(name, stage) for name in STAGES):
        raise ConfigError(
            f"there is no stage {stage!r} with recipes",
            expected=f"pretrain, or one of {', '.join(STAGES)}",
            action=suggestion(stage, STAGES, otherwise="choose one of these"),
        )
    recipes = [_describe(name) for name in RECIPES]
    tasks = sorted({recipe.task for recipe in recipes} - {""})
    if task and task not in tasks:
        raise ConfigError(
            f"no recipe is of the task {task!r}",
            expected=f"one of {', '.join(tasks)}",
            action=suggestion(task, tasks, otherwise="choose one of these"),
        )
    order = list(STAGES)
    return sorted(
        (r for r in recipes if _matches(r.stage, stage) and task in ("", r.task)),
        key=lambda recipe: (order.index(recipe.stage), recipe.name),
    )


def closest_recipe(config: Mapping[str, Any]) -> tuple[str, dict[str, Any]] | None:
    """Return the recipe with the fewest settings other than a stored config's, and those settings.

    The settings are the config's values by dotted path. None where the config isn't a recipe's.
    """
    best: tuple[str, dict[str, Any]] | None = None
    for kind, recipes in _settings_by_type().items():
        if len(config) != len(fields(kind)):
            continue
        try:
            settings = flatten(kind.from_json(dict(config)).to_json())
        except ConfigError:
            continue
        for name, recipe in recipes.items():
            changed = {path: v for path, v in settings.items() if recipe.get(path) != v}
            if best is None or len(changed) < len(best[1]):
                best = name, changed
    return best


@cache
def _settings_by_type() -> Mapping[type[Config], Mapping[str, Mapping[str, Any]]]:
    """Return the settings of all recipes by dotted path, by the type of their configs."""
    kinds = {recipe_type(name) for name in RECIPES}
    return {
        kind: {name: flatten(RECIPES[name]().to_json()) for name in list_recipes(kind)}
        for kind in sorted(kinds, key=lambda kind: kind.__name__)
    }


def _describe(name: str) -> RecipeInfo:
    config: Any = RECIPES[name]()
    stage = _STAGE_OF_TYPE[type(config).__name__]
    finetuning = {"finetune": config, "sweep": getattr(config, "finetune", None)}.get(stage)
    return RecipeInfo(
        name=name,
        stage=stage,
        task=finetuning.task if finetuning else "",
        description=describe_recipe(name).splitlines()[0],
    )


def _matches(stage: str, beginning: str) -> bool:
    return not beginning or stage == beginning or stage.startswith(f"{beginning}-")

"""Recipes by name."""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeVar

from clipmill.config import Config
from clipmill.errors import ConfigError
from clipmill.recipes import captioner, clip, data, dense, selection

RECIPES: Mapping[str, Callable[[], Config]] = {
    "clip-miniature": clip.clip_miniature,
    "clip-vit-b16": clip.clip_vit_b16,
    "clip-vit-miniature": clip.clip_vit_miniature,
    "coca-miniature": captioner.coca_miniature,
    "coca-vit-l14": captioner.coca_vit_l14,
    "depth-miniature": dense.depth_miniature,
    "depth-vit-b16": dense.depth_vit_b16,
    "export": data.export,
    "recaption-beam": captioner.recaption_beam,
    "recaption-blip": captioner.recaption_blip,
    "recaption-coca": captioner.recaption_coca,
    "recaption-git": captioner.recaption_git,
    "recaption-miniature": captioner.recaption_miniature,
    "recaption-rewrite-laclip": captioner.recaption_rewrite_laclip,
    "recaption-vlm-vecap": captioner.recaption_vlm_vecap,
    "scenes-miniature": data.scenes_miniature,
    "score-basic": selection.score_basic,
    "score-clip": selection.score_clip,
    "score-clip-l14": selection.score_clip_l14,
    "score-concepts": selection.score_concepts,
    "select-best-captions": selection.select_best_captions,
    "select-clip-top30": selection.select_clip_top30,
    "select-datacomp-basic": selection.select_datacomp_basic,
    "select-deduplicated": selection.select_deduplicated,
    "select-laion2b": selection.select_laion2b,
    "select-metaclip": selection.select_metaclip,
    "select-mixed-captions": selection.select_mixed_captions,
    "shards": data.shards,
    "shards-miniature": data.shards_miniature,
    "upernet-miniature": dense.upernet_miniature,
    "upernet-vit-b16": dense.upernet_vit_b16,
}

ConfigT = TypeVar("ConfigT", bound=Config)


def recipe(name: str, kind: type[ConfigT], overrides: Sequence[str] = ()) -> ConfigT:
    """The recipe's config with overrides applied.

    Raises:
        ConfigError: there is no such recipe, it makes another kind of config, or an override is
            wrong.
    """
    known = sorted(n for n, make in RECIPES.items() if isinstance(make(), kind))
    if name not in known:
        raise ConfigError(
            f"{name!r} is not a recipe for this command",
            expected=f"one of {', '.join(known)}",
            action="choose one, and change it with --set path=value",
        )
    config = RECIPES[name]()
    assert isinstance(config, kind)
    return config.override(overrides)

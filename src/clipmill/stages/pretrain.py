"""Stages that make encoders: pretraining by each method, and import of public weights."""

from collections.abc import Sequence
from dataclasses import replace

from clipmill.errors import ConfigError
from clipmill.models.checkpoint import CheckpointMetadata
from clipmill.recipes.registry import get_recipe
from clipmill.stage_records import Stage

CAPTION_LABELS = {
    "real": "G",
    "synthetic": "S",
    "both": "G+S",
    "selected": "G or S",
    "chosen": "G or S",  # the name of ``selected`` in 0.1's artifacts
}
"""The paper's names of caption sources (CLIP-QC, Table 2), and of a selection of both."""


def caption_label(encoder: CheckpointMetadata) -> str:
    """Return the label of the captions that an encoder was pretrained on.

    Raises:
        ConfigError: ``clipmill pretrain clip`` didn't make it.
    """
    captions = encoder.recipe.get("view", {}).get("captions")
    if captions not in CAPTION_LABELS:
        raise ConfigError(
            f"{encoder.uri} wasn't pretrained on captions by clipmill",
            expected="encoders that `clipmill pretrain clip` made, one for each caption source",
            action="leave it out; `clipmill study compare` compares evaluations of any models",
        )
    return CAPTION_LABELS[captions]


def pretrain(
    recipe: str,
    overrides: Sequence[str],
    dataset: str,
    store: str,
    run: str = "",
    *,
    captions: str = "real",
    layer: str = "",
    select: Sequence[str] = (),
    mixture: Sequence[str] = (),
) -> str:
    """Pretrain CLIP on real, synthetic, both or selected captions; return the encoder's URI.

    ``mixture`` lists datasets as ``URI=WEIGHT``, or JSON files of such, instead of ``dataset``.
    """
    from clipmill.data.loading.mixture import parse_mixture
    from clipmill.data.loading.view import ViewConfig
    from clipmill.pretrain import clip
    from clipmill.pretrain.config import PretrainConfig

    base = get_recipe(recipe, PretrainConfig)
    fields = {
        "captions": captions,
        "layer": layer if captions in {"synthetic", "both"} else "",
        "selection_layers": list(select),
    }
    view = ViewConfig.from_json(base.view.to_json() | fields)
    config = replace(base, view=view).override(overrides)
    if mixture:
        config = replace(config, mixture=parse_mixture(mixture))
    with Stage("pretrain", store=store, run=run, label=CAPTION_LABELS[captions]) as stage:
        return stage.set_output(clip.pretrain_clip(config, dataset, store, report=stage.report))


def pretrain_mae(
    recipe: str, overrides: Sequence[str], dataset: str, store: str, run: str = ""
) -> str:
    """Pretrain a masked autoencoder on a dataset's images; return the encoder's URI."""
    from clipmill.pretrain import mae
    from clipmill.pretrain.config import MaePretrainConfig

    config = get_recipe(recipe, MaePretrainConfig, overrides)
    with Stage("pretrain", store=store, run=run, label="MAE") as stage:
        return stage.set_output(mae.pretrain_mae(config, dataset, store, report=stage.report))


def pretrain_supervised(
    recipe: str, overrides: Sequence[str], data: str, store: str, run: str = ""
) -> str:
    """Pretrain an image tower on a folder of labeled images; return the encoder's URI."""
    from clipmill.pretrain import supervised
    from clipmill.pretrain.config import SupervisedConfig

    config = get_recipe(recipe, SupervisedConfig, overrides)
    with Stage("pretrain", store=store, run=run, label="supervised") as stage:
        return stage.set_output(
            supervised.pretrain_supervised(config, data, store, report=stage.report)
        )


def import_weights(address: str, store: str, run: str = "") -> str:
    """Import public weights as an encoder; return its URI."""
    from clipmill.models import pretrained

    with Stage("import", store=store, run=run) as stage:
        return stage.set_output(pretrained.import_weights(address, store, report=stage.report))

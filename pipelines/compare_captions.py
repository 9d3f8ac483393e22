"""From a dataset with a layer of synthetic captions to promoted models and a report."""

from typing import Any, NamedTuple

from clipmill.components.deployment.promote_compared import promote_compared
from clipmill.components.deployment.smoke_test_models import smoke_test_models
from clipmill.components.evaluation.compare_encoders import compare_encoders
from clipmill.components.evaluation.evaluate_features import evaluate_features
from clipmill.components.evaluation.random_weights import random_weights
from clipmill.components.evaluation.report import report
from clipmill.components.training.pretrain import pretrain
from clipmill.pipelines.common import Channel, on_pool

CAPTIONS = ("real", "both")
"""Captions of the encoders that are compared, the baseline first."""
TASKS = ("segmentation", "depth")
"""Tasks that the encoders are compared at."""


class Compared(NamedTuple):
    """Promoted models of compared encoders."""

    promotions: dict[str, Channel]
    """Promotion of each task; empty where no model was ever promoted."""
    tested: Any
    """The task that tested their models."""


def compare_captions(
    store: Channel,
    dataset: Channel,
    layer: Channel,
    captioner: Channel,
    ade20k: Channel,
    nyu: Channel,
    clip_recipe: str = "clip-tiny",
    clip_overrides: list = [],  # noqa: B006  # KFP reads the default, nothing changes it
    segmentation_recipe: str = "linear-segmentation-tiny",
    depth_recipe: str = "linear-depth-tiny",
    finetune_overrides: list = [],  # noqa: B006  # as above
) -> Compared:
    """Pretrain on real captions, and on both; compare frozen features with random weights; promote.

    A model is promoted only if it is better than random weights and trivial predictions.
    """
    data = {"ade20k": ade20k, "nyu": nyu}
    heads = {"segmentation_recipe": segmentation_recipe, "depth_recipe": depth_recipe, **data}
    untrained = on_pool(
        random_weights(
            clip_recipe=clip_recipe,
            clip_overrides=clip_overrides,
            finetune_overrides=finetune_overrides,
            store=store,
            **heads,
        ),
        "gpu",
    ).set_display_name("evaluate random weights")
    encoders, evaluations = [], []
    for captions in CAPTIONS:
        pretrained = pretrain(
            dataset=dataset,
            captions=captions,
            layer=layer,
            recipe=clip_recipe,
            overrides=clip_overrides,
            store=store,
        )
        on_pool(pretrained, "gpu").set_display_name(f"pretrain on {captions} captions")
        encoders.append(pretrained.outputs["Output"])
        evaluated = evaluate_features(
            encoder=encoders[-1],
            overrides=finetune_overrides,
            label=captions,
            store=store,
            **heads,
        )
        on_pool(evaluated, "gpu").set_display_name(f"evaluate encoder of {captions} captions")
        # One by one: KFP can't put a list into a list.
        evaluations += [evaluated.outputs[task] for task in TASKS]
    compared = compare_encoders(
        encoders=encoders, evaluations=evaluations, random=untrained.output, store=store, **data
    )
    on_pool(compared, "cpu").set_display_name("compare encoders")
    comparison = compared.outputs["Output"]
    promoted = {}
    for task in TASKS:
        decided = promote_compared(task=task, comparison=comparison, store=store)
        on_pool(decided, "cpu", cached=False, is_light=True).set_display_name(
            f"promote {task} model"
        )
        promoted[task] = decided.outputs
    promotions = {task: outputs["promotion"] for task, outputs in promoted.items()}
    tested = smoke_test_models(
        promotions=list(promotions.values()),
        models=[outputs["model"] for outputs in promoted.values()],
        store=store,
    )
    on_pool(tested, "cpu").set_display_name("smoke test")
    written = report(
        dataset=dataset,
        layer=layer,
        captioner=captioner,
        encoders=encoders,
        evaluations=evaluations,
        comparison=comparison,
        promotions=list(promotions.values()),
        smoke_test=tested.output,
        store=store,
    )
    on_pool(written, "cpu", cached=False)
    return Compared(promotions, tested)

"""Wanted tasks: sweeps, and fine-tunings as sweeps of one point."""

import pytest

from clipmill.errors import ConfigError
from clipmill.recipes.registry import get_recipe
from clipmill.stages import TaskSpec
from clipmill.tasks.finetune import FinetuneConfig
from clipmill.tasks.sweep import SweepConfig


def test_a_sweeps_recipe_is_the_sweep():
    overrides = ("reduction_fraction=0.25",)
    wanted = TaskSpec(recipe="sweep-depth-tiny", data="d", min_metric=1.0, overrides=overrides)
    assert wanted.sweep == get_recipe("sweep-depth-tiny", SweepConfig, overrides)


def test_a_plain_recipe_is_one_point_and_the_same_fine_tuning():
    overrides = ("train.steps=7",)
    sweep = TaskSpec(recipe="upernet-tiny", data="d", min_metric=1.0, overrides=overrides).sweep
    (point,) = sweep.grid_points()
    plain = get_recipe("upernet-tiny", FinetuneConfig, overrides)
    # Its model is found where `clipmill finetune` has put it.
    assert sweep.config_for_rung(point, 0) == plain
    assert sweep.config_for_rung(point, 0).digest == plain.digest


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"recipe": "depth-tiny", "data": "d"}, "min_metric is missing"),
        ({"recipe": "depth-tiny", "data": "d", "min_metric": "high"}, "min_metric"),
        (
            {"recipe": "clip-tiny", "data": "d", "min_metric": 1},
            "'clip-tiny' is a recipe of another",
        ),
        (
            {
                "recipe": "depth-tiny",
                "data": "d",
                "min_metric": 1,
                "overrides": ["train.step=1"],
            },
            "train.step",
        ),
    ],
)
def test_a_mistake_is_one_message(value, words):
    with pytest.raises(ConfigError, match=words):
        _ = TaskSpec.from_json(value).sweep

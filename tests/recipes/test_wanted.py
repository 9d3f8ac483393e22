"""Wanted tasks: sweeps, and fine-tunings as sweeps of one point."""

import pytest

from clipmill.errors import ConfigError
from clipmill.recipes.registry import get_recipe
from clipmill.stages.run import WantedTask
from clipmill.tasks.finetune import FinetuneConfig
from clipmill.tasks.sweep import SweepConfig


def test_a_sweeps_recipe_is_the_sweep():
    overrides = ("keep=0.25",)
    wanted = WantedTask(recipe="sweep-depth-miniature", data="d", gate=1.0, overrides=overrides)
    assert wanted.sweep == get_recipe("sweep-depth-miniature", SweepConfig, overrides)


def test_a_plain_recipe_is_one_point_and_the_same_fine_tuning():
    overrides = ("train.steps=7",)
    sweep = WantedTask(recipe="upernet-miniature", data="d", gate=1.0, overrides=overrides).sweep
    (point,) = sweep.points()
    plain = get_recipe("upernet-miniature", FinetuneConfig, overrides)
    # Its model is found where `clipmill finetune` has put it.
    assert sweep.at(point, 0) == plain
    assert sweep.at(point, 0).digest == plain.digest


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ({"recipe": "depth-miniature", "data": "d"}, "gate is missing"),
        ({"recipe": "depth-miniature", "data": "d", "gate": "high"}, "gate"),
        (
            {"recipe": "clip-miniature", "data": "d", "gate": 1},
            "'clip-miniature' is a recipe of another",
        ),
        (
            {"recipe": "depth-miniature", "data": "d", "gate": 1, "overrides": ["train.step=1"]},
            "train.step",
        ),
    ],
)
def test_a_mistake_is_one_message(value, words):
    with pytest.raises(ConfigError, match=words):
        _ = WantedTask.from_json(value).sweep

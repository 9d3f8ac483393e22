"""Learning rates against values computed by hand."""

import math

import pytest

from clipmill.engine.config import ScheduleConfig


def rates(num_steps, **config):
    schedule = ScheduleConfig(**config)
    return [schedule.lr_at(step, num_steps) for step in range(num_steps)]


def test_cosine():
    found = rates(8, lr=1.0, min_lr=0.2, warmup_steps=4)
    half = 0.4 / math.sqrt(2)
    assert found == pytest.approx([0.25, 0.5, 0.75, 1.0, 1.0, 0.6 + half, 0.6, 0.6 - half])


def test_polynomial():
    found = rates(6, name="polynomial", lr=1.0, min_lr=0.5, warmup_steps=2, power=2.0)
    falling = [0.5 + 0.5 * share**2 for share in (1, 0.75, 0.5, 0.25)]
    assert found == pytest.approx([0.5, 1.0, *falling])


def test_polynomial_of_power_one_is_a_line():
    assert rates(4, name="polynomial", lr=4.0, min_lr=0.0) == pytest.approx([4, 3, 2, 1])


def test_rise_and_fall():
    """Xie et al. 2023: up over the first half, down over the second, each to a power."""
    found = rates(8, name="triangular", lr=1.0, min_lr=0.1, power=0.9)
    up = [0.1 + 0.9 * (step / 4) ** 0.9 for step in range(4)]
    assert found == pytest.approx([*up, 1.0, *up[:0:-1]])


def test_step_falls_to_a_tenth_at_each_milestone():
    found = rates(12, name="step", lr=1.0, warmup_steps=2, milestones=(8 / 12, 11 / 12))
    assert found == pytest.approx([0.5, *[1.0] * 7, *[0.1] * 3, 0.01])


@pytest.mark.parametrize("shape", ["cosine", "polynomial"])
def test_peak_ends_the_warm_up_and_minimum_the_run(shape):
    schedule = ScheduleConfig(name=shape, lr=1e-3, min_lr=1e-6, warmup_steps=2_000)
    assert schedule.lr_at(1_999, 200_000) == schedule.lr_at(2_000, 200_000) == 1e-3
    assert schedule.lr_at(0, 200_000) == pytest.approx(1e-3 / 2_000)
    assert schedule.lr_at(200_000, 200_000) == pytest.approx(1e-6)
    assert schedule.lr_at(199_999, 200_000) == pytest.approx(1e-6, abs=1e-8)


@pytest.mark.parametrize("shape", ["cosine", "polynomial", "triangular"])
def test_never_leaves_its_bounds(shape):
    found = rates(37, name=shape, lr=1.0, min_lr=0.01, warmup_steps=0, power=0.9)
    assert min(found) >= 0.01
    assert max(found) <= 1.0


def test_a_warm_up_longer_than_the_run_is_all_warm_up():
    assert rates(3, lr=1.0, warmup_steps=10) == pytest.approx([0.1, 0.2, 0.3])

"""What a process alone says of itself; several ranks are in test_ranks.py."""

import threading

import pytest
import torch

from clipmill.engine.distributed import DistributedContext
from clipmill.engine.watchdog import Heartbeat, Watchdog, _slowest_ranks, is_lost_rank


def beat(step, phase):
    return Heartbeat(
        number=1, step=step, phase=phase, seconds=61.0, data_seconds=0.0, energy_joules=None
    )


def test_a_step_that_takes_too_long_is_told_once():
    logged, twice = [], threading.Event()
    with Watchdog(
        DistributedContext(),
        step_timeout_seconds=0.05,
        heartbeat_interval_seconds=0.01,
        log=logged.append,
    ) as dog:
        dog.set_phase(7, "data")
        looks = iter(range(10**9))
        look = dog._check_stragglers

        def counted():
            look()
            if logged and next(looks) > 5:
                twice.set()

        dog._check_stragglers = counted
        assert twice.wait(30)
    assert len(logged) == 1
    assert "Behind: rank 0 at step 7, waiting for data" in logged[0]


def test_a_run_that_moves_is_silent():
    logged = []
    with Watchdog(
        DistributedContext(),
        step_timeout_seconds=60,
        heartbeat_interval_seconds=0.001,
        log=logged.append,
    ) as dog:
        for step in range(100):
            dog.set_phase(step, "compute")
    assert logged == []


def test_time_spent_waiting_for_data_is_summed():
    dog = Watchdog(DistributedContext(), step_timeout_seconds=60, heartbeat_interval_seconds=60)
    dog.set_phase(0, "data")
    dog.set_phase(0, "compute")
    first = dog._own_heartbeat().data_seconds
    assert first > 0
    dog.set_phase(1, "checkpoint")
    assert dog._own_heartbeat().data_seconds == first


@pytest.mark.parametrize(
    ("beats", "expected"),
    [
        ({0: beat(5, "compute"), 1: beat(4, "compute")}, [1]),
        ({0: beat(5, "compute"), 1: beat(5, "data")}, [1]),
        ({0: beat(5, "checkpoint"), 1: beat(5, "compute")}, [0]),
        ({0: beat(5, "compute"), 1: beat(5, "compute")}, [0, 1]),
        ({0: beat(6, "data"), 1: beat(5, "compute")}, [1]),
    ],
)
def test_who_is_behind(beats, expected):
    assert _slowest_ranks(beats) == expected


def test_description():
    assert beat(12, "data").describe(1) == "rank 1 at step 12, waiting for data for 61 s"
    assert beat(3, "evaluation").describe(0) == "rank 0 at step 3, in its evaluation for 61 s"


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.distributed.DistNetworkError("x"), True),
        (RuntimeError("[pair.cc:545] Read error: Connection closed by peer"), True),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), False),
        (ValueError("Connection closed by peer"), False),
    ],
)
def test_lost_ranks_are_told_from_other_errors(error, expected):
    assert is_lost_rank(error) == expected

"""States written beside the training; a disk that is full loses none that is there."""

import contextlib
import logging
import resource
import threading
import time

import pytest
import torch

from clipmill.engine import checkpoint as module
from clipmill.engine.checkpoint import (
    Checkpointer,
    TrainProgress,
    checkpoint_steps,
    write_checkpoint,
)
from clipmill.engine.config import TrainConfig
from clipmill.engine.distributed import DistributedContext
from clipmill.engine.trainer import TrainStep
from clipmill.errors import StorageError
from clipmill.telemetry import CheckpointPhase, Outcome, train_metrics
from helpers.regression import Regression


def made(folder, keep_last=2):
    torch.manual_seed(0)
    updater = TrainStep(Regression(), TrainConfig(steps=9, batch_size=8), DistributedContext())
    return updater, Checkpointer(
        str(folder), updater.state, DistributedContext(), keep_last=keep_last
    )


@contextlib.contextmanager
def no_room(num_bytes):
    """No file can grow past that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def saved(states, step):
    states.save(TrainProgress(step=step))
    states.finish(must_succeed=True)


def test_the_state_is_that_of_the_moment_it_was_saved(tmp_path, monkeypatch):
    """Training goes on while it's written."""
    may_write = threading.Event()

    def slow(*arguments):
        assert may_write.wait(30)
        write_checkpoint(*arguments)

    monkeypatch.setattr(module, "write_checkpoint", slow)
    updater, states = made(tmp_path)
    expected = {k: v.clone() for k, v in updater.state.state_dict().items()}
    states.save(TrainProgress(step=1))
    with torch.no_grad():
        for parameter in updater.objective.parameters():
            parameter.add_(1)
    assert checkpoint_steps(str(tmp_path)) == []  # it came back before anything was written
    may_write.set()
    states.finish(must_succeed=True)
    other, restored = made(tmp_path)
    assert restored.restore() == TrainProgress(step=1)
    for name, tensor in other.state.state_dict().items():
        assert torch.equal(tensor, expected[name]), name


def test_states_are_written_one_after_another_and_the_last_are_kept(tmp_path):
    _, states = made(tmp_path, keep_last=3)
    for step in range(1, 7):
        states.save(TrainProgress(step=step))
    states.finish(must_succeed=True)
    assert checkpoint_steps(str(tmp_path)) == [4, 5, 6]


def test_a_full_disk_is_a_warning_and_the_last_state_stays(tmp_path, caplog):
    failed = train_metrics().checkpoints.labels(outcome=Outcome.FAILURE)
    before = failed._value.get()
    _, states = made(tmp_path)
    saved(states, 1)
    with no_room(500), caplog.at_level(logging.WARNING):
        states.save(TrainProgress(step=2))
        states.finish(must_succeed=False)
    assert "the checkpoint of step 2 wasn't saved" in caplog.text
    assert "complete checkpoints: steps [1]" in caplog.text
    assert failed._value.get() == before + 1
    assert states.restore().step == 1
    assert not [p for p in tmp_path.iterdir() if "00000001" not in p.name]
    saved(states, 3)  # there is room again
    assert checkpoint_steps(str(tmp_path)) == [1, 3]


def test_older_states_make_room_for_a_new_one(tmp_path, monkeypatch):
    """All but the last, which nothing gives up."""
    _, states = made(tmp_path, keep_last=3)
    for step in (1, 2, 3):
        saved(states, step)

    def while_room(uri, progress, data):
        if len(checkpoint_steps(uri)) > 1:
            raise StorageError("full", expected="room", action="make some")
        write_checkpoint(uri, progress, data)

    monkeypatch.setattr(module, "write_checkpoint", while_room)
    saved(states, 4)
    assert checkpoint_steps(str(tmp_path)) == [3, 4]


def test_a_state_that_must_be_saved_and_is_not_is_an_error(tmp_path):
    _, states = made(tmp_path)
    with no_room(500):
        states.save(TrainProgress(step=2))
        with pytest.raises(StorageError, match="can't write"):
            states.finish(must_succeed=True)


def test_a_mistake_of_ours_is_not_taken_for_a_full_disk(tmp_path, monkeypatch):
    def wrong(*arguments):
        raise ZeroDivisionError

    monkeypatch.setattr(module, "write_checkpoint", wrong)
    _, states = made(tmp_path)
    states.save(TrainProgress(step=1))
    with pytest.raises(ZeroDivisionError):
        states.finish(must_succeed=False)


def test_the_stall_and_the_write_are_measured(tmp_path):
    stall, write = (train_metrics().checkpoint_seconds.labels(phase=p) for p in CheckpointPhase)
    before = stall._sum.get(), write._sum.get()
    _, states = made(tmp_path)
    started = time.perf_counter()
    saved(states, 1)
    lasted = time.perf_counter() - started
    assert 0 < stall._sum.get() - before[0] < lasted
    assert 0 < write._sum.get() - before[1] < lasted

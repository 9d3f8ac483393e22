"""Saved states: whole or passed over, by name, dropped at the end."""

import json

import pytest
import torch
from safetensors.torch import load_file

from clipmill.engine import checkpoint
from clipmill.engine.checkpoint import (
    SafetensorsBuffer,
    TrainProgress,
    TrainState,
    checkpoint_steps,
    latest_checkpoint,
    prune_checkpoints,
    read_checkpoint,
    write_checkpoint,
)
from clipmill.engine.config import AdamWConfig, SpikeGuardConfig
from clipmill.engine.distributed import DistributedContext
from clipmill.engine.optim import build_optimizer, set_lr
from clipmill.engine.result import delete_state
from clipmill.engine.spike_guard import LossSpikeGuard
from clipmill.errors import ArtifactError, StoreUnavailableError
from helpers.regression import Regression, regression_batches


def stepped(num_steps, **kwargs):
    """Objective, optimiser, average and guard after so many steps."""
    torch.manual_seed(num_steps)
    objective = Regression(**kwargs)
    optimizer = build_optimizer(objective, AdamWConfig())
    guard = LossSpikeGuard(SpikeGuardConfig(), DistributedContext())
    set_lr(optimizer, 0.01)
    for step, batch in zip(range(num_steps), regression_batches(0), strict=False):
        loss = objective(batch)["squared"]
        loss.backward()
        guard.check(step, loss, torch.ones(()), stopping=False)
        optimizer.step()
        optimizer.zero_grad()
    ema = {k: v.detach() * 2 for k, v in objective.state_dict().items()}
    return TrainState(objective=objective, optimizer=optimizer, ema=ema, spike_guard=guard)


def save(uri, step, moving=None):
    tensors = (moving or stepped(step)).state_dict()
    snapshot = SafetensorsBuffer(tensors)
    snapshot.fill(tensors)
    write_checkpoint(
        str(uri), TrainProgress(step=step, log=({"step": step, "loss": 0.1},)), snapshot.data
    )


@pytest.fixture(params=["local", "s3"])
def uri(request, tmp_path):
    """A folder, and a real S3 server."""
    if request.param == "local":
        return str(tmp_path / "state")
    request.getfixturevalue("s3")
    return f"s3://tests/{tmp_path.name}/state"


def test_round_trip(uri):
    saved = stepped(3)
    save(uri, 3, saved)
    progress, tensors = latest_checkpoint(uri)
    assert progress == TrainProgress(step=3, log=({"step": 3, "loss": 0.1},))
    loaded = stepped(1)
    loaded.load_state_dict(tensors)
    expected, found = saved.state_dict(), loaded.state_dict()
    assert "optimizer/network.0.weight/exp_avg_sq" in expected
    assert expected["guard/memory"][1] == 3
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype


def test_a_run_goes_on_as_the_one_that_was_saved(tmp_path):
    """The optimiser's counters and its moments are those that it would have had."""
    saved, loaded = stepped(3), stepped(0)
    save(tmp_path, 3, saved)
    loaded.load_state_dict(latest_checkpoint(str(tmp_path))[1])
    for moving in (saved, loaded):
        torch.manual_seed(9)
        moving.objective(next(regression_batches(3)))["squared"].backward()
        set_lr(moving.optimizer, 0.01)
        moving.optimizer.step()
    for name, tensor in saved.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name


def test_the_file_is_one_that_safetensors_reads(tmp_path):
    tensors = {
        "half": torch.arange(3).bfloat16(),
        "wide": torch.arange(6, dtype=torch.float64).view(2, 3),
        "flag": torch.tensor([True, False, True]),
        "scalar": torch.tensor(2.5),
        "empty": torch.zeros(0, 4),
        "cut": torch.arange(12.0).view(3, 4).T,
    }
    snapshot = SafetensorsBuffer(tensors)
    snapshot.fill(tensors)
    path = tmp_path / "x.safetensors"
    path.write_bytes(snapshot.data)
    found = load_file(path)
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert found[name].dtype == tensor.dtype
        assert torch.equal(found[name], tensor)
    assert snapshot.matches(tensors)
    assert not snapshot.matches(tensors | {"scalar": torch.zeros(2)})
    assert not snapshot.matches({"scalar": tensors["scalar"]})


def test_without_a_state_there_is_none(uri):
    assert latest_checkpoint(uri) is None
    assert checkpoint_steps(uri) == []


def test_the_last_are_kept_and_what_failed_is_swept(tmp_path):
    for step in (1, 2, 3, 10):
        save(tmp_path, step)
    (tmp_path / "step-00000007.safetensors").write_bytes(b"a write that was cut off")
    (tmp_path / "run.json").write_text("{}")
    prune_checkpoints(str(tmp_path), 2)
    states = {f"step-{n:08d}.{s}" for n in (3, 10) for s in ("json", "safetensors")}
    assert {path.name for path in tmp_path.iterdir()} == {*states, "run.json"}
    assert checkpoint_steps(str(tmp_path)) == [3, 10]


def _flip(path):
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
    "harm",
    [
        lambda folder: _flip(folder / "step-00000002.safetensors"),
        lambda folder: (folder / "step-00000002.safetensors").unlink(),
        lambda folder: (folder / "step-00000002.json").unlink(),
        lambda folder: (folder / "step-00000002.json").write_text("{"),
        lambda folder: (folder / "step-00000002.json").write_text('{"format": 1}'),
    ],
    ids=["changed", "no tensors", "no record", "cut record", "old format"],
)
def test_a_state_that_is_not_whole_is_passed_over(tmp_path, harm):
    for step in (1, 2):
        save(tmp_path, step)
    harm(tmp_path)
    progress, _ = latest_checkpoint(str(tmp_path))
    assert progress.step == 1


def test_no_step_is_lost_to_a_store_that_does_not_answer(tmp_path, monkeypatch):
    for step in (1, 2):
        save(tmp_path, step)

    def unavailable(uri):
        raise StoreUnavailableError(uri, expected="an answer", action="wait")

    monkeypatch.setattr(checkpoint, "read_bytes", unavailable)
    with pytest.raises(StoreUnavailableError):
        latest_checkpoint(str(tmp_path))


def test_a_changed_state_asked_for_is_an_error(tmp_path):
    save(tmp_path, 1)
    _flip(tmp_path / "step-00000001.safetensors")
    with pytest.raises(ArtifactError, match="doesn't match its record"):
        read_checkpoint(str(tmp_path), 1)


def test_the_state_of_another_model_is_refused(tmp_path):
    save(tmp_path, 1)
    _, tensors = latest_checkpoint(str(tmp_path))
    with pytest.raises(ArtifactError, match="don't match this model"):
        stepped(0, norm=False).load_state_dict(tensors)


def test_dropped(uri):
    save(uri, 1)
    delete_state(uri)
    assert latest_checkpoint(uri) is None
    delete_state(uri)  # a second time does nothing


def test_the_record_is_json_that_people_read(tmp_path):
    save(tmp_path, 1)
    record = json.loads((tmp_path / "step-00000001.json").read_text())
    assert record["step"] == 1
    assert record["log"] == [{"loss": 0.1, "step": 1}]

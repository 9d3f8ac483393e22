"""Saved states: whole or passed over, the last two kept, dropped at the end."""

import pytest
import torch
from regression import Regression, regression_batches

from clipmill.engine.config import AdamWConfig
from clipmill.engine.optimizer import build_optimizer, set_rate
from clipmill.engine.state import Progress, drop_state, load_state, save_state


def stepped(num_steps):
    """Objective, optimiser and average after so many steps."""
    torch.manual_seed(num_steps)
    objective = Regression()
    optimizer = build_optimizer(objective, AdamWConfig())
    set_rate(optimizer, 0.01)
    for _, batch in zip(range(num_steps), regression_batches(0), strict=False):
        objective(batch)["squared"].backward()
        optimizer.step()
        optimizer.zero_grad()
    averaged = {k: v.detach() * 2 for k, v in objective.state_dict().items()}
    return objective, optimizer, averaged


@pytest.fixture(params=["local", "s3"])
def uri(request, tmp_path):
    """A folder, and a real S3 server."""
    if request.param == "local":
        return str(tmp_path / "state")
    request.getfixturevalue("s3")
    return f"s3://tests/{tmp_path.name}/state"


def test_round_trip(uri):
    saved = stepped(3)
    progress = Progress(step=3, log=({"step": 3, "loss": 0.1},))
    save_state(uri, progress, *saved)
    expected_random = torch.rand(4)

    objective, optimizer, averaged = loaded = stepped(1)
    assert load_state(uri, *loaded) == progress
    assert torch.equal(torch.rand(4), expected_random)
    for name, tensor in saved[0].state_dict().items():
        assert torch.equal(objective.state_dict()[name], tensor), name
        assert torch.equal(averaged[name], saved[2][name]), name
    for index, values in saved[1].state_dict()["state"].items():
        for name, tensor in values.items():
            assert torch.equal(optimizer.state_dict()["state"][index][name], tensor), name


def test_without_a_state_all_stays_as_it_was(uri):
    loaded = stepped(1)
    before = {k: v.clone() for k, v in loaded[0].state_dict().items()}
    assert load_state(uri, *loaded) == Progress(step=0, log=())
    assert all(torch.equal(before[k], v) for k, v in loaded[0].state_dict().items())


def test_the_last_two_are_kept(tmp_path):
    for step in (1, 2, 3, 10):
        save_state(str(tmp_path), Progress(step=step), *stepped(1))
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {f"step-{n:08d}.{s}" for n in (3, 10) for s in ("json", "safetensors")}


def test_a_changed_state_is_passed_over(tmp_path):
    for step in (1, 2):
        save_state(str(tmp_path), Progress(step=step), *stepped(step))
    path = tmp_path / "step-00000002.safetensors"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    assert load_state(str(tmp_path), *stepped(4)).step == 1


def test_tensors_without_their_record_are_no_state(tmp_path):
    for step in (1, 2):
        save_state(str(tmp_path), Progress(step=step), *stepped(step))
    (tmp_path / "step-00000002.json").unlink()
    assert load_state(str(tmp_path), *stepped(4)).step == 1


def test_dropped(uri):
    save_state(uri, Progress(step=1), *stepped(1))
    drop_state(uri)
    assert load_state(uri, *stepped(1)).step == 0
    drop_state(uri)  # a second time does nothing

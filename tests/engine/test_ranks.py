"""Two ranks that are stopped, lost, held up or sharded."""

import json
import shutil
import subprocess

import pytest
import torch

from clipmill.cost import read_sessions
from clipmill.engine.checkpoint import latest_checkpoint
from clipmill.engine.distributed import DistributedContext
from clipmill.errors import ConfigError
from clipmill.processes import free_ports
from helpers import program, program_environment
from helpers.ranks_drill import CONFIG, SCENARIOS, Scaled, trained
from helpers.regression import regression_batches
from helpers.resume_drill import STOPPED


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    """The folder in which both ranks went through all scenarios, and their exit codes."""
    folder = tmp_path_factory.mktemp("ranks")
    ports = [str(port) for port in free_ports(len(SCENARIOS))]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1"}
    common["GLOO_SOCKET_IFNAME"] = "lo"  # a host name need not resolve
    common["CUDA_VISIBLE_DEVICES"] = ""  # a machine may have fewer GPUs than ranks
    processes, errors = [], []
    try:
        for rank in range(2):
            errors.append(folder / f"{rank}.txt")
            with errors[rank].open("wb") as file:
                processes.append(
                    subprocess.Popen(
                        program("ranks_drill", folder, rank, *ports),
                        env=program_environment(**common, RANK=str(rank), LOCAL_RANK=str(rank)),
                        stderr=file,
                    )
                )
        codes = [process.wait(240) for process in processes]
        assert codes == [0, 0], "\n".join(path.read_text() for path in errors)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    found = [json.loads((folder / f"codes.{rank}.json").read_text()) for rank in range(2)]
    told = "\n".join(path.read_text() for path in errors)
    assert found[0].keys() == {scenario.__name__ for scenario in SCENARIOS}, told
    return folder, found


def weights(folder, name, rank):
    return torch.load(folder / f"{name}.{rank}.pt")


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name


def assert_close(found, expected):
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5, msg=name)


def test_two_ranks_train_as_one_process(ranks, tmp_path):
    folder, codes = ranks
    assert [c["straight"] for c in codes] == [0, 0]
    one, _ = trained(tmp_path)
    for rank in range(2):
        assert_close(weights(folder, "straight", rank), one.tensors)
    assert_equal(weights(folder, "straight", 0), weights(folder, "straight", 1))


def test_the_devices_of_both_ranks_are_counted(ranks):
    folder, _ = ranks
    (session,) = read_sessions(str(folder / "straight"))
    assert (session.num_devices, session.last_step) == (2, CONFIG.steps)
    stopped, resumed = read_sessions(str(folder / "stopped"))
    assert (stopped.lost_steps, stopped.last_step, resumed.first_step) == (0, 5, 5)


def test_ranks_told_at_different_steps_stop_after_the_same(ranks):
    folder, codes = ranks
    assert [c["stopped"] for c in codes] == [STOPPED, STOPPED]
    assert [c["resumed"] for c in codes] == [0, 0]
    for rank in range(2):
        assert_equal(weights(folder, "resumed", rank), weights(folder, "straight", rank))
    # Rank 0 was told with its fifth batch, so both took five steps.
    assert (folder / "stopped" / "step-00000005.json").exists()


def test_after_a_lost_rank_all_go_on_from_the_last_state(ranks):
    folder, codes = ranks
    assert codes[1]["lost"] == -9
    assert codes[0]["lost"] == 1
    said = (folder / "lost.0.txt").read_text()
    assert "rank 0 lost the others at step 5" in said
    assert "no longer there: rank 1 at step" in said
    for rank in range(2):
        assert_equal(weights(folder, "found again", rank), weights(folder, "straight", rank))


def test_a_stopped_run_goes_on_with_one_rank_and_the_same_samples(ranks, tmp_path):
    folder, _ = ranks
    state = tmp_path / "state"
    state.mkdir()
    for path in (folder / "stopped").glob("step-00000005.*"):
        shutil.copy(path, state)
    one, seen = trained(state)
    assert_close(one.tensors, weights(folder, "straight", 0))
    batches = regression_batches(5)
    assert seen == [(step, next(batches)["y"].tolist()) for step in (5, 6, 7)]


def test_a_number_that_is_none_on_one_rank_is_skipped_on_both(ranks):
    folder, codes = ranks
    assert [c["poisoned"] for c in codes] == [0, 0]
    first, second = (weights(folder, "poisoned", rank) for rank in range(2))
    assert_equal(first, second)
    assert all(tensor.isfinite().all() for tensor in first.values())


def test_the_rank_that_holds_the_others_up_is_named(ranks):
    folder, codes = ranks
    assert [c["held_up"] for c in codes] == [0, 0]
    said = (folder / "held-up.0.txt").read_text()
    assert "Behind: rank 1 at step 2, waiting for data" in said
    assert "Others: rank 0 at step 2, computing, or waiting for other ranks" in said


def test_sharded_ranks_train_as_one_process(ranks, tmp_path):
    folder, codes = ranks
    assert [c["sharded"] for c in codes] == [0, 0]
    one, _ = trained(tmp_path, make=Scaled)
    for rank in range(2):
        assert_close(weights(folder, "sharded", rank), one.tensors)


def test_a_sharded_run_resumes_exactly_and_on_one_process(ranks, tmp_path):
    folder, codes = ranks
    assert [c["sharded_stopped"] for c in codes] == [STOPPED, STOPPED]
    assert [c["sharded_resumed"] for c in codes] == [0, 0]
    assert_equal(weights(folder, "sharded resumed", 0), weights(folder, "sharded", 0))
    progress, _ = latest_checkpoint(str(folder / "sharded-stopped"))
    assert progress.step == 6  # the last of its own schedule
    state = tmp_path / "state"
    state.mkdir()
    for path in (folder / "sharded-stopped").glob("step-00000005.*"):
        shutil.copy(path, state)
    one, seen = trained(state, make=Scaled)
    assert seen[0][0] == 5
    assert_close(one.tensors, weights(folder, "sharded", 0))


def test_a_batch_that_ranks_cannot_share():
    with pytest.raises(ConfigError, match="batch_size was 8, with 3 ranks"):
        DistributedContext(world_size=3).per_rank_batch_size(CONFIG.batch_size, 1)

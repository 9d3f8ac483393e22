"""The loss of several processes, each with its share of a batch, is that of one with all of it."""

import subprocess

import pytest
import torch

from clipmill.engine.distributed import DistributedContext
from clipmill.processes import free_ports
from helpers import program, program_environment
from helpers.loss_ranks import CASES, NAMES, computed


@pytest.fixture(scope="module", params=[2, 4])
def by_rank(request, tmp_path_factory):
    """What each of 2 or 4 gloo processes computed."""
    folder = tmp_path_factory.mktemp("ranks")
    common = {
        "WORLD_SIZE": str(request.param),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_ports(1)[0]),
        "GLOO_SOCKET_IFNAME": "lo",
        "CUDA_VISIBLE_DEVICES": "",  # a machine may have fewer GPUs than ranks
        "OMP_NUM_THREADS": "1",
    }
    processes = [
        subprocess.Popen(
            program("loss_ranks", folder),
            env=program_environment(**common, RANK=str(rank), LOCAL_RANK=str(rank)),
        )
        for rank in range(request.param)
    ]
    try:
        assert [process.wait(180) for process in processes] == [0] * request.param
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [torch.load(folder / f"{rank}.pt") for rank in range(request.param)]


@pytest.mark.parametrize("case", CASES)
def test_losses_and_gradients_are_those_of_one_process(by_rank, case):
    """Averaged over ranks, as DDP averages what it sends back."""
    expected = computed(case, DistributedContext())
    found = [ranks[case] for ranks in by_rank]
    assert all(f.keys() == expected.keys() for f in found)
    for name, value in expected.items():
        own = torch.stack([f[name] for f in found])
        if name.removeprefix("gradient of ") in NAMES and name.startswith("gradient"):
            # Each rank has its own rows' gradients, of the sum of all ranks' losses.
            own = own.flatten(0, 1) / len(found)
        else:
            own = own.mean(0)
        torch.testing.assert_close(own, value, rtol=1e-6, atol=1e-6, msg=name)

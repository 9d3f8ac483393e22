"""Two processes that share a batch train as one process does with all of it."""

import subprocess

import pytest
import torch

from clipmill.engine.distributed import DistributedContext, init_distributed
from clipmill.errors import ConfigError
from clipmill.processes import free_ports
from helpers import program, program_environment
from helpers.two_ranks import CASES, gradients_of, trained_weights


@pytest.fixture(scope="module")
def gradients(tmp_path_factory):
    """What each rank of two computes, by case: started as torchrun starts processes."""
    folder = tmp_path_factory.mktemp("ranks")
    ports = [str(port) for port in free_ports(3)]
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1"}
    common["GLOO_SOCKET_IFNAME"] = "lo"  # a host name need not resolve
    common["CUDA_VISIBLE_DEVICES"] = ""  # a machine may have fewer GPUs than ranks
    processes, errors = [], []
    try:
        for rank in range(2):
            errors.append(folder / f"{rank}.txt")
            with errors[rank].open("wb") as file:
                processes.append(
                    subprocess.Popen(
                        program("two_ranks", folder, *ports),
                        env=program_environment(**common, RANK=str(rank), LOCAL_RANK=str(rank)),
                        stderr=file,
                    )
                )
        codes = [process.wait(120) for process in processes]
        assert codes == [0, 0], "\n".join(path.read_text() for path in errors)
    finally:
        for process in processes:
            process.kill()
            process.wait()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]


@pytest.mark.parametrize("case", CASES)
def test_gradients_are_those_of_one_process(gradients, case):
    expected = gradients_of(case, DistributedContext())
    assert expected
    for rank in range(2):
        found = gradients[rank][case]
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            message = f"rank {rank}, {name}"
            # Of the whole tensor: batch norms add up what nearly cancels.
            atol = 3e-5 * max(1.0, float(gradient.norm()))
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=atol, msg=message)


@pytest.mark.parametrize("run", ["weights", "resumed weights"])
def test_trained_weights_are_those_of_one_process(gradients, tmp_path, run):
    expected = trained_weights(tmp_path)
    for rank in range(2):
        for name, tensor in expected.items():
            torch.testing.assert_close(gradients[rank][run][name], tensor, msg=name)


def test_a_process_alone_is_rank_0_of_1(monkeypatch):
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    module = torch.nn.Linear(1, 1)
    with init_distributed() as dist:
        assert (dist.rank, dist.world_size) == (0, 1)
        assert dist.wrap_ddp(module) is module
        assert not torch.distributed.is_initialized()


def test_more_ranks_than_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with (
        pytest.raises(ConfigError, match="rank 1 of this machine has no GPU: there are 1"),
        init_distributed(),
    ):
        pass

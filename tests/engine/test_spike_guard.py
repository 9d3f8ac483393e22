"""Updates that would do harm: left out, counted, and too many of them end the run."""

import math

import pytest
import torch

from clipmill.engine.config import ScheduleConfig, SpikeGuardConfig, TrainConfig
from clipmill.engine.distributed import DistributedContext
from clipmill.engine.spike_guard import LossSpikeGuard
from clipmill.engine.trainer import train
from clipmill.errors import ConfigError, TrainingError
from clipmill.telemetry import train_metrics
from helpers.regression import Regression, regression_batches

CONFIG = TrainConfig(
    steps=8,
    batch_size=8,
    schedule=ScheduleConfig(lr=1e-2),
    spike_guard=SpikeGuardConfig(max_consecutive_skips=3),
    checkpoint_every=2,
    log_every=1,
)


class Poisoned(Regression):
    """Some batches, marked in their first feature, make a loss or a gradient of no number."""

    def forward(self, batch):
        loss = super().forward(batch)["squared"]
        kind = batch["kind"]
        if kind == "loss":
            loss = loss * math.nan
        if kind == "gradient":
            # Finite itself; the slope of a root at zero isn't.
            loss = loss + (self.network[0].weight * 0).abs().sqrt().sum()
        return {"squared": loss}


def run(folder, kinds, config=CONFIG, objective=Poisoned):
    """Train on batches that are poisoned as ``kinds`` says; also the weights after each step."""
    weights = []

    class Watched(objective):
        def after_step(self):
            weights.append({k: v.detach().clone() for k, v in self.state_dict().items()})

    def batches(cursor, dist):
        for step, batch in enumerate(regression_batches(cursor), start=cursor):
            yield batch | {"kind": kinds.get(step, "")}

    trained = train(
        lambda dist: Watched(),
        batches,
        config,
        name="test",
        checkpoint_uri=str(folder),
        report=lambda *_: None,
    )
    return trained, weights


@pytest.mark.parametrize("kind", ["loss", "gradient"])
def test_a_harmful_update_leaves_everything_as_it_was(tmp_path, kind):
    counter = train_metrics().skipped_updates.labels(reason="not_finite")
    samples = train_metrics().skipped_samples
    before, samples_before = counter._value.get(), samples._value.get()
    trained, weights = run(tmp_path, {3: kind, 4: kind})
    for name, tensor in weights[2].items():
        if "num_batches_tracked" not in name:  # it counts what was seen
            assert torch.equal(weights[4][name], tensor), name
    assert not torch.equal(weights[5]["network.0.weight"], weights[4]["network.0.weight"])
    assert all(v.isfinite().all() for v in trained.tensors.values())
    assert counter._value.get() - before == 2
    assert samples._value.get() - samples_before == 16
    assert [("loss" in r) for r in trained.log] == [
        not (kind == "loss" and r["step"] in {4, 5}) for r in trained.log
    ]
    assert "gradient_norm" not in trained.log[3]


def test_updates_after_a_skipped_one_are_those_of_a_run_without_it():
    """Neither moments nor their counter know of it."""

    def stepped(losses):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.ones(3))
        optimizer = torch.optim.AdamW([weight], lr=0.1, fused=True)
        guard = LossSpikeGuard(SpikeGuardConfig(), DistributedContext())
        for step, scale in enumerate(losses):
            loss = (weight * scale).sum()
            loss.backward()
            norm = weight.grad.norm()
            optimizer.found_inf, _ = guard.check(step, loss, norm, stopping=False)
            optimizer.step()
            optimizer.zero_grad()
        return weight

    assert torch.equal(stepped([1.0, math.inf, 2.0, math.nan, 3.0]), stepped([1.0, 2.0, 3.0]))


def test_too_many_in_a_row_end_the_run_and_keep_the_state(tmp_path):
    with pytest.raises(
        TrainingError, match="3 updates in a row were skipped up to step 7"
    ) as found:
        run(tmp_path, {2: "loss", 4: "loss", 5: "loss", 6: "loss"})
    assert "max_consecutive_skips" in found.value.action
    assert (tmp_path / "step-00000004.safetensors").exists()


def test_a_spike_is_skipped_once_the_mean_is_known():
    guard = LossSpikeGuard(SpikeGuardConfig(loss_spike_ratio=3.0), DistributedContext())
    norm = torch.ones(())

    def judge(step, loss):
        skip, verdict = guard.check(step, torch.tensor(loss), norm, stopping=False)
        assert bool(skip) == verdict.skipped
        return verdict

    assert not judge(0, 100.0).spike  # nothing is known yet
    for step in range(1, 400):
        assert not judge(step, 1.0).skipped
    mean = guard.memory[0].item()
    assert mean == pytest.approx(1.0, abs=0.05)
    assert not judge(400, 2.9).skipped
    verdict = judge(401, 4.0)
    assert (verdict.spike, verdict.not_finite, verdict.consecutive_skips) == (True, False, 1)
    assert judge(402, math.inf).consecutive_skips == 2
    assert judge(403, 1.0).consecutive_skips == 0


def test_the_running_mean_follows_the_loss():
    guard = LossSpikeGuard(SpikeGuardConfig(), DistributedContext())
    expected = 5.0
    for step, loss in enumerate([5.0, 3.0, 4.0]):
        guard.check(step, torch.tensor(loss), torch.ones(()), stopping=False)
        expected = expected * 0.98 + loss * 0.02
    assert guard.memory[0].item() == pytest.approx(expected)


@pytest.mark.parametrize("rate", [math.nan, math.inf, -1.0])
def test_a_rate_that_no_run_survives(rate):
    with pytest.raises(ConfigError, match="lr was"):
        ScheduleConfig(lr=rate)

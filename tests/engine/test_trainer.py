"""The loop: equal to a hand-written one, and a resumed run equal to one never stopped."""

import json
import multiprocessing
import os
import signal
from functools import partial

import pytest
import torch
from torch.nn import functional as F

from clipmill.engine.config import AdamWConfig, ScheduleConfig, TrainConfig
from clipmill.engine.objective import Objective
from clipmill.engine.trainer import train
from clipmill.errors import ConfigError, TrainingError
from helpers.regression import Regression, regression_batches

CONFIG = TrainConfig(
    steps=6,
    batch_size=8,
    schedule=ScheduleConfig(lr=1e-2, min_lr=1e-4, warmup_steps=2),
    optimizer=AdamWConfig(clip_norm=1.0),
    ema_decay=0.9,
    checkpoint_every=3,
    log_every=1,
)


class Stop(Exception):  # noqa: N818 - it is no error here
    """Ends a run from outside."""


def silent(done, total, words):
    pass


def run(folder, *, config=CONFIG, objective=Regression, before=lambda step: None, report=silent):
    """Train; ``before`` is called with each step's number before its batch is handed out."""

    def batches(cursor, dist):
        for step, batch in enumerate(regression_batches(cursor), start=cursor):
            before(step)
            yield batch

    return train(
        lambda dist: objective(),
        batches,
        config,
        name="test",
        checkpoint_uri=str(folder / "state"),
        report=report,
    )


def assert_same(found, expected):
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert torch.equal(found.tensors[name], tensor), name
    assert [without_speed(r) for r in found.log] == [without_speed(r) for r in expected.log]


def without_speed(record):
    return {k: v for k, v in record.items() if k not in {"samples_per_second", "data_wait", "mfu"}}


def stop_at(number):
    def before(step):
        if step == number:
            raise Stop

    return before


@pytest.mark.parametrize("ema_decay", [0.9, None])
@pytest.mark.parametrize("stopped_at", [3, 5])
def test_resumed_run_equals_one_never_stopped(tmp_path, ema_decay, stopped_at):
    config = CONFIG.override([f"ema_decay={json.dumps(ema_decay)}"])
    expected = run(tmp_path / "straight", config=config)
    with pytest.raises(Stop):
        run(tmp_path / "stopped", config=config, before=stop_at(stopped_at))
    seen = []
    found = run(tmp_path / "stopped", config=config, before=seen.append)
    assert seen[0] == 3  # it went on, and didn't begin anew
    assert_same(found, expected)


def _killed_at_4(folder):
    def before(step):
        if step == 4:
            os.kill(os.getpid(), signal.SIGKILL)

    run(folder, before=before)


def test_resumes_after_a_kill(tmp_path):
    process = multiprocessing.get_context("spawn").Process(target=_killed_at_4, args=(tmp_path,))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    assert (tmp_path / "state").is_dir()
    assert_same(run(tmp_path), run(tmp_path / "straight"))


def test_a_half_written_state_is_passed_over(tmp_path):
    config = CONFIG.override(["checkpoint_every=2"])
    with pytest.raises(Stop):
        run(tmp_path / "stopped", config=config, before=stop_at(5))
    (newest,) = (tmp_path / "stopped" / "state").glob("step-00000004.safetensors")
    newest.write_bytes(newest.read_bytes()[:-1])
    seen = []
    found = run(tmp_path / "stopped", config=config, before=seen.append)
    assert seen[0] == 2
    assert_same(found, run(tmp_path / "straight", config=config))


def test_equals_a_hand_written_loop(tmp_path):
    """torch's AdamW with the same groups, rates computed here."""
    config = CONFIG.override(["ema_decay=null", "optimizer.weight_decay=0.3"])
    quiet = partial(Regression, dropout=0.0, norm=False)
    found = run(tmp_path, config=config, objective=quiet)

    torch.manual_seed(config.seed)
    network = quiet().network.train()
    decayed = [p for p in network.parameters() if p.ndim == 2]
    plain = [p for p in network.parameters() if p.ndim == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": 0.3}, {"params": plain, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        eps=1e-6,
    )
    # Half of the peak, the peak, then a half cosine over four steps: cos(0), cos(45), ... degrees.
    cosines = [1, 2**-0.5, 0, -(2**-0.5)]
    rates = [5e-3, 1e-2, *(1e-4 + 9.9e-3 * (1 + c) / 2 for c in cosines)]
    losses = []
    for rate, batch in zip(rates, regression_batches(0), strict=False):
        for group in optimizer.param_groups:
            group["lr"] = rate
        loss = F.mse_loss(network(batch["x"])[:, 0], batch["y"])
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        losses.append(loss.item())

    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(
            found.tensors[f"network.{name}"].cpu(), tensor, rtol=0, atol=1e-6
        )
    assert [r["loss"] for r in found.log] == pytest.approx(losses, abs=1e-6)
    assert [r["learning_rate"] for r in found.log] == pytest.approx(rates)
    assert [r["step"] for r in found.log] == [1, 2, 3, 4, 5, 6]


def test_average_is_that_of_the_weights_seen(tmp_path):
    weights = []

    class Watched(Regression):
        def after_step(self):
            weights.append(self.network[4].weight.detach().cpu().clone())

    config = CONFIG.override(["ema_decay=0.4"])
    found = run(tmp_path, config=config, objective=Watched)
    torch.manual_seed(config.seed)
    average = Regression().network[4].weight.detach()
    for step, weight in enumerate(weights):
        decay = min(0.4, (1 + step) / (10 + step))
        average = decay * average + (1 - decay) * weight
    torch.testing.assert_close(found.tensors["network.4.weight"].cpu(), average)
    assert not torch.allclose(average, weights[-1])
    assert found.tensors["network.1.num_batches_tracked"].item() == 6


def test_micro_batches_average_to_the_batch(tmp_path):
    """Layer norm in place of batch norm: each sample's loss is its own."""
    objective = partial(Regression, dropout=0.0, norm=False)
    whole = run(tmp_path / "1", objective=objective)
    config = CONFIG.override(["grad_accum_steps=4"])
    pieces = run(tmp_path / "4", objective=objective, config=config)
    for name, tensor in whole.tensors.items():
        torch.testing.assert_close(pieces.tensors[name], tensor, rtol=1e-5, atol=1e-6)
    assert pieces.log[-1]["loss"] == pytest.approx(whole.log[-1]["loss"], rel=1e-5)


def test_a_batch_that_cannot_be_cut(tmp_path):
    with pytest.raises(
        ConfigError, match="grad_accum_steps=3: not divisible into equal micro-batches"
    ):
        run(tmp_path, config=CONFIG.override(["grad_accum_steps=3"]))


def test_bf16_computes_in_bf16_and_keeps_weights_in_fp32(tmp_path):
    kinds = set()

    class Watched(Regression):
        def forward(self, batch):
            kinds.add(self.network(batch["x"]).dtype)
            return super().forward(batch)

    quiet = partial(Watched, dropout=0.0)
    config = CONFIG.override(["precision=bf16"])
    found = run(tmp_path / "16", config=config, objective=quiet)
    assert kinds == {torch.bfloat16}
    assert found.tensors["network.0.weight"].dtype == torch.float32
    exact = run(tmp_path / "32", objective=quiet)
    assert found.log[0]["loss"] == pytest.approx(exact.log[0]["loss"], rel=0.05)
    assert found.log[0]["loss"] != exact.log[0]["loss"]


def test_log_and_report_come_at_their_steps(tmp_path):
    told = []
    config = CONFIG.override(["log_every=4"])
    found = run(tmp_path, config=config, report=lambda *words: told.append(words[:2]))
    assert [r["step"] for r in found.log] == [4, 6]
    assert told == [(4, 6), (6, 6)]


def test_terms_are_logged_beside_their_sum(tmp_path):
    class Two(Objective):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1))

        def forward(self, batch):
            return {"a": self.weight.sum() * 3, "b": self.weight.sum() * 4}

    record = run(tmp_path, objective=Two).log[0]
    assert (record["loss/a"], record["loss/b"]) == (3, 4)
    assert record["loss"] == 7
    assert record["gradient_norm"] == 7


def test_batches_that_end_are_an_error(tmp_path):
    with pytest.raises(TrainingError, match="the batches ended at step 0"):
        train(
            lambda dist: Regression(),
            lambda cursor, dist: iter([]),
            CONFIG,
            name="test",
            checkpoint_uri=str(tmp_path),
            report=silent,
        )


@pytest.mark.parametrize("name", ["steps", "batch_size", "grad_accum_steps", "log_every"])
def test_a_config_that_cannot_be_run(name):
    with pytest.raises(ConfigError, match=f"{name} was 0"):
        CONFIG.override([f"{name}=0"])


def test_how_a_run_is_carried_out_is_not_in_its_digest():
    operated = CONFIG.override(
        ["checkpoint_every=1", "log_every=2", "runtime.parallelism=fsdp", "runtime.compile=true"]
    )
    assert operated != CONFIG
    assert operated.digest == CONFIG.digest
    assert CONFIG.override(["spike_guard.loss_spike_ratio=2"]).digest != CONFIG.digest


def test_a_compiled_objective_trains_to_the_same_weights(tmp_path):
    quiet = partial(Regression, dropout=0.0, norm=False)
    plain = run(tmp_path / "plain", objective=quiet)
    config = CONFIG.override(["runtime.compile=true"])
    compiled = run(tmp_path / "compiled", objective=quiet, config=config)
    assert compiled.tensors.keys() == plain.tensors.keys()
    for name, tensor in plain.tensors.items():
        torch.testing.assert_close(compiled.tensors[name], tensor, rtol=1e-4, atol=1e-5)


def test_seen_samples_are_batches_times_updates():
    assert TrainConfig(steps=200_000, batch_size=65_536).num_seen_samples == 13_107_200_000


@pytest.mark.parametrize(("field", "value"), [("seed", -1), ("steps", 0), ("log_every", 0)])
def test_settings_out_of_range_are_refused(field, value):
    usual = {"steps": 1, "batch_size": 1}
    with pytest.raises(ConfigError, match=f"{field} was {value}"):
        TrainConfig(**usual | {field: value})

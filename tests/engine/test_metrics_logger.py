"""What a run says while it lasts: metrics, the log in the store, evaluations."""

import json
import math
import urllib.request
from functools import partial

import pytest
import torch
from prometheus_client import REGISTRY
from prometheus_client.parser import text_string_to_metric_families
from torch import nn

from clipmill import telemetry
from clipmill.engine.config import ScheduleConfig, TrainConfig
from clipmill.engine.metrics import forward_flops, peak_flops
from clipmill.engine.objective import Validator
from clipmill.engine.trainer import train
from clipmill.errors import TrainingError
from helpers.regression import Regression, regression_batches

CONFIG = TrainConfig(
    steps=6,
    batch_size=8,
    schedule=ScheduleConfig(lr=1e-2),
    ema_decay=0.9,
    checkpoint_every=2,
    log_every=2,
)


class Scaled(Regression):
    def __init__(self):
        super().__init__(dropout=0.0)
        self.logit_scale = nn.Parameter(torch.tensor(1.0), requires_grad=False)


def run(folder, config=CONFIG, objective=Scaled, validators=(), report=lambda *_: None):
    return train(
        lambda dist: objective(),
        lambda cursor, dist: regression_batches(cursor),
        config,
        name="journal",
        checkpoint_uri=str(folder),
        report=report,
        validators=validators,
    )


def test_a_job_is_scraped_while_it_runs(tmp_path, monkeypatch):
    ports = []
    serve = telemetry.serve_metrics
    monkeypatch.setattr(
        telemetry, "serve_metrics", lambda *a, **k: ports.append(serve(*a, **k)) or ports[-1]
    )
    telemetry.serve_metrics_once.cache_clear()
    found = {}

    def scrape(done, total, words):
        url = f"http://127.0.0.1:{ports[0]}/metrics"
        with urllib.request.urlopen(url) as response:
            families = text_string_to_metric_families(response.read().decode())
            found.update(
                {(s.name, *sorted(s.labels.values())): s.value for f in families for s in f.samples}
            )

    config = CONFIG.override(["runtime.metrics_port=0", "runtime.peak_flops=1e9"])
    judge = Validator(name="test", every=2, compute=lambda *_: {"answer": 42.0})
    trained = run(tmp_path, config, report=scrape, validators=[judge])
    last = trained.log[-1]
    assert found["clipmill_train_step",] == 6
    assert found["clipmill_train_loss", "journal", "total"] == pytest.approx(last["loss"])
    assert found["clipmill_train_logit_scale",] == pytest.approx(2.7182817)
    assert found["clipmill_train_mfu_ratio",] == pytest.approx(last["mfu"])
    assert found["clipmill_train_samples_per_second",] == pytest.approx(last["samples_per_second"])
    assert found["clipmill_train_gradient_norm",] == pytest.approx(last["gradient_norm"])
    assert found["clipmill_train_validation_metric", "answer", "test"] == 42
    assert found["clipmill_train_data_wait_seconds_total", "0"] > 0
    assert found["clipmill_train_checkpoint_seconds_count", "blocking"] > 0


def test_utilisation_counts_the_products_of_a_step(tmp_path):
    """Two layers of 5 x 8 and 8 x 1 for 8 samples, a product and a sum each, three passes."""
    objective = Scaled()
    before = {k: v.clone() for k, v in objective.state_dict().items()}
    found = forward_flops(objective, next(regression_batches(0)))
    assert found == 2 * 8 * (5 * 8 + 8 * 1)
    assert all(torch.equal(v, before[k]) for k, v in objective.state_dict().items())
    trained = run(tmp_path, CONFIG.override(["runtime.peak_flops=1e6"]))
    steps_per_second = trained.log[-1]["samples_per_second"] / 8
    assert trained.log[-1]["mfu"] == pytest.approx(3 * found * steps_per_second / 1e6)


def test_counting_changes_nothing(tmp_path):
    counted = run(tmp_path / "a", CONFIG.override(["runtime.peak_flops=1e6"]))
    plain = run(tmp_path / "b")
    assert "mfu" not in plain.log[-1]
    assert math.isnan(REGISTRY.get_sample_value("clipmill_train_mfu_ratio"))
    assert all(torch.equal(v, plain.tensors[k]) for k, v in counted.tensors.items())


def test_no_peak_is_claimed_for_a_cpu():
    assert peak_flops(torch.device("cpu"), "bf16") is None


def test_an_unfinished_run_can_be_read_from_the_store(tmp_path):
    class Failing(Scaled):
        def forward(self, batch):
            self.count = getattr(self, "count", 0) + 1
            if self.count == 6:
                raise TrainingError("it broke", expected="nothing", action="none")
            return super().forward(batch)

    with pytest.raises(TrainingError):
        run(tmp_path, objective=Failing)
    status = json.loads((tmp_path / "run.json").read_text())
    assert (status["status"], status["words"]) == ("failed", "it broke")
    assert (status["step"], status["steps"], status["name"]) == (4, 6, "journal")
    assert TrainConfig.from_json(status["train"]) == CONFIG
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [2, 4]


def test_evaluations_see_the_average_and_leave_training_alone(tmp_path):
    seen = []

    def judge(objective, dist):
        assert not objective.training
        assert not torch.is_grad_enabled()
        torch.rand(3)  # training's random numbers aren't touched
        seen.append(objective.network[0].weight.clone())
        return {"norm": float(objective.network[0].weight.norm())}

    evaluation = Validator(name="weight", every=3, compute=judge)
    evaluated = run(
        tmp_path / "a", validators=[evaluation], objective=partial(Regression, dropout=0.5)
    )
    plain = run(tmp_path / "b", objective=partial(Regression, dropout=0.5))
    assert all(torch.equal(v, plain.tensors[k]) for k, v in evaluated.tensors.items())
    assert torch.equal(seen[-1], evaluated.tensors["network.0.weight"])
    assert {r["step"] for r in evaluated.log} == {2, 3, 4, 6}
    assert [r["step"] for r in evaluated.log if "weight/norm" in r] == [3, 6]


def test_a_store_that_takes_no_log_does_not_end_the_run(tmp_path, caplog):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "log.jsonl").mkdir()
    assert run(tmp_path / "state").log[-1]["step"] == 6
    assert "the log of this run can't be written now" in caplog.text

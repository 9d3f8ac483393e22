"""Stages: what they tell while they run, and leave when they end."""

import json
import urllib.request

import pytest

from clipmill.errors import ConfigError
from clipmill.processes import free_port
from clipmill.stage_records import (
    EVENTS_VARIABLE,
    METRICS_VARIABLE,
    RUN_VARIABLE,
    Stage,
    StageRecord,
    read_stages,
)
from clipmill.storage import exists, join
from clipmill.telemetry import data_metrics


@pytest.fixture
def events(tmp_path, monkeypatch):
    """A function that gives the events so far."""
    path = tmp_path / "events.jsonl"
    monkeypatch.setenv(EVENTS_VARIABLE, str(path))
    return lambda: [json.loads(line) for line in path.read_text().splitlines()]


def test_the_environment_names_the_run_of_a_task(monkeypatch, tmp_path):
    monkeypatch.setenv(RUN_VARIABLE, "end-to-end-x7k2p")
    with Stage("shard", store=str(tmp_path)):
        pass
    with Stage("shard", store=str(tmp_path), run="own"):
        pass
    assert [r.name for r in read_stages(str(tmp_path), "end-to-end-x7k2p")] == ["shard"]
    assert [r.name for r in read_stages(str(tmp_path), "own")] == ["shard"]


def test_a_stage_from_start_to_end(events, tmp_path):
    store = str(tmp_path / "store")
    with Stage("pretrain", store=store, run="run1", label="G") as stage:
        stage.report(1, 2, "half")
        stage.report(2, 2, "whole")
        assert stage.set_output("/made") == "/made"
    kinds = [(e["event"], e["stage"], e["label"]) for e in events()]
    assert kinds == [(k, "pretrain", "G") for k in ("start", "progress", "progress", "end")]
    progress = events()[1]
    assert (progress["done"], progress["total"], progress["words"]) == (1, 2, "half")
    (record,) = read_stages(store, "run1")
    assert record == StageRecord(
        name="pretrain",
        label="G",
        started=record.started,
        seconds=record.seconds,
        reused=False,
        output="/made",
    )
    assert 0 <= record.seconds < 60


def test_a_stage_that_had_nothing_to_do_is_reused(events, tmp_path):
    with Stage("shard", store=str(tmp_path), run="r") as stage:
        stage.set_output("/there")
    assert events()[-1]["reused"]
    assert read_stages(str(tmp_path), "r")[0].reused


def test_busy_progress_is_thinned_but_for_the_last(events):
    with Stage("shard") as stage:
        for done in range(1, 1001):
            stage.report(done, 1000, "samples")
    told = [e["done"] for e in events() if e["event"] == "progress"]
    assert told[0] == 1
    assert told[-1] == 1000
    assert len(told) < 500


def test_lines_of_a_long_stage_are_fewer(capsys, monkeypatch):
    """What a pod's log shows: the share, a message, the time left; one line in 10 s at most."""
    now = 1000.0
    monkeypatch.setattr("clipmill.stage_records.time.time", lambda: now)
    with Stage("pretrain", label="G") as stage:
        for done in range(1, 7201):
            now += 1.0
            stage.report(done, 7200, f"loss {done}")
    lines = capsys.readouterr().err.splitlines()
    assert 700 < len(lines) < 900
    assert lines[0] == "pretrain G: 1/7200 loss 1"
    assert lines[1] == "pretrain G: 2/7200 loss 2, 7198 s left"
    assert lines[-2] == "pretrain G: 7200/7200 loss 7200"


@pytest.mark.parametrize(
    ("error", "user"),
    [
        (ConfigError("what", expected="this", action="do"), ["what", "this", "do"]),
        (ZeroDivisionError("by zero"), None),
    ],
)
def test_a_stage_that_fails(events, tmp_path, error, user):
    store = str(tmp_path / "store")

    def fail():
        with Stage("train", store=store, run="r"):
            raise error

    with pytest.raises(type(error)):
        fail()
    failed = events()[-1]
    assert (failed["event"], failed["user"]) == ("failed", user)
    assert failed["words"].startswith(f"{type(error).__name__}: ")
    assert not exists(join(store, "runs", "r", "train.json"))


def test_records_come_in_the_order_of_their_start(events, tmp_path):
    store = str(tmp_path)
    for name, label in (("shard", ""), ("pretrain", "S"), ("pretrain", "G"), ("captioner", "")):
        with Stage(name, store=store, run="r", label=label):
            pass
    found = [(r.name, r.label) for r in read_stages(store, "r")]
    assert found == [("shard", ""), ("pretrain", "S"), ("pretrain", "G"), ("captioner", "")]


def test_without_a_store_nothing_is_kept(events, tmp_path):
    with Stage("shard", run="r"):
        pass
    assert [path.name for path in tmp_path.iterdir()] == ["events.jsonl"]


def test_without_a_file_for_events_they_go_to_the_terminal(monkeypatch, capsys):
    monkeypatch.delenv(EVENTS_VARIABLE, raising=False)
    with Stage("pretrain", label="G") as stage:
        stage.report(3, 3, "loss 0.5")
    with Stage("shard"):
        pass
    captured = capsys.readouterr()
    assert captured.out == ""
    lines = captured.err.splitlines()
    assert lines[0] == "pretrain G: 3/3 loss 0.5"
    assert lines[1].startswith("pretrain G: done in ")
    assert lines[2].startswith("shard: reused in ")


def test_the_time_left_is_told_from_the_pace_since_the_first_report(monkeypatch, capsys):
    monkeypatch.delenv("CLIPMILL_EVENTS", raising=False)
    clock = iter([100.0, 100.0, 100.0, 110.0, 110.0, 120.0])
    monkeypatch.setattr("clipmill.stage_records.time.time", lambda: next(clock, 130.0))
    with Stage("pretrain") as stage:
        stage.report(50, 100, "resumed")  # at 100 s
        stage.report(60, 100, "on")  # at 110 s: ten in ten seconds
    told = capsys.readouterr().err
    assert "50/100 resumed\n" in told
    assert "60/100 on, 40 s left" in told


def test_metrics_are_served_where_the_environment_says(monkeypatch):
    port = free_port("127.0.0.1")
    monkeypatch.setenv(METRICS_VARIABLE, f"127.0.0.1:{port}")
    for _ in range(2):
        with Stage("shard"):
            pass
    data_metrics()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics") as answer:
        assert b"clipmill_data_samples_processed_total" in answer.read()


def test_a_malformed_address_of_metrics_is_refused(monkeypatch):
    monkeypatch.setenv(METRICS_VARIABLE, "9090")
    with pytest.raises(ConfigError, match="CLIPMILL_METRICS is '9090'"), Stage("shard"):
        pass

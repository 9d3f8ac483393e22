"""Sweeps of real, tiny trainings: halved, repeated, killed, resumed, drawn, promoted."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import pytest
from typer.testing import CliRunner

from clipmill.cli import app
from clipmill.engine.config import ScheduleConfig, TrainConfig
from clipmill.errors import ConfigError, NotFoundError, TrainingError
from clipmill.recipes.registry import RECIPES, get_recipe
from clipmill.report.tasks import sweep_page
from clipmill.tasks.evaluation import read_evaluation
from clipmill.tasks.finetune import FinetuneConfig
from clipmill.tasks.promotion import read_promotion
from clipmill.tasks.sweep import (
    SweepConfig,
    SweepResult,
    Trial,
    read_sweep,
    read_wave,
    run_trial,
    sweep,
    sweep_uri,
)
from helpers import program_environment
from helpers.tiny_tasks import DEPTH

ENCODER = "random:timm/test_resnet"
TRAIN = TrainConfig(
    steps=6,
    batch_size=2,
    schedule=ScheduleConfig(lr=1e-3, warmup_steps=2),
    num_threads=1,
    checkpoint_every=1,
)
CONFIG = SweepConfig(
    finetune=FinetuneConfig(task="depth", model=DEPTH, train=TRAIN),
    grid={"model.drop_path": (0.0, 0.2), "train.schedule.lr": (1e-3, 3e-2)},
    rungs=(0.34, 1.0),
    reduction_fraction=0.5,
)


def silent(done, total, words):
    pass


def fail(done, total, words):
    pytest.fail("worked again")


@pytest.fixture(scope="module")
def whole(nyu_folder, tmp_path_factory):
    """A sweep that nobody disturbed."""
    store = str(tmp_path_factory.mktemp("store"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIPMILL_CACHE", str(tmp_path_factory.mktemp("cache")))
        uri = sweep(CONFIG, ENCODER, str(nyu_folder), store, report=silent)
        return read_sweep(uri)


def figures(result):
    return [(t.point, t.rung, t.value) for t in result.trials]


def test_the_better_half_goes_on(whole):
    first = [t for t in whole.trials if t.rung == 0]
    last = [t for t in whole.trials if t.rung == 1]
    assert [t.point for t in first] == list(CONFIG.grid_points())
    assert len(last) == 2
    by_figure = sorted(first, key=lambda t: t.value)  # RMSE: less is better
    assert [t.point for t in last] == [t.point for t in by_figure[:2]]
    assert whole.best.value == min(t.value for t in last)
    for trial in whole.trials:
        evaluation = read_evaluation(trial.evaluation)
        assert trial.value == evaluation.metrics["rmse"]
        assert evaluation.model.uri.rpartition("/")[2].startswith("depth-")


def test_a_finished_sweep_is_found_again(whole, nyu_folder):
    store = whole.uri.rpartition("/sweeps/")[0]
    assert sweep(CONFIG, ENCODER, str(nyu_folder), store, report=fail) == whole.uri
    # With its result gone, every point is found.
    kept = {p: p.stat().st_mtime_ns for p in Path(store).rglob("model.json")}
    (Path(whole.uri) / "sweep.json").unlink()
    again = read_sweep(sweep(CONFIG, ENCODER, str(nyu_folder), store, report=silent))
    assert figures(again) == figures(whole)
    assert {p: p.stat().st_mtime_ns for p in Path(store).rglob("model.json")} == kept


SCRIPT = """
import sys
sys.path.insert(0, sys.argv[1])
from test_sweep import CONFIG, ENCODER, silent
from clipmill.tasks.sweep import sweep
if __name__ == "__main__":
    sweep(CONFIG, ENCODER, sys.argv[2], sys.argv[3], workers=int(sys.argv[4]), report=silent)
"""


def test_interrupted_and_resumed(whole, nyu_folder, tmp_path):
    """The short form of the drill below: stopped after its second point, in this process."""

    def stop(done, total, words):
        if words.startswith("points tried") and done == 2:
            raise KeyboardInterrupt

    store = str(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        sweep(CONFIG, ENCODER, str(nyu_folder), store, report=stop)
    done = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("model.json")}
    assert len(done) == 2
    result = read_sweep(sweep(CONFIG, ENCODER, str(nyu_folder), store, report=silent))
    assert figures(result) == figures(whole)
    after = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("model.json")}
    assert len(after) == len(whole.trials)
    assert done.items() <= after.items()


@pytest.mark.slow
def test_killed_and_resumed_by_two_workers(whole, nyu_folder, tmp_path):
    """What was done isn't done again, and the result is that of a sweep left alone."""
    script, store = tmp_path / "script.py", tmp_path / "store"
    script.write_text(SCRIPT)
    here = str(Path(__file__).parent)
    command = [sys.executable, str(script), here, str(nyu_folder), str(store)]
    environment = program_environment()
    process = subprocess.Popen([*command, "1"], env=environment, start_new_session=True)
    deadline = time.monotonic() + 120
    while not list(store.glob("evaluations/*/evaluation.json")):
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    done = {p: p.stat().st_mtime_ns for p in store.rglob("evaluation.json")}
    assert 0 < len(done) < len(whole.trials)
    assert not list(store.glob("sweeps/*/sweep.json"))
    subprocess.run([*command, "2"], env=environment, check=True, timeout=240)
    (result,) = store.glob("sweeps/*")
    assert figures(read_sweep(str(result))) == figures(whole)
    after = {p: p.stat().st_mtime_ns for p in store.rglob("evaluation.json")}
    assert done.items() <= after.items()


TPE = CONFIG.override(
    [
        "sampler=tpe",
        'grid={"model.drop_path": [0.0, 0.2]}',
        'ranges={"train.schedule.lr": {"low": 1e-4, "high": 1e-1, "log": true}}',
        "num_points=3",
        "points_per_round=2",
        "num_repeats=2",
    ]
)


def test_tpe_is_resumed_with_the_same_points(nyu_folder, tmp_path):
    """Stopped before the second round; the whole is that of a sweep left alone."""
    data, stops = str(nyu_folder), []

    def stop(done, total, words):
        if words.startswith("points tried") and (stops.append(words) or len(stops) == 2):
            raise KeyboardInterrupt

    store, other = str(tmp_path / "store"), str(tmp_path / "other")
    with pytest.raises(KeyboardInterrupt):
        sweep(TPE, ENCODER, data, store, report=stop)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("model.json")}
    assert len(before) == 2
    uri = sweep_uri(TPE, ENCODER, data, store)
    assert sweep(TPE, ENCODER, data, store, report=silent) == uri
    result = read_sweep(uri)
    assert before.items() <= {p: p.stat().st_mtime_ns for p in tmp_path.rglob("model.json")}.items()
    alone = replace(TPE, num_repeats=0)
    assert figures(result) == figures(read_sweep(sweep(alone, ENCODER, data, other, report=silent)))

    # The recipe's own values first; then what the results of the rounds before suggest.
    assert len(result.points) == 3
    assert result.points[0] == {"model.drop_path": DEPTH.drop_path, "train.schedule.lr": 1e-3}
    waves = [read_wave(TPE, wave, ENCODER, data, store) for wave in range(TPE.num_waves)]
    assert waves[0] == (0, result.points[:2])
    assert waves[1] == (0, result.points[2:])
    assert waves[2] == (1, [t.point for t in result.trials if t.rung == 1])
    assert waves[3] == (2, [t.point for t in result.repeats])
    assert {t.point["train.seed"] for t in result.repeats} == {1.0, 2.0}
    assert read_wave(TPE, TPE.num_waves, ENCODER, data, store) == (2, [])
    with pytest.raises(NotFoundError, match="has no result"):
        read_wave(TPE, 1, ENCODER, data, str(tmp_path / "empty"))

    page = sweep_page(result)
    assert "by tpe" in page
    (points,) = re.findall(r"Every point.*?</table>", page, re.DOTALL)
    assert all(f"<td>{p['train.schedule.lr']:g}</td>" in points for p in result.points)
    assert "further seeds" in page
    best = result.best.point
    assert f"{fmean(result.repeat_values(best)):.3f}" in page


def test_a_training_that_diverged_is_not_repeated(nyu_folder, tmp_path):
    diverging = replace(
        CONFIG.finetune, train=replace(TRAIN, steps=60, schedule=ScheduleConfig(lr=1e30))
    )
    arguments = (diverging, ENCODER, str(nyu_folder), str(tmp_path))
    assert run_trial(*arguments, silent) == ""
    assert run_trial(*arguments, fail) == ""


def test_whole_numbers_can_be_swept():
    config = CONFIG.override(['grid={"train.batch_size": [2, 4]}'])
    sizes = [config.config_for_rung(p, 0).train.batch_size for p in config.grid_points()]
    assert sizes == [2, 4]


def test_points_are_the_recipe_with_their_values():
    point = {"model.drop_path": 0.2, "train.schedule.lr": 3e-2}
    short, full = CONFIG.config_for_rung(point, 0), CONFIG.config_for_rung(point, 1)
    assert (short.model.drop_path, short.train.schedule.lr) == (0.2, 3e-2)
    assert (short.train.steps, short.train.schedule.warmup_steps) == (2, 1)
    assert full == replace(
        CONFIG.finetune,
        model=replace(DEPTH, drop_path=0.2),
        train=replace(TRAIN, schedule=replace(TRAIN.schedule, lr=3e-2)),
    )
    with pytest.raises(ConfigError, match=r"model\.dropped is not a field"):
        CONFIG.config_for_rung({"model.dropped": 1.0}, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("rungs=[0.5]", "rungs were"),
        ("rungs=[0.5, 0.5, 1.0]", "rungs were"),
        ("rungs=[]", "rungs were"),
        ("reduction_fraction=1.0", "reduction_fraction was"),
        ("grid={}", "grid was"),
        ('grid={"model.drop_path": []}', "grid was"),
        ("num_points=4", "sampler was grid, and num_points was set"),
        ('ranges={"model.head_dropout": {"low": 0, "high": 1}}', "and ranges was set"),
        ('ranges={"model.drop_path": {"low": 0, "high": 1}}', "both have model.drop_path"),
        ("sampler=tpe", "num_points was None"),
        ("sampler=genetic", "sampler was 'genetic'"),
    ],
)
def test_sweeps_that_make_no_sense(change, message):
    with pytest.raises(ConfigError, match=message):
        CONFIG.override([change])


def test_the_grid_goes_through_json():
    assert SweepConfig.from_json(CONFIG.to_json()) == CONFIG
    changed = CONFIG.override(['grid={"train.optimizer.layer_decay": [0.7, 1]}'])
    assert [p["train.optimizer.layer_decay"] for p in changed.grid_points()] == [0.7, 1.0]


def result(*values):
    trials = tuple(
        Trial(point=point, rung=0, evaluation="e" if value is not None else "", value=value)
        for point, value in zip(CONFIG.grid_points(), values, strict=True)
    )
    return SweepResult(
        uri="store/sweeps/x", task="depth", config=replace(CONFIG, rungs=(1.0,)), trials=trials
    )


def test_what_diverged_is_last():
    assert result(0.4, None, 0.3, float("nan")).best.value == 0.3
    with pytest.raises(TrainingError, match="all 4 points of the sweep diverged"):
        _ = result(None, None, None, None).best


def test_the_page(whole):
    page = sweep_page(whole)
    cells = re.findall(r"<td[^>]*background[^>]*>([^<]+)<small>(\d+%)", page)
    assert len(cells) == 4
    expected = sorted(
        (f"{t.value:.3f} m", f"{CONFIG.rungs[t.rung]:.0%}")
        for t in (whole.last_trial(point) for point in CONFIG.grid_points())
    )
    assert sorted(cells) == expected
    (framed,) = re.findall(r'<td class="best"[^>]*>([^<]+)', page)
    assert framed == f"{whole.best.value:.3f} m"
    # The tables: a head and their rows.
    assert page.count("<tr>") == (1 + 2) + (1 + 2) + (1 + 4)
    assert "The noise isn&#x27;t known" in page
    assert page.count("<circle") == len(whole.trials)
    assert "diverged" in sweep_page(result(0.4, None, 0.3, 0.2))


def test_command_promotes_the_best(nyu_folder, tmp_path, monkeypatch):
    def recipe() -> SweepConfig:
        return replace(CONFIG, rungs=(1.0,))

    monkeypatch.setitem(RECIPES, "sweep-depth-tiny", recipe)
    store = str(tmp_path / "store")
    options = ["--set", 'grid={"train.schedule.lr": [1e-3]}', "--store", store]
    command = ["sweep", "--encoder", ENCODER, "--data", str(nyu_folder), *options, "--min-metric"]
    answer = CliRunner().invoke(app, [*command, "100"])
    assert answer.exit_code == 0, answer.output
    uri, *_, model = answer.stdout.split("\n")[:-1]
    assert (Path(uri) / "sweep.html").exists()
    serving = read_promotion(str(tmp_path / "store" / "serving" / "depth"))
    assert serving.evaluation.model.uri == model
    from clipmill.lineage import lineage

    assert {p.role for p in lineage(uri).parents} == {"encoder", "data", "best"}
    refused = CliRunner().invoke(app, [*command, "0.001"])
    assert refused.exit_code == 3
    assert "not promoted: the best rmse is" in refused.stderr
    assert read_promotion(serving.uri).evaluation == serving.evaluation


TO_20 = (0.0, 0.05, 0.1, 0.15, 0.2)
TO_30 = (0.0, 0.05, 0.1, 0.15, 0.2, 0.25, 0.3)


@pytest.mark.parametrize(
    ("name", "drop_paths", "rates"),
    [
        ("sweep-mask-rcnn-1x", TO_30, (5e-4, 2e-4, 1e-4)),
        ("sweep-cascade-mask-rcnn-3x", TO_30, (5e-4, 2e-4, 1e-4)),
        ("sweep-upernet-vit-b16", TO_20, (5e-4, 2e-4, 1e-4)),
        ("sweep-semantic-fpn", TO_20, (5e-4, 2e-4, 1e-4)),
        ("sweep-depth-vit-b16", TO_20, (7e-4, 5e-4, 2e-4, 1e-4)),
    ],
)
def test_the_papers_grids(name, drop_paths, rates):
    """CLIP-QC, Tables 13, 14 and 15."""
    config = get_recipe(name, SweepConfig)
    assert config.grid == {"model.drop_path": drop_paths, "train.schedule.lr": rates}
    last = len(config.rungs) - 1
    assert config.rungs[last] == 1
    found = [config.config_for_rung(point, last) for point in config.grid_points()]
    assert {(c.model.drop_path, c.train.schedule.lr) for c in found} == {
        (drop, rate) for drop in drop_paths for rate in rates
    }

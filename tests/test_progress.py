"""Progress of a pipeline: position, time left, and the lines where there is no terminal."""

import io
import itertools
import json
import subprocess
import sys

import pytest
from rich.console import Console

from clipmill.progress import PLAN_EVENT, TimeLeft, render_progress

PLAN = [("shard", 10.0), ("pretrain", 100.0), ("pretrain", 100.0), ("report", 5.0)]


def test_position_counts_started_stages_and_grows_for_unplanned_ones():
    left = TimeLeft(PLAN, 0.0)
    assert left.position == "stage 1 of 4"
    left.start("shard pairs", "shard")
    left.finish("shard pairs", reused=False)
    left.start("pretrain G", "pretrain")
    assert left.position == "stage 2 of 4"
    left.start("surprise", "surprise")
    assert left.position == "stage 3 of 5"


@pytest.mark.parametrize("slowness", [0.5, 1.0, 4.0])
def test_time_left_is_scaled_by_measured_speed_and_never_jumps(slowness):
    """Stages take ``slowness`` times what is typical, told each second."""
    left, now, told = TimeLeft(PLAN, 0.0), 0.0, []
    for number, (stage, typical) in enumerate(PLAN):
        key = f"{stage} {number}"
        left.start(key, stage)
        seconds = round(typical * slowness)
        for second in range(1, seconds + 1):
            now += 1
            left.advance(key, second / seconds)
            told.append(left.remaining_seconds(now))
        left.finish(key, reused=False)
    assert left.fraction == 1
    assert max(abs(b - a) for a, b in itertools.pairwise(told)) < 10
    half = len(told) // 2
    assert told[half] == pytest.approx(len(told) - half, rel=0.35)
    assert told[-1] < 5
    assert left.describe(now) == "less than a minute left"


def test_reused_stages_take_their_work_out_of_the_time_left():
    left = TimeLeft(PLAN, 0.0)
    before = left.remaining_seconds(0.0)
    for number in range(2):
        left.start(f"pretrain {number}", "pretrain")
        left.finish(f"pretrain {number}", reused=True)
    assert left.remaining_seconds(20.0) < before / 4


def test_without_a_terminal_a_line_is_printed_per_finished_stage(tmp_path):
    events = tmp_path / "events.jsonl"
    told = [
        {"event": PLAN_EVENT, "stages": [["shard", 5], ["pretrain", 60]]},
        {"event": "start", "stage": "shard", "label": "pairs", "time": 0},
        {"event": "end", "stage": "shard", "label": "pairs", "seconds": 4.0, "reused": False},
        {"event": "start", "stage": "pretrain", "label": "G", "time": 4},
        {
            "event": "progress", "stage": "pretrain", "label": "G", "done": 1, "total": 2,
            "words": "loss 3", "remaining_seconds": None,
        },
        {"event": "failed", "stage": "pretrain", "label": "G", "seconds": 9.0, "words": "no"},
    ]  # fmt: skip
    events.write_text("".join(json.dumps(event) + "\n" for event in told))
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    output = io.StringIO()
    failed = render_progress(events, process, Console(file=output, width=40))
    assert failed == told[-1]
    first, second = output.getvalue().splitlines()
    assert first.split("   ")[0] == "✓ shard pairs"
    assert "stage 1 of 2, about 1 min left" in first
    assert "failed after 9.0 s" in second
    assert "\x1b" not in output.getvalue()

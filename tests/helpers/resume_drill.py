"""Runs that are killed at random places, in children forked from one process that knows torch.

A place is a number of calls and returns of Python functions, in any thread: so a run dies in a
step, between two, or while its state is being written, and the same seed kills at the same places.
"""

import hashlib
import json
import os
import random
import signal
import sys
import threading
import time
import traceback
from pathlib import Path

from clipmill.engine.config import AdamWConfig, ScheduleConfig, TrainConfig
from clipmill.engine.optim import build_optimizer
from clipmill.engine.trainer import train
from clipmill.errors import StoppedError
from helpers.regression import Regression, regression_batches

CONFIG = TrainConfig(
    steps=12,
    batch_size=8,
    schedule=ScheduleConfig(lr=1e-2, warmup_steps=2),
    optimizer=AdamWConfig(clip_norm=1.0),
    ema_decay=0.9,
    checkpoint_every=2,
    log_every=1,
)
STOPPED = 75
_WATCHED = ("clipmill", "pathlib", "tempfile")


def outcome(folder, seen=None, before=lambda: None):
    """Train to the end; a digest of the weights and the log, without its speeds."""

    def batches(cursor, dist):
        for step, batch in enumerate(regression_batches(cursor), start=cursor):
            if seen is not None:
                seen(step)
            yield batch

    before()
    trained = train(
        lambda dist: Regression(),
        batches,
        CONFIG,
        name="drill",
        checkpoint_uri=str(folder),
        report=lambda *_: None,
    )
    sys.setprofile(None)
    digest = hashlib.sha256()
    for name, tensor in sorted(trained.tensors.items()):
        digest.update(name.encode() + tensor.cpu().numpy().tobytes())
    log = [
        {k: v for k, v in r.items() if k not in {"samples_per_second", "data_wait", "mfu"}}
        for r in trained.log
    ]
    return digest.hexdigest() + json.dumps(log, sort_keys=True)


def counted(at, act):
    """Start counting; ``act`` is called once, at that many calls. The count so far, to be asked."""
    state = {"count": 0}

    def profile(frame, event, argument):
        if any(name in frame.f_code.co_filename for name in _WATCHED):
            state["count"] += 1
            if state["count"] == at:
                act()

    sys.setprofile(profile)
    threading.setprofile(profile)
    return lambda: state["count"]


def in_child(work):
    """The exit code of ``work``, done in a fork; minus the signal where one ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except StoppedError:
            code = STOPPED
        except BaseException:  # noqa: BLE001 - a child tells of anything
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_from_outside(work, seconds):
    """As ``in_child``, killed after that time unless it has ended."""
    child = os.fork()
    if child == 0:
        work()
        os._exit(0)
    time.sleep(seconds)
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def drill(folder, num_kills, kind, seed):
    """Kill that many times, run each to its end, and print what came out, a JSON object."""
    folder, draw = Path(folder), random.Random(seed)
    build_optimizer(Regression(), AdamWConfig())  # torch imports half of itself only now
    facts = {"kills": 0, "runs": 0, "wrong": 0, "codes": [], "lost_steps": 0}

    def straight():
        count = counted(-1, None)
        text = outcome(folder / "straight")
        (folder / "expected.txt").write_text(text)
        (folder / "count.txt").write_text(str(count()))

    started = time.perf_counter()
    assert in_child(straight) == 0
    lasted = time.perf_counter() - started
    total = int((folder / "count.txt").read_text())
    expected = (folder / "expected.txt").read_text()
    while facts["kills"] < num_kills:
        run = folder / f"run-{facts['runs']}"
        facts["runs"] += 1
        code = None
        while code != 0:
            number = signal.SIGTERM if kind == "term" else signal.SIGKILL
            at = draw.randrange(1, total) if facts["kills"] < num_kills else -1

            def attempt(run=run, number=number, at=at):
                steps = []
                last = run.parent / f"{run.name}.last"

                def seen(step):
                    steps.append(step)
                    # Written before the step: the step itself may never come.
                    last.write_text(f"{steps[0]} {step}")

                text = outcome(run, seen, lambda: counted(at, lambda: os.kill(os.getpid(), number)))
                (run.parent / f"{run.name}.txt").write_text(text)

            if kind == "outside" and at > 0:
                code = killed_from_outside(attempt, draw.random() * lasted)
            else:
                code = in_child(attempt)
            facts["codes"].append(code)
            if code != 0:
                facts["kills"] += 1
            if kind == "term" and code == STOPPED:
                # SIGTERM loses nothing: the step that was under way is in the state.
                saved = max(int(p.stem[5:]) for p in run.glob("step-*.json"))
                facts["lost_steps"] += int(last_step(run) + 1 != saved)
        if (folder / f"{run.name}.txt").read_text() != expected:
            facts["wrong"] += 1
    print(json.dumps(facts))


def last_step(run):
    """The last step that was begun."""
    return int((run.parent / f"{run.name}.last").read_text().split()[1])


if __name__ == "__main__":
    drill(sys.argv[1], int(sys.argv[2]), sys.argv[3], int(sys.argv[4]))

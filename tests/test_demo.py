"""The demo as a person runs it, made small: a folder with bad files in it, then the same again."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from PIL import Image

from clipmill.data.scenes.formats import write_caption_folder
from clipmill.data.scenes.world import SceneConfig

STEPS = ["train.steps=2", "train.batch_size=4", "train.log_steps=1", "train.num_threads=1"]
OVERRIDES = {
    "scenes_overrides": [
        "size=32",
        "num_pairs=4",
        "num_captioning=6",
        "num_labelled=4",
        "num_test=2",
    ],
    "captioner_overrides": [
        *STEPS,
        "model.clip.vision.image_size=32",
        "model.clip.text.vocab_size=600",
    ],
    "clip_overrides": [*STEPS, "model.vision.image_size=32", "model.text.vocab_size=600"],
    "finetune_overrides": [*STEPS, "model.crop_size=32"],
    "min_miou": 0.0,
    "max_rmse_metres": 99.0,
}
REASONS = {
    "caption-not-utf8",
    "caption-without-image",
    "empty-caption",
    "empty-file",
    "image-too-large",
    "no-caption",
    "unreadable-image",
}


def start(folder, images):
    options = f"folder=Path({str(folder)!r}), images=Path({str(images)!r}), overrides={OVERRIDES!r}"
    # A shell that starts the tests in the background has SIGINT ignored by all that come of them.
    code = f"""
import signal
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)
from clipmill.demo import DemoOptions, show_demo
show_demo(DemoOptions({options}), as_json=True)
"""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def living(folder):
    """Command lines of the processes that know the folder from their arguments or environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            known = command + (process / "environ").read_bytes()
        except OSError:  # it has ended, or isn't ours
            continue
        if str(folder).encode() in known and int(process.name) != os.getpid():
            found.append(command.replace(b"\0", b" ").decode())
    return found


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    folder = tmp_path_factory.mktemp("images")
    write_caption_folder(SceneConfig(size=48, seed=7), range(8), folder / "good", "alt")
    jpeg = (folder / "good/000000.jpg").read_bytes()
    for name, data in (("cut", jpeg[:200]), ("blank", jpeg), ("zero", b""), ("latin", jpeg)):
        (folder / f"{name}.jpg").write_bytes(data)
        (folder / f"{name}.txt").write_bytes(
            {"blank": b" \n", "latin": "café".encode("latin-1")}.get(name, b"a caption")
        )
    (folder / "mute.jpg").write_bytes(jpeg)
    (folder / "lonely.txt").write_text("a caption without an image")
    header = Image.new("1", (30_000, 30_000))
    header.save(folder / "huge.png")
    (folder / "huge.txt").write_text("a picture too large")
    return folder


def test_two_runs_give_a_page_that_lists_what_was_bad_and_leave_nothing_running(images, tmp_path):
    """One test: workers of xdist would each make a fixture's runs anew, minutes of them."""
    found = []
    for _ in range(2):
        process = start(tmp_path, images)
        output, progress = process.communicate(timeout=600)
        assert process.returncode == 0, progress
        found.append((json.loads(output), progress))
    (first, progress), (second, second_progress) = found
    page = (tmp_path / "report.html").read_text()
    assert first["page"] == str(tmp_path / "report.html")
    assert set(first["models"]) == {"depth", "segmentation"}
    for task in ("depth", "segmentation"):
        assert set(first["results"]["tasks"][task]["metrics"]) == {"G", "G+S"}
    assert first["results"]["quarantine"] == dict.fromkeys(REASONS, 1)
    assert [reason for reason in REASONS if reason not in page] == []
    assert "pretrain G+S" in progress

    assert second["models"] == first["models"]
    assert second["results"]["tasks"] == first["results"]["tasks"]
    stages = second["results"]["stages"]
    assert {stage["name"] for stage in stages if not stage["reused"]} == {"promote"}
    assert second_progress.count("reused") == len([stage for stage in stages if stage["reused"]])
    assert living(tmp_path) == []


def test_an_interrupted_run_leaves_nothing_behind(images, tmp_path):
    process = start(tmp_path, images)
    deadline = time.monotonic() + 120
    events = tmp_path / "events.jsonl"
    while not (events.exists() and "captioner" in events.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(living(tmp_path)) >= 3  # the command, the store, the pipeline
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=60)
    assert process.returncode != 0
    assert living(tmp_path) == []

"""The demo as a person runs it, made small: scenes, a folder of images, and an interruption."""

import json
import os
import shlex
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest
from PIL import Image

from clipmill.cli.evaluate import EXIT_NOT_PROMOTED
from clipmill.demo import DemoOptions, program, show_demo
from clipmill.errors import ConfigError, SourceError, StorageError
from clipmill.processes import free_port, port_owner
from clipmill.scenes.formats import write_caption_folder
from clipmill.scenes.geometry import SceneConfig

STEPS = ["train.steps=2", "train.batch_size=4", "train.log_every=1", "train.num_threads=1"]
OVERRIDES = {
    "scenes_overrides": [
        "size=32",
        "num_pairs=4",
        "num_captioner_pairs=6",
        "num_labeled=4",
        "num_test=2",
    ],
    "captioner_overrides": [
        *STEPS,
        "model.clip.vision.image_size=32",
        "model.clip.text.vocab_size=600",
    ],
    "clip_overrides": [
        *STEPS,
        "model.vision.image_size=32",
        "model.text.vocab_size=600",
        "view.subset_fraction=1.0",
        "validation.every=0",
    ],
    "finetune_overrides": [*STEPS, "model.crop_size=32"],
}
PHOTOS = {"clip_overrides": OVERRIDES["clip_overrides"]}
REASONS = {
    "caption_not_utf8",
    "caption_without_image",
    "duplicate_image",
    "empty_caption",
    "empty_file",
    "image_too_large",
    "missing_caption",
    "unreadable_image",
}


def start(folder, overrides, **options):
    """A demo in a process of its own."""
    given = ", ".join(f"{name}={value!r}" for name, value in options.items())
    code = f"""
from pathlib import Path
from pathlib import PosixPath
from clipmill.demo import DemoOptions, show_demo
options = DemoOptions(folder=Path({str(folder)!r}), overrides={overrides!r}, {given})
show_demo(options, as_json=False)
"""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def shown(process):
    """What it printed, once it has ended well."""
    output, errors = process.communicate(timeout=900)
    assert process.returncode == 0, output + errors
    assert "\x1b" not in output, "no terminal, no colors"
    return output


def command(output, comment, below=1):
    """The printed command below a comment."""
    lines = output.splitlines()
    return lines[next(i for i, line in enumerate(lines) if line.startswith(f"# {comment}")) + below]


def shell(line, **options):
    """What a printed command prints, as a person pastes it."""
    return subprocess.run(line, shell=True, check=True, capture_output=True, text=True, **options)


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
    write_caption_folder(SceneConfig(size=48, seed=7), range(24), folder / "good", "alt")
    jpeg = (folder / "good/000000.jpg").read_bytes()
    for name, data in (
        ("cut", jpeg[:200]),
        ("blank", jpeg),
        ("zero", b""),
        ("latin", jpeg),
        ("twin", jpeg),
    ):
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


def test_scenes_leave_artifacts_and_commands_that_work(tmp_path):
    """One test: workers of xdist would each make a fixture's runs anew, minutes of them."""
    folder, port = tmp_path / "my demo", free_port("127.0.0.1")
    output = shown(start(folder, OVERRIDES))
    store = folder / "store"
    assert f"Artifacts: {store}" in output
    assert "pretrain G+S" in output
    assert "left" in output
    runs = shell(command(output, "List the runs")).stdout
    assert "encoders/" in runs
    assert "captions: " in shell(command(output, "List the runs", 2)).stdout
    assert "No model is better than its gate" in output  # two updates teach nothing
    page = (folder / "report.html").read_text()
    assert "in a miniature world of procedural scenes" in page
    assert "No training log of a captioner" not in page
    assert "Spread of random weights" in page
    encoder = shlex.split(command(output, "Fine-tune"))[3]
    assert (Path(encoder) / "model.json").exists()
    shell(shlex.join([*program(), "export", encoder, "--output", str(tmp_path / "out")]))
    assert living(folder) == []
    assert not (folder / "tmp").exists()
    for evaluation in (store / "evaluations").iterdir():
        task = json.loads((evaluation / "evaluation.json").read_text())["task"]
        lenient = {"segmentation": "0", "depth": "99"}[task]
        words = ["promote", task, str(evaluation), "--min-metric", lenient, "--store", str(store)]
        promoted = subprocess.run([*program(), *words], check=False)
        assert promoted.returncode in {0, EXIT_NOT_PROMOTED}, "a better one may serve already"

    second = shown(start(folder, OVERRIDES, keep=True, port=port))
    lines = [line for line in second.splitlines() if line.startswith("✓")]
    assert {line.split()[1] for line in lines if "reused" not in line} == {
        "promote",
        "report",
        "serve",
    }
    shell(command(second, "One request"), cwd=tmp_path)
    with (
        Image.open(tmp_path / "segmentation.png") as answer,
        Image.open(folder / "test-image.png") as sent,
    ):
        assert answer.size == sent.size
    with urllib.request.urlopen(command(second, "Playground")) as page:
        assert b"<html" in page.read()
    again = start(folder, OVERRIDES, keep=True, port=port)
    _, errors = again.communicate(timeout=60)
    assert "an earlier demo is still up: endpoints (process " in errors
    assert "--stop" in errors
    stop = command(second, "Stop what is running")
    assert f"http://127.0.0.1:{port}" in shell(stop).stdout
    assert "nothing runs" in shell(stop).stdout
    assert living(folder) == []


def test_photographs_in_an_s3_store_with_bad_files(images, tmp_path):
    port = free_port("127.0.0.1")
    options = {"images": images, "s3": True, "keep": True, "port": port}
    output = shown(start(tmp_path, PHOTOS, **options))
    try:
        page = (tmp_path / "report.html").read_text()
        assert [reason for reason in REASONS if reason not in page] == []
        assert "recaption" not in output
        assert "Recaptioning was skipped" in page
        assert " pairs that it has not seen" in page
        settings = command(output, "Let other commands use the S3 server")
        # As in a shell of the user's, which knows of no store.
        plain = {k: v for k, v in os.environ.items() if not k.startswith("AWS_")}
        lineage = f"{settings} && {command(output, 'List the runs', 2)}"
        assert "captions: real" in shell(lineage, env=plain).stdout
        answer = json.loads(shell(command(output, "One request")).stdout)
        assert answer["outputs"]
    finally:
        stopped = shell(command(output, "Stop what is running")).stdout
    assert "stopped endpoints" in stopped
    assert "stopped S3 server" in stopped
    assert port_owner(port) == ""
    assert living(tmp_path) == []


def test_an_interrupted_run_leaves_nothing_behind_and_says_how_to_resume(tmp_path):
    # A shell that starts the tests in the background has SIGINT ignored by all that come of them.
    code = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)
sys.argv[0] = "clipmill"
from clipmill.cli import main
main()
"""
    words = ["demo", "--folder", str(tmp_path / "my demo")]
    process = subprocess.Popen(
        [sys.executable, "-c", code, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 120
    events = tmp_path / "my demo" / "events.jsonl"
    while not (events.exists() and "scenes" in events.read_text().partition("start")[2]):
        assert time.monotonic() < deadline
        time.sleep(0.1)
    assert len(living(tmp_path)) >= 2  # the command, the pipeline
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    again = shlex.join(["clipmill", *words])
    assert errors.splitlines()[-1] == f"stopped; the same command resumes: {again}"
    assert living(tmp_path) == []
    assert not (tmp_path / "my demo" / "tmp").exists()


def test_an_old_store_a_drawn_captioner_and_missing_images_are_refused_at_once(tmp_path):
    old = tmp_path / "store"
    old.mkdir()
    (old / "credentials.json").write_text("[]")
    with pytest.raises(StorageError, match="data files of an S3 server") as found:
        show_demo(DemoOptions(folder=tmp_path), as_json=False)
    assert found.value.action.startswith("move it away: mv ")
    with pytest.raises(ConfigError, match="--captioner was given without --images"):
        show_demo(DemoOptions(folder=tmp_path, captioner="blip:x"), as_json=False)
    with pytest.raises(ConfigError, match="can't caption photographs"):
        show_demo(
            DemoOptions(folder=tmp_path, images=tmp_path, captioner="template:x"), as_json=False
        )
    with pytest.raises(SourceError, match="is not a folder"):
        show_demo(DemoOptions(folder=tmp_path, images=tmp_path / "none"), as_json=False)

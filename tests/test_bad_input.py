"""Mistakes that people make at the command line: one clear message each, before any work."""

import errno
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import Literal

import pytest
import typer

from clipmill import cli
from clipmill.cli import entry
from clipmill.cli.options import require_output
from clipmill.config import Config
from clipmill.errors import (
    ArtifactError,
    ClusterError,
    ConfigError,
    NotFoundError,
    StoppedError,
    StorageError,
    suggestion,
)
from clipmill.lineage import read_artifact_file
from clipmill.models.checkpoint import read_metadata
from clipmill.recipes.registry import get_recipe
from clipmill.stage_records import Stage
from clipmill.storage import write_json


def raising(error):
    app = typer.Typer(pretty_exceptions_enable=False)

    @app.command()
    def command() -> None:
        raise error

    return app


def ran(app, *arguments):
    with pytest.raises(SystemExit) as ended:
        entry.run(app, arguments)
    return ended.value.code


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("a", expected="b", action="c"), 2, "error: a\n  expected: b\n"),
        (StoppedError("saved"), 75, "error: saved"),
        (ModuleNotFoundError("no", name="torch.nn"), 2, "pip install 'clipmill[model]'"),
        (ModuleNotFoundError("no", name="mmseg"), 2, "pip install 'clipmill[train]'"),
        (ModuleNotFoundError("no module", name="clipmill.gone"), 1, "this is a bug in clipmill"),
        (OSError(errno.ENOSPC, "No space left on device", "/x/y"), 2, "can't use /x/y: No space"),
        (KeyError("2d1169e1"), 1, "KeyError: '2d1169e1' ("),
        (ValueError("first\nsecond"), 1, "ValueError: first ("),
        (KeyboardInterrupt(), 130, "the same command resumes"),
    ],
)
def test_every_error_is_a_message_and_a_code(error, code, said, capsys):
    assert ran(raising(error)) == code
    written = capsys.readouterr().err
    assert said in written
    assert "Traceback" not in written
    assert ("--debug" in written) == (code == 1)


@pytest.mark.parametrize("arguments", [["--debug"], ["--debug", "--"]])
def test_debug_lets_the_exception_through(arguments):
    with pytest.raises(KeyError):
        entry.run(raising(KeyError("x")), arguments)


def test_debug_behind_two_dashes_is_the_commands_own(capsys):
    app = typer.Typer(pretty_exceptions_enable=False)
    seen = []

    @app.command()
    def command(words: list[str]) -> None:
        seen.extend(words)

    assert ran(app, "a", "--", "--debug") == 0
    assert seen == ["a", "--debug"]


def test_ctrl_c_is_one_line_and_130(tmp_path):
    """In a process of its own, while a command is at work."""
    code = (
        "import signal, sys, time; from clipmill import cli; from clipmill.cli import entry\n"
        # A shell starts background processes with SIGINT ignored.
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "def wait(): print('at work', flush=True); time.sleep(60)\n"
        "cli.app.command('wait')(wait); sys.argv = ['clipmill', 'wait']; cli.main()"
    )
    command = [sys.executable, "-c", code]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout.readline() == "at work\n"
        time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, written = process.communicate(timeout=30)
    assert process.returncode == 130
    assert written == "stopped; the same command resumes: clipmill wait\n"


@pytest.mark.parametrize("module", ["clipmill", "clipmill.pipelines.submit"])
def test_a_mistake_is_no_traceback_wherever_it_is_made(module, tmp_path):
    arguments = {"clipmill": ["lineage", "nothing"]}.get(module, ["nope", "--endpoint", "http://x"])
    command = [sys.executable, "-m", module, *arguments]
    found = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert found.returncode == 2
    assert found.stderr.startswith("error: ")
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([], "no command was given"),
        (["pretrian", "D"], "Did you mean 'pretrain'"),
        (["data", "shrad", "x"], "Did you mean 'shard'"),
        (["pretrain", "clip", "D"], "--store"),
        (["pretrain", "clip", "D", "--store", "s", "--caption", "real"], "--caption"),
        (["pretrain", "clip", "D", "--store", "s", "--recipe", "clip-minature"], "'clip-tiny'"),
        (["pretrain", "clip", "D", "--store", "s", "--set", "train.step=3"], "'train.steps'"),
        (["pretrain", "clip", "D", "--store", "s", "--set", "train.steps=many"], "a whole number"),
        (["--version"], "it runs nothing"),
    ],
)
def test_a_job_that_could_not_run_is_not_submitted(arguments, said):
    with pytest.raises(ConfigError) as caught:
        entry.check_command(cli.app, arguments)
    assert said in str(caught.value)


def test_a_job_that_can_run_is_only_parsed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["data", "generate-scenes", "--store", "out", "--set", "num_pairs=16"]
    entry.check_command(cli.app, command)
    entry.check_command(cli.app, ["finetune", "--encoder", "E", "--data", "D", "--store", "s3://b"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("function", ["status", "cancel"])
def test_a_handle_that_is_none_is_refused(function):
    from clipmill.cluster import submit

    with pytest.raises(ClusterError, match="isn't the handle of a job"):
        getattr(submit, function)("foo", torchx=None)


@pytest.mark.parametrize("place", ["missing/page.html", "", "file/page.html"])
def test_an_output_that_cannot_be_written_is_found_first(place, tmp_path):
    (tmp_path / "file").touch()
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(StorageError, match="can't write"):
        require_output(tmp_path / place)
    require_output(tmp_path / "page.html")
    require_output(tmp_path / "file")
    require_output(None)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "arguments",
    [
        ["data", "preview", "D", "--output", "no/x.html"],
        ["runs", "S", "--page", "no/x.html"],
        ["study", "compare", "S", "--output", "no/x.html"],
        ["eval", "attention", "E", "--data", "D", "--page", "no/x.html"],
        ["predict", "http://127.0.0.1:9", "picture.jpg", "--output", "no/x.png"],
        [
            *(
                "report",
                "--dataset",
                "D",
                "--caption-layer",
                "L",
                "--captioner",
                "C",
                "--encoder",
                "E",
            ),
            *("--evaluation", "V", "--store", "S", "--output", "no/x.html"),
        ],
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_every_command_that_writes_a_file_checks_it_first(arguments, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "picture.jpg").touch()
    assert ran(cli.app, *arguments) == 2
    assert "can't write no/x." in capsys.readouterr().err


@pytest.mark.parametrize("as_target", [False, True])
def test_a_store_that_cannot_be_written_stops_a_stage_before_its_work(as_target, tmp_path):
    (tmp_path / "file").touch()
    place = str(tmp_path / "file" / "store")
    with Stage("scenes", **{"target" if as_target else "store": place}) as stage:
        stage.set_output("reused")  # there's nothing to write
    with (
        pytest.raises(StorageError, match="can't write under"),
        Stage("scenes", **{"target" if as_target else "store": place}) as stage,
    ):
        stage.report(0, 5_120, "scenes")
    with Stage("scenes", store=str(tmp_path / "new" / "store")) as stage:
        stage.report(0, 5_120, "scenes")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_store_stops_a_stage(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(StorageError), Stage("scenes", store=str(tmp_path / "store")) as stage:
        stage.report(0, 1, "")


@dataclass(frozen=True, kw_only=True, slots=True)
class Inner(Config):
    rate: float = 0.1
    names: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Outer(Config):
    captions: Literal["real", "synthetic", "both"] = "real"
    is_fast: bool = True
    steps: int = 1
    limit: int | None = None
    size: tuple[int, int] = (1, 1)
    levels: Literal[1, 2] = 1
    weights: dict[str, float] | None = None
    inner: Inner = Inner()


@pytest.mark.parametrize(
    ("override", "expected", "action"),
    [
        ("captions=synth", "one of real, synthetic, both", "did you mean 'synthetic'?"),
        ("is_fast=yes", "true or false", "correct is_fast"),
        ("steps=1.5", "a whole number", "correct steps"),
        ("limit=few", "a whole number or null", "correct limit"),
        ("size=[1]", "a list of 2: a whole number, a whole number", "correct size"),
        ("inner.rate=fast", "a number", "correct inner.rate"),
        ("inner.names=3", "a list, each entry text", "correct inner.names"),
        ("inner=3", "the fields rate, names", "correct inner"),
        ("weights=3", "names, each with a number or null", "correct weights"),
        ("inner.rat=1", "one of inner.rate, inner.names", "did you mean 'inner.rate'?"),
        ("seed=1", "one of captions, is_fast", "instead of seed"),
    ],
)
def test_a_wrong_value_is_explained_in_words(override, expected, action):
    with pytest.raises(ConfigError) as caught:
        Outer().override([override])
    assert expected in caught.value.expected
    assert action in caught.value.action
    assert "Literal" not in str(caught.value)
    assert "NoneType" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "action"),
    [("clip-miniatur", "did you mean 'clip-tiny'?"), ("qqq", "choose one of these")],
)
def test_a_recipe_that_does_not_exist_has_a_neighbour(name, action):
    with pytest.raises(ConfigError, match="there is no recipe") as caught:
        get_recipe(name, Config)
    assert caught.value.action == action
    assert caught.value.expected == "a name that `clipmill recipes list` prints"
    assert suggestion("deph", ["depth", "detection"], "") == "did you mean 'depth'?"


def test_a_recipe_of_another_command_is_called_that():
    from clipmill.data.shards.plan import ShardConfig

    with pytest.raises(ConfigError, match="'clip-tiny' is a recipe of another command"):
        get_recipe("clip-tiny", ShardConfig)


def test_another_artifact_is_called_what_it_is(tmp_path):
    write_json(str(tmp_path / "d" / "dataset.json"), {})
    with pytest.raises(ArtifactError, match="d is a dataset, not a checkpoint"):
        read_metadata(str(tmp_path / "d"))
    write_json(str(tmp_path / "m" / "model.json"), {})
    with pytest.raises(ArtifactError, match="m is a checkpoint, not an evaluation"):
        read_artifact_file(str(tmp_path / "m"), "evaluation.json", "clipmill eval task")
    with pytest.raises(NotFoundError, match="there is no checkpoint at "):
        read_metadata(str(tmp_path / "nothing"))


def test_runs_of_a_folder_that_is_not_there_are_an_error(tmp_path, capsys):
    assert ran(cli.app, "runs", str(tmp_path / "nope")) == 2
    assert "there is nothing under" in capsys.readouterr().err
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "file").touch()
    assert ran(cli.app, "runs", str(tmp_path / "store")) == 0
    assert "no training runs yet" in capsys.readouterr().err


@pytest.mark.parametrize("body", [b"{", b"------boundary", b"hello"])
def test_a_body_that_is_neither_json_nor_an_image_is_told_the_header(body):
    from clipmill.serve.errors import BadRequestError
    from clipmill.serve.protocol.bodies import parse_v2

    with pytest.raises(BadRequestError, match="neither JSON nor an image") as caught:
        parse_v2(body, None, "depth")
    assert "Content-Type: image/jpeg" in str(caught.value)

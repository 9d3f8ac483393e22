"""The command as a person meets it, in a process of its own."""

import subprocess
import sys

import pytest
import typer

from clipmill.cli import entry
from clipmill.errors import (
    ConfigError,
    LostRankError,
    LostWorkerError,
    StorageError,
    StoreUnavailableError,
)

# As torchrun -m clipmill starts it.
RUN = [sys.executable, "-m", "clipmill"]


def clipmill(*arguments):
    return subprocess.run([*RUN, *arguments], capture_output=True, text=True, check=False)


def test_help_loads_nothing_heavy():
    code = "import sys; import clipmill.cli; print(sorted(sys.modules))"
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    ).stdout
    assert "'typer'" in loaded
    assert not [name for name in ("'torch'", "'kfp'", "'pyarrow'") if name in loaded]


def test_the_version():
    assert clipmill("--version").stdout.startswith("clipmill 0.")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["data", "shard", "no/such/folder", "--store", "out"], "no/such/folder"),
        (["data", "generate-scenes", "--store", "out", "--set", "num_pair=1"], "num_pairs"),
        (["data", "generate-scenes", "--store", "ftp://host/x"], "ftp"),
        (["recipes", "show", "clip-vit-b17-12.8b"], "did you mean 'clip-vit-b16-12.8b'?"),
        (["lineage", "nothing/here"], "nothing/here"),
        (["demo", "--images", "no/such/folder"], "no/such/folder"),
        (["serve", "depth"], "'depth' is not a model with its name"),
        (["serve", "depth=a", "depth=b"], "names a model twice"),
        (["serve", "depth=a", "--set", "max_batch=2"], "max_batch_size"),
        (["promote", "deth", "a", "--min-metric", "1", "--store", "out"], "depth"),
    ],
)
def test_a_mistake_is_one_message_and_code_2(arguments, said, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = clipmill(*arguments)
    assert found.returncode == 2
    assert said in found.stderr
    assert "expected:" in found.stderr
    assert "what to do:" in found.stderr
    assert "Traceback" not in found.stderr


@pytest.mark.parametrize(
    ("kind", "code"),
    [(StorageError, 2), (StoreUnavailableError, 1), (LostRankError, 1), (LostWorkerError, 1)],
)
def test_an_error_that_may_pass_has_a_code_that_is_retried(kind, code):
    app = typer.Typer()

    @app.command()
    def train():
        raise kind("no store", expected="one", action="start it")

    with pytest.raises(SystemExit) as ended:
        entry.run(app, [])
    assert ended.value.code == code


def test_debug_shows_the_traceback(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "Traceback" in clipmill("--debug", "lineage", "nothing/here").stderr


@pytest.mark.parametrize(
    ("error", "code", "reason"),
    [
        (ConfigError("no captioner", expected="a URI", action="give one"), 2, "no captioner"),
        (ZeroDivisionError("by 0\nline 2"), 1, "bug in clipmill: ZeroDivisionError: by 0"),
        (ConfigError("x" * 5000, expected="a URI", action="give one"), 2, "x" * 300),
    ],
)
def test_a_pods_status_names_the_error(error, code, reason, tmp_path, monkeypatch):
    log = tmp_path / "termination-log"
    monkeypatch.setattr(entry, "TERMINATION_LOG", log)
    app = typer.Typer()

    @app.command()
    def fail() -> None:
        raise error

    with pytest.raises(SystemExit) as outside:
        entry.run(app, [])
    assert outside.value.code == code
    assert not log.exists()
    log.touch()
    with pytest.raises(SystemExit):
        entry.run(app, [])
    assert log.read_text() == reason

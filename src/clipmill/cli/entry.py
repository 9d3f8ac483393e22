"""Run a Typer app, and turn every error into one clear message and an exit code."""

import errno
import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import typer
from typer.exceptions import TyperException

from clipmill.cli.extras import extra_of, missing_extra_error
from clipmill.config import Config
from clipmill.errors import (
    EXIT_PREEMPTED,
    EXIT_USER_ERROR,
    ClipmillError,
    ConfigError,
    LostRankError,
    StoppedError,
    StorageError,
    UserError,
)

EXIT_BUG: Final = 1
EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it
_DEBUG: Final = "--debug"
_DISK_ERRORS: Final = {errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EPERM, errno.EROFS}
_MAX_MESSAGE: Final = 300
TERMINATION_LOG: Final = Path("/dev/termination-log")
"""File in a Kubernetes container whose text becomes the reason that the pod's status shows."""


def run(app: typer.Typer, arguments: Sequence[str] | None = None) -> None:
    """Run the command in ``arguments`` (default: the process's) and exit.

    Exit codes: 2 for a user's mistake, 1 for anything unexpected, 75 for training that SIGTERM
    stopped after it saved its state, 130 for Ctrl-C. ``--debug`` anywhere before a ``--`` shows
    tracebacks instead.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    own = argv[: argv.index("--")] if "--" in argv else argv
    is_debug = _DEBUG in own
    rest = [text for text in own if text != _DEBUG] + argv[len(own) :]
    try:
        app(rest)
    except KeyboardInterrupt:
        _interrupted()
    except SystemExit as ended:
        # Typer turns Ctrl-C into this exit code.
        if ended.code == EXIT_INTERRUPTED:
            _interrupted()
        raise
    except Exception as error:
        if is_debug:
            raise
        sys.exit(_print_error(error))


@dataclass(frozen=True, kw_only=True, slots=True)
class CheckedCommand:
    """A command that could run."""

    config: Config | None
    """Config of its recipe, ``--set`` included; None of a command without one."""
    dataset: str
    """URI of its dataset; empty for a command without one."""


def check_command(app: typer.Typer, arguments: Sequence[str]) -> CheckedCommand:
    """Parse a command, recipe and ``--set`` included, without running it.

    Raises:
        ConfigError: the app couldn't run it.
    """
    from clipmill.recipes.registry import get_recipe

    parsed: dict[str, Any] | None = None

    def record(**values: Any) -> None:
        nonlocal parsed
        parsed = values

    command: Any = typer.main.get_command(app)
    _replace_commands(command, record)
    problem = "it runs nothing" if arguments else "no command was given"
    try:
        if arguments:
            command(list(arguments), standalone_mode=False)
    except TyperException as error:
        problem = error.format_message() or problem
    if parsed is None:
        raise ConfigError(
            f"can't submit {shlex.join(['clipmill', *arguments])!r}: {problem}",
            expected="a command of clipmill with its arguments, after --",
            action="try it with --help instead of its arguments",
        )
    config = None
    if "recipe" in parsed:
        config = get_recipe(parsed["recipe"], Config, parsed.get("sets") or ())
    return CheckedCommand(config=config, dataset=parsed.get("dataset", ""))


def _replace_commands(command: Any, callback: Callable[..., None]) -> None:
    """Let every command below a group call ``callback`` with its parameters instead."""
    for child in command.commands.values():
        if hasattr(child, "commands"):
            _replace_commands(child, callback)
        else:
            child.callback = callback


def _interrupted() -> None:
    again = shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]])
    sys.stderr.write(f"stopped; the same command resumes: {again}\n")
    sys.exit(EXIT_INTERRUPTED)


def _print_error(error: Exception) -> int:
    """Print an error for the user; return the exit code."""
    known = _known(error)
    if known is not None:
        sys.stderr.write(f"error: {known}\n")
        _report_to_kubernetes(str(known))
        if isinstance(known, StoppedError):
            return EXIT_PREEMPTED
        is_final = isinstance(known, UserError) and not isinstance(known, LostRankError)
        return EXIT_USER_ERROR if is_final else EXIT_BUG
    last = traceback.extract_tb(error.__traceback__)[-1]
    lines = str(error).strip().splitlines() or [""]
    what = f"{type(error).__name__}: {lines[0][:_MAX_MESSAGE]}".removesuffix(": ")
    _report_to_kubernetes(f"bug in clipmill: {what}")
    sys.stderr.write(
        f"this is a bug in clipmill: {what} ({last.filename}, line {last.lineno})\n"
        f"run again with {_DEBUG} for the traceback, and report it with the command\n"
    )
    return EXIT_BUG


def _report_to_kubernetes(message: str) -> None:
    """Show an error's first line as the pod's reason; nothing outside of a pod."""
    if TERMINATION_LOG.is_file():
        with suppress(OSError):
            TERMINATION_LOG.write_text(message.partition("\n")[0][:_MAX_MESSAGE])


def _known(error: Exception) -> ClipmillError | None:
    """Return the error as one of clipmill's own; None for an unexpected one."""
    if isinstance(error, ClipmillError):
        return error
    if isinstance(error, ModuleNotFoundError) and error.name:
        extra = extra_of(error.name)
        return missing_extra_error(extra, error.name) if extra else None
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS and error.filename:
        return StorageError(
            f"can't use {error.filename}: {error.strerror}",
            expected="a path that this process may use, on a disk with room",
            action="fix its permissions, free some space, or give another path",
        )
    return None

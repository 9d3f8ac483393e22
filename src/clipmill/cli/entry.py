"""Run a Typer app: accept old names, and turn errors into one message and an exit code."""

import errno
import shlex
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import typer
from typer.core import TyperGroup
from typer.exceptions import TyperException

from clipmill.cli.extras import extra_of, missing_extra_error
from clipmill.config import Config
from clipmill.deprecations import COMMANDS, OPTIONS, warn_renamed
from clipmill.errors import (
    EXIT_PREEMPTED,
    EXIT_USER_ERROR,
    ClipmillError,
    ConfigError,
    LostRankError,
    LostWorkerError,
    StoppedError,
    StorageError,
    StoreUnavailableError,
    UserError,
)

EXIT_FAILURE: Final = 1
EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it
_DEBUG: Final = "--debug"
_DISK_ERRORS: Final = {errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EPERM, errno.EROFS}
_MAX_MESSAGE: Final = 300
TERMINATION_LOG: Final = Path("/dev/termination-log")
"""File in a Kubernetes container whose text becomes the reason that the pod's status shows."""


def run(app: typer.Typer, arguments: Sequence[str] | None = None) -> None:
    """Run the command in ``arguments`` (default: the process's) and exit.

    Exit codes: 2 for a user's mistake, 1 for any other failure, 75 for training that SIGTERM
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
        may_pass = isinstance(known, LostRankError | LostWorkerError | StoreUnavailableError)
        is_final = isinstance(known, UserError) and not may_pass
        return EXIT_USER_ERROR if is_final else EXIT_FAILURE
    last = traceback.extract_tb(error.__traceback__)[-1]
    lines = str(error).strip().splitlines() or [""]
    what = f"{type(error).__name__}: {lines[0][:_MAX_MESSAGE]}".removesuffix(": ")
    _report_to_kubernetes(f"bug in clipmill: {what}")
    sys.stderr.write(
        f"this is a bug in clipmill: {what} ({last.filename}, line {last.lineno})\n"
        f"run again with {_DEBUG} for the traceback, and report it with the command\n"
    )
    return EXIT_FAILURE


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


_HELP: Final = ("-h", "--help")
_PRETRAIN: Final = ("clip", "mae", "supervised", *_HELP)
_RECIPES: Final = ("list", "show", *_HELP)


def current_arguments(arguments: Sequence[str], *, completing: bool = False) -> list[str]:
    """Return a command line with current names for old commands and options.

    Prints a warning for each old name, unless the shell is ``completing`` the line.

    Raises:
        ConfigError: ``report`` was given a study, which ``study compare`` takes now.
    """
    start = next((i for i, text in enumerate(arguments) if not text.startswith("-")), None)
    if start is None:
        return list(arguments)
    before, rest = list(arguments[:start]), list(arguments[start:])
    old, new, rest = _current_command(rest, completing=completing)
    if old != new and not completing:
        warn_renamed(f'"clipmill {old}"', f'"clipmill {new}"')
    command = new.split()
    while rest and (" ".join([*command, rest[0]]) in OPTIONS or command in (["cluster"], ["data"])):
        command.append(rest.pop(0))
    names = OPTIONS.get(" ".join(command), {})
    return [*before, *command, *_current_options(rest, names, completing=completing)]


def _current_command(arguments: list[str], *, completing: bool) -> tuple[str, str, list[str]]:
    """Return the old name, the current name and the arguments after it."""
    first, *rest = arguments
    if first == "report" and _is_of_study(rest):
        raise ConfigError(
            '"clipmill report" of studies and evaluations is now "clipmill study compare"',
            expected="report --dataset URI --encoder URI ..., which was clipmill page",
            action='write "clipmill study compare" with the same arguments',
        )
    if first == "pretrain" and rest and rest[0] not in _PRETRAIN:
        return "pretrain", "pretrain clip", rest
    if first == "recipes" and not rest and not completing:
        return "recipes", "recipes list", rest
    if first == "recipes" and rest and rest[0] not in _RECIPES:
        return "recipes NAME", "recipes show", ["--json", *rest]
    if first == "recipes":
        return first, first, rest
    pair = " ".join(arguments[:2])
    if pair in COMMANDS:
        return pair, COMMANDS[pair], arguments[2:]
    return first, COMMANDS.get(first, first), rest


def _is_of_study(arguments: Sequence[str]) -> bool:
    """Return whether arguments of ``report`` are those of clipmill 0.1."""
    if not arguments or "--dataset" in arguments or arguments[0] in _HELP:
        return False
    return not arguments[0].startswith("-") or bool({"--csv", "--latex"} & {*arguments})


def _current_options(
    arguments: Sequence[str], names: Mapping[str, str], *, completing: bool
) -> list[str]:
    """Return arguments with current options; what follows ``--`` is another command's."""
    current: list[str] = []
    position = 0
    while position < len(arguments):
        text = arguments[position]
        if text == "--":
            break
        option, separator, value = text.partition("=")
        following = value if separator else next(iter(arguments[position + 1 : position + 2]), "")
        position += 1
        if (both := f"{option} {following}") in names:
            current += names[both].split()
            position += not separator
        elif option in names:
            both = option
            current += names[option].split()
            if separator:
                current[-1] += f"={value}"
        else:
            current.append(text)
            continue
        if not completing:
            warn_renamed(f'"{both}"', f'"{names[both]}"')
    return [*current, *arguments[position:]]


class CommandGroup(TyperGroup):
    """Root of the commands: lists them in the order of a project, and accepts old names."""

    order: tuple[str, ...] = ()

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parse the root's options, after old names were replaced in all arguments."""
        return super().parse_args(ctx, current_arguments(args, completing=ctx.resilient_parsing))

    def list_commands(self, ctx: Any) -> list[str]:
        """Return the commands' names in the order of the help."""
        names = super().list_commands(ctx)
        place = {name: index for index, name in enumerate(self.order)}
        return sorted(names, key=lambda name: place.get(name, len(place)))

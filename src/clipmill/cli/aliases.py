"""Old names of commands and options: rewritten before parsing, with a warning each."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from typer.core import TyperGroup

from clipmill.deprecations import COMMANDS, OPTIONS, warn_renamed
from clipmill.errors import ConfigError

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
    """Whether arguments of ``report`` are those that it had in clipmill 0.1."""
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

"""Rules of robots.txt (RFC 9309), and opt-outs in ``X-Robots-Tag`` headers.

The standard library's parser has neither wildcards nor the precedence of the longest rule.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass

MAX_ROBOTS_BYTES = 500 * 1024
"""Bytes of a robots.txt that are parsed: the least that RFC 9309, 2.5, asks for."""

_OPT_OUTS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})

# Directives with a value, whose colon doesn't follow a crawler's name.
_WITH_VALUES = frozenset(
    {"max-snippet", "max-image-preview", "max-video-preview", "unavailable_after"}
)

_LINE = re.compile(r"\s*([A-Za-z-]+)\s*:\s*([^#]*)")

_ESCAPE = re.compile(r"%[0-9a-fA-F]{2}")


@dataclass(frozen=True, slots=True)
class _Rule:
    length: int
    """Characters of the pattern: the longest rule that matches counts."""
    is_allowed: bool
    parts: tuple[str, ...]
    """The pattern between its wildcards."""
    is_anchored: bool
    """True if the pattern ends where the path does."""

    def matches(self, target: str) -> bool:
        """Return whether a path and query match, in linear time."""
        first, *others = self.parts
        if not target.startswith(first):
            return False
        position = len(first)
        last = others.pop() if others and self.is_anchored else None
        for part in others:
            start = target.find(part, position)
            if start < 0:
                return False
            position = start + len(part)
        if last is not None:
            return target.endswith(last) and len(target) - len(last) >= position
        return not self.is_anchored or position == len(target)


class RobotsRules:
    """Rules of one robots.txt that apply to one crawler."""

    def __init__(self, text: str, token: str) -> None:
        """``token``: the crawler's product token, in lower case."""
        named, general = _groups(text, token)
        rules = general if named is None else named
        # Of equally long rules the one that allows counts.
        self._rules = sorted(rules, key=lambda rule: (rule.length, rule.is_allowed), reverse=True)

    def allows(self, target: str) -> bool:
        """Return whether the path and query of a URL may be fetched."""
        target = _normalize(target)
        return next((r.is_allowed for r in self._rules if r.matches(target)), True)


def _groups(text: str, token: str) -> tuple[list[_Rule] | None, list[_Rule]]:
    """Return the rules for the crawler (None where no group names it), and those for all."""
    named: list[_Rule] | None = None
    general: list[_Rule] = []
    agents: set[str] = set()
    is_open = False  # whether the group's names are still being listed
    for line in text.removeprefix("\ufeff").splitlines():
        match = _LINE.match(line)
        if not match:
            continue
        key, value = match[1].lower(), match[2].strip()
        if key == "user-agent":
            agents = {*(agents if is_open else ()), _product(value)}
            is_open = True
            if token in agents and named is None:
                named = []
        elif key in ("allow", "disallow"):
            is_open = False
            if not value:
                continue
            rule = _rule(value, is_allowed=key == "allow")
            if token in agents and named is not None:
                named.append(rule)
            if "*" in agents:
                general.append(rule)
    return named, general


def _product(value: str) -> str:
    """Return the product token of a crawler's name: ``Bot/2.1`` is ``bot``."""
    return "*" if value.startswith("*") else re.split(r"[/\s]", value, maxsplit=1)[0].lower()


def _rule(value: str, *, is_allowed: bool) -> _Rule:
    value = _normalize(value)
    parts = tuple(value.removesuffix("$").split("*"))
    return _Rule(len(value), is_allowed, parts, value.endswith("$"))


def _normalize(path: str) -> str:
    """Return a path with one spelling: non-ASCII characters escaped, others not (RFC 9309, 2.2.2).

    Escapes of reserved characters stay, since they mean something else than the character.
    """
    quoted = "".join(
        c if c.isascii() else "".join(f"%{b:02X}" for b in c.encode("utf-8", "replace"))
        for c in path
    )
    return _ESCAPE.sub(_unescape, quoted)


def _unescape(match: re.Match[str]) -> str:
    character = chr(int(match[0][1:], 16))
    is_unreserved = character.isascii() and (character.isalnum() or character in "-._~")
    return character if is_unreserved else match[0].upper()


def opt_out(values: Iterable[str], token: str) -> str:
    """Return the directive of ``X-Robots-Tag`` headers that opts out of training, or ``""``.

    Directives behind another crawler's name don't count.
    """
    for value in values:
        agent = ""
        for part in value.split(","):
            name, colon, directive = part.strip().lower().partition(":")
            if colon and name.strip() not in _WITH_VALUES:
                agent, name = name.strip(), directive
            if agent in ("", "*", token) and name.strip() in _OPT_OUTS:
                return name.strip()
    return ""

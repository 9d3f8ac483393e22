"""The members of a tar by their headers alone: where each lies, without reading or unpacking it.

Understands ustar, GNU long names and PAX records, which is what tar writers of today make. A name
is only ever text here, so one such as ``../../x`` leads nowhere.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from clipmill.data.sources.files import Descriptor

_BLOCK = 512
# Extended headers hold a name or a few records; more is an attempt to exhaust memory.
_MAX_EXTENSION_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Member:
    """A plain file in a tar."""

    name: str
    header: int
    """Where its first header begins, in bytes."""
    offset: int
    """Where its content begins, in bytes."""
    size: int
    """Bytes of its content."""


class CutTarError(Exception):
    """The tar ends, or stops being one, before its end."""


def members(file: Descriptor, start: int, stop: int) -> Iterator[Member]:
    """Yield the plain files whose headers begin in ``start`` to ``stop`` (byte offsets).

    Raises CutTarError after the last whole member where the tar is damaged or cut; other kinds of
    members (folders, links, devices) are passed over.
    """
    end = file.size
    position = header = start
    extension: dict[str, str] = {}
    while position < min(stop, end):
        block = file.read(position, _BLOCK)
        if not block.strip(b"\0"):
            if len(block) == _BLOCK or extension:
                break  # the end mark: blocks of zeros
            raise CutTarError(f"no whole header at byte {position}")
        kind, size = _check(block, position)
        offset = position + _BLOCK
        following = offset + -(-size // _BLOCK) * _BLOCK
        if kind in b"LxgK":
            if size > _MAX_EXTENSION_BYTES:
                raise CutTarError(f"an extended header of {size} bytes at byte {position}")
            content = file.read(offset, size)
            if len(content) < size:
                raise CutTarError(f"ends within the member at byte {position}")
            if kind == b"L":
                extension["path"] = _text(content.rstrip(b"\0"))
            elif kind == b"x":
                extension |= _pax(content, position)
            position = following
            continue
        if "size" in extension:
            size = _number(extension["size"], position)
            following = offset + -(-size // _BLOCK) * _BLOCK
        if offset + size > end:
            raise CutTarError(f"ends within the member at byte {position}")
        if kind in b"0\0":
            yield Member(extension.get("path") or _name(block), header, offset, size)
        extension = {}
        position = header = following
    if extension:
        raise CutTarError(f"a name without its member at byte {header}")


def _check(block: bytes, position: int) -> tuple[bytes, int]:
    """The kind and size that a header states, if its checksum is right."""
    try:
        stated = int(block[148:156].strip(b" \0") or b"x", 8)
        # Sizes past 8 GiB are binary, marked by the first bit (GNU).
        binary = block[124] & 0x80
        size = int.from_bytes(block[125:136]) if binary else int(block[124:136].strip(b" \0"), 8)
    except (ValueError, IndexError) as error:
        raise CutTarError(f"no header at byte {position}") from error
    # The checksum is taken with its own field as spaces.
    if len(block) < _BLOCK or sum(block) - sum(block[148:156]) + 8 * 0x20 != stated or size < 0:
        raise CutTarError(f"no header at byte {position}")
    return block[156:157], size


def _name(block: bytes) -> str:
    name = block[:100].split(b"\0", 1)[0]
    prefix = block[345:500].split(b"\0", 1)[0] if block[257:263] == b"ustar\0" else b""
    return _text(prefix + b"/" + name if prefix else name)


def _pax(content: bytes, position: int) -> dict[str, str]:
    """The path and size of PAX records, each ``length key=value newline``."""
    found = {}
    while content:
        length, _, rest = content.partition(b" ")
        size = _number(_text(length), position)
        record = rest[: size - len(length) - 2]
        if size > len(content) or size < len(length) + 3:
            raise CutTarError(f"broken records in the header at byte {position}")
        key, _, value = record.partition(b"=")
        if key in (b"path", b"size"):
            found[key.decode()] = _text(value)
        content = content[size:]
    return found


def _number(text: str, position: int) -> int:
    if not (text.isascii() and text.isdigit()) or len(text) > 18:
        raise CutTarError(f"a length of {text[:20]!r} in the header at byte {position}")
    return int(text)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")

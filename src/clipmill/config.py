"""Frozen dataclass configs: JSON both ways, a digest, and strict ``path=value`` overrides.

Digests are SHA-256 over bytes, files and JSON values. A config's digest is part of the address of
what is made with it, and overrides of unknown paths or wrong types are errors: that is why the
parser is ours.

Every config derives from :class:`Config`. Field types are those that JSON can hold: ``bool``,
``int``, ``float``, ``str``, ``Literal``, ``tuple[T, ...]``, ``dict[str, T]``, another Config,
and any of these ``| None``. A field of :func:`runtime_field` affects how work is done, not its
result, and is left out of the digest. One of :func:`added_field` is left out of JSON and digest
while it has its default.
"""

import dataclasses
import hashlib
import itertools
import json
import sys
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import (
    Any,
    ClassVar,
    Literal,
    Self,
    TypeAlias,
    TypeVar,
    Union,
    get_args,
    get_origin,
    get_type_hints,
)

from clipmill.errors import ArtifactError, ConfigError, suggestion
from clipmill.version import clipmill_version

_RUNTIME = "runtime"
_ADDED = "added"

ValueT = TypeVar("ValueT")


def sha256_bytes(data: bytes | memoryview) -> str:
    """Return the SHA-256 of ``data`` (hex)."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the SHA-256 of a file's content (hex), read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def canonical_json(value: object) -> str:
    """Return the only JSON text of a value: sorted keys, no spaces, no NaN (ValueError)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_json(value: object) -> str:
    """Return the SHA-256 of a value's canonical JSON (hex)."""
    return sha256_bytes(canonical_json(value).encode())


def flatten(value: Mapping[str, Any], path: str = "") -> dict[str, Any]:
    """Return the values of nested mappings by dotted path."""
    flat: dict[str, Any] = {}
    for name, item in value.items():
        is_nested = isinstance(item, Mapping)
        full_path = _dotted(path, name)
        flat |= flatten(item, full_path) if is_nested else {full_path: item}
    return flat


def runtime_field(default: ValueT) -> ValueT:
    """Return a field that the digest leaves out, such as an interval, a port or a folder."""
    field: ValueT = dataclasses.field(default=default, metadata={_RUNTIME: True})
    return field


def added_field(default: ValueT) -> ValueT:
    """Return a field that JSON and digest leave out where it has its default.

    Configs without it so keep their digests, which are parts of artifacts' addresses.
    """
    field: ValueT = dataclasses.field(default=default, metadata={_ADDED: True})
    return field


@dataclasses.dataclass(frozen=True, kw_only=True, slots=True)
class Config:
    """Base of every config."""

    RENAMED_FIELDS: ClassVar[Mapping[str, str]] = {}
    """Fields' names in JSON that clipmill 0.1 stored, and their names now."""
    REMOVED_FIELDS: ClassVar[Mapping[str, str]] = {}
    """Fields that clipmill 0.1 stored, which had no effect on a result, and what replaces them."""
    RENAMED_VALUES: ClassVar[Mapping[str, Mapping[str, str]]] = {}
    """By field (its name now), choices' names that clipmill 0.1 stored, and their names now."""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values, nested configs included."""
        return {f.name: _to_plain_json(getattr(self, f.name)) for f in _stored_fields(self)}

    @classmethod
    def from_json(cls, value: object, path: str = "") -> Self:
        """Build from plain JSON values; a missing, unknown or ill-typed field is a ConfigError."""
        if not isinstance(value, dict):
            raise _wrong_type_error(path or cls.__name__, value, cls)
        hints = get_type_hints(cls)
        fields = {f.name: f for f in dataclasses.fields(cls)}
        value = {cls.RENAMED_FIELDS.get(name, name): item for name, item in value.items()}
        value = {name: item for name, item in value.items() if name not in cls.REMOVED_FIELDS}
        for name, choices in cls.RENAMED_VALUES.items():
            if isinstance(value.get(name), str):
                value[name] = choices.get(value[name], value[name])
        for name in value:
            if name not in fields:
                raise _unknown_field_error(_dotted(path, name), cls)
        kwargs = {}
        for name, field in fields.items():
            if name in value:
                kwargs[name] = _parse(value[name], hints[name], _dotted(path, name))
            elif _is_required(field):
                raise ConfigError(
                    f"{_dotted(path, name)} is missing",
                    expected=_describe_type(hints[name]),
                    action=f"set {_dotted(path, name)}",
                )
        config = cls(**kwargs)
        for name in kwargs:
            _require_sign(config, name, _dotted(path, name))
        return config

    @classmethod
    def from_stored(cls, value: object, uri: str) -> Self:
        """Build from the JSON of the artifact at ``uri``.

        Raises:
            ArtifactError: another version of clipmill wrote it, with fields that this one lacks.
        """
        try:
            return cls.from_json(value)
        except ConfigError as error:
            raise ArtifactError(
                f"clipmill {clipmill_version()} can't read the config of {uri}: {error.what}",
                expected="an artifact that this version wrote, or 0.1",
                action="make it again with this version, or use the one that wrote it",
            ) from error

    @property
    def digest(self) -> str:
        """SHA-256 over the canonical JSON of all fields but the runtime ones (hex)."""
        return digest_json(_identity(self))

    def override(self, assignments: Sequence[str]) -> Self:
        """Return a copy with each ``path.to.field=value`` applied, and then validated.

        So fields that depend on one another may be set in any order; of two values of a field the
        last counts.

        A value is read as JSON where the field isn't a string (``1e-3``, ``true``, ``[1, 2]``,
        ``null``); for a string field it is taken as it stands. A field of a nested config that is
        null turns it on, with its defaults. An entry of a list of configs is named by its index,
        from 0 on: ``filters.1.settings.epsilon=0.03``.
        """
        edits = []
        for assignment in assignments:
            path, equals, text = assignment.partition("=")
            if not equals or not path:
                raise ConfigError(
                    f"{assignment!r} is not an override",
                    expected="path.to.field=value",
                    action="write it as --set path.to.field=value",
                )
            edits.append((path.strip().split("."), text))
        return _edit(self, edits, "")


ConfigT = TypeVar("ConfigT", bound=Config)


def current_path(config: Config, path: str) -> str:
    """Return a field's path, such as ``train.schedule.lr``, given as clipmill 0.1 named it."""
    name, _, rest = path.partition(".")
    name = config.RENAMED_FIELDS.get(name, name)
    child = getattr(config, name, None)
    return f"{name}.{current_path(child, rest) if isinstance(child, Config) else rest}".rstrip(".")


_Edit: TypeAlias = tuple[Sequence[str], str]
"""A path below a config or value, empty for itself, and the text that it is set to."""


def _edit(config: ConfigT, edits: Sequence[_Edit], done: str) -> ConfigT:
    """Apply edits to a config, and validate it once; ``done`` is its own path."""
    if not edits:
        return config
    hints = get_type_hints(type(config))
    changes = {}
    for name, below in _by_first_name(edits).items():
        path = _dotted(done, name)
        if name not in hints:
            raise _unknown_field_error(path, type(config))
        changes[name] = _edit_value(getattr(config, name), hints[name], below, path)
    changed = dataclasses.replace(config, **changes)
    for name in changes:
        _require_sign(changed, name, _dotted(done, name))
    return changed


def _edit_value(value: Any, hint: Any, edits: Sequence[_Edit], path: str) -> Any:
    """Apply edits to a field's value, in their order: of the whole value, or of fields below it."""
    for is_below, group in itertools.groupby(edits, key=lambda edit: bool(edit[0])):
        if is_below:
            value = _edit_below(value, hint, list(group), path)
            continue
        for _, text in group:
            value = _parse(_read(text, hint), hint, path)
    return value


def _edit_below(value: Any, hint: Any, edits: Sequence[_Edit], path: str) -> Any:
    """Apply edits to fields of a config, or to entries of a mapping or of a list of configs."""
    if value is None:
        value = _optional_default(hint)
    if isinstance(value, Config):
        return _edit(value, edits, path)
    if isinstance(value, dict):
        _, kind = get_args(hint)
        entries = dict(value)
        for key, below in _by_first_name(edits).items():
            if below[0][0] and not isinstance(entries.get(key), Config):
                raise _no_fields_error(path, [key, *below[0][0]], hint)
            entries[key] = _edit_value(entries.get(key), kind, below, _dotted(path, key))
        return entries
    if isinstance(value, tuple):
        items = list(value)
        for key, below in _by_first_name(edits).items():
            for rest, _ in below:
                if not _names_entry(value, [key, *rest]):
                    raise _no_fields_error(path, [key, *rest], hint)
            items[int(key)] = _edit(items[int(key)], below, _dotted(path, key))
        return tuple(items)
    raise _no_fields_error(path, edits[0][0], hint)


def _by_first_name(edits: Sequence[_Edit]) -> dict[str, list[_Edit]]:
    grouped: dict[str, list[_Edit]] = {}
    for (name, *rest), text in edits:
        grouped.setdefault(name, []).append((rest, text))
    return grouped


def _no_fields_error(path: str, rest: Sequence[str], hint: Any) -> ConfigError:
    return ConfigError(
        f"{path} has no fields, so {'.'.join([path, *rest])} can't be set",
        expected=f"{_describe_type(hint)} for {path}",
        action=f"set {path}=VALUE",
    )


def _names_entry(entries: tuple[object, ...], path: Sequence[str]) -> bool:
    """Return whether ``path`` is a field of one of the configs of a list: its index comes first."""
    index, *field = path
    is_index = index.isascii() and index.isdigit() and int(index) < len(entries)
    return is_index and bool(field) and isinstance(entries[int(index)], Config)


def _optional_default(hint: Any) -> Config | None:
    """Return the default of a nested config that may be null; None if it has required fields."""
    kinds = [kind for kind in _alternatives(hint) if isinstance(kind, type)]
    kind = next((kind for kind in kinds if issubclass(kind, Config)), None)
    if kind is None or any(_is_required(field) for field in dataclasses.fields(kind)):
        return None
    return kind()


def _require_sign(config: Config, name: str, path: str) -> None:
    """Refuse a negative number for a field whose default isn't one: a count, size, rate or time."""
    value: Any = getattr(config, name)
    default: Any = type(config).__dataclass_fields__[name].default
    are_numbers = isinstance(value, int | float) and isinstance(default, int | float)
    if are_numbers and value < 0 <= default:
        raise ConfigError(
            f"{path} was {value}", expected="0 or more", action=f"set {path} to 0 or more"
        )


def _read(text: str, hint: Any) -> object:
    kinds = _alternatives(hint)
    if type(None) in kinds and text in {"null", "none", "None"}:
        return None
    may_be_other = any(kind in kinds for kind in (bool, int, float))
    if (str in kinds and not may_be_other) or any(get_origin(kind) is Literal for kind in kinds):
        return text
    try:
        return json.loads(text)
    except ValueError:
        # Not JSON, or an integer of too many digits to be read as one.
        return text


def _parse(value: object, hint: Any, path: str) -> object:
    for kind in _alternatives(hint):
        fits, parsed = _coerce(value, kind, path)
        if fits:
            return parsed
    raise _wrong_type_error(path, value, hint)


def _coerce(value: object, kind: Any, path: str) -> tuple[bool, object]:
    """Return whether ``value`` fits ``kind``, and the value that the field then holds."""
    origin = get_origin(kind)
    if kind is type(None):
        return value is None, None
    if origin is Literal:
        return value in get_args(kind), value
    if origin is tuple:
        return _parse_tuple(value, get_args(kind), path)
    if origin is dict:
        if not isinstance(value, dict):
            return False, None
        item = get_args(kind)[1]
        return True, {str(k): _parse(v, item, _dotted(path, str(k))) for k, v in value.items()}
    if isinstance(kind, type) and issubclass(kind, Config):
        if isinstance(value, kind):
            return True, value
        return isinstance(value, dict), kind.from_json(value, path) if isinstance(
            value, dict
        ) else None
    if kind is float:
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        # False for NaN, infinities, and integers that no float can hold.
        fits = is_number and abs(value) <= sys.float_info.max  # type: ignore[arg-type]
        return fits, float(value) if fits else None  # type: ignore[arg-type]  # narrowed by `fits`
    if kind is int:
        return isinstance(value, int) and not isinstance(value, bool), value
    return isinstance(value, kind), value


def _parse_tuple(value: object, items: tuple[Any, ...], path: str) -> tuple[bool, object]:
    if not isinstance(value, list | tuple):
        return False, None
    if len(items) == 2 and items[1] is Ellipsis:
        items = (items[0],) * len(value)
    if len(items) != len(value):
        return False, None
    return True, tuple(
        _parse(v, kind, f"{path}[{i}]")
        for i, (v, kind) in enumerate(zip(value, items, strict=True))
    )


def _stored_fields(config: Config) -> "list[dataclasses.Field[Any]]":
    """Return the fields without those of :func:`added_field` that have their default."""
    return [
        f
        for f in dataclasses.fields(config)
        if _ADDED not in f.metadata or getattr(config, f.name) != f.default
    ]


def _to_plain_json(value: object) -> object:
    if isinstance(value, Config):
        return value.to_json()
    if isinstance(value, tuple | list):
        return [_to_plain_json(v) for v in value]
    if isinstance(value, dict):
        return {k: _to_plain_json(v) for k, v in value.items()}
    return value


def _identity(value: object) -> object:
    """Return what ``_to_plain_json`` does, without runtime fields."""
    if isinstance(value, Config):
        fields = (f for f in _stored_fields(value) if _RUNTIME not in f.metadata)
        return {f.name: _identity(getattr(value, f.name)) for f in fields}
    if isinstance(value, tuple | list):
        return [_identity(v) for v in value]
    if isinstance(value, dict):
        return {k: _identity(v) for k, v in value.items()}
    return value


def _alternatives(hint: Any) -> tuple[Any, ...]:
    return get_args(hint) if get_origin(hint) in {Union, types.UnionType} else (hint,)


def _is_required(field: "dataclasses.Field[Any]") -> bool:
    missing = dataclasses.MISSING
    return field.default is missing and field.default_factory is missing


def _dotted(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


_TYPE_NAMES = {
    bool: "true or false",
    dict: "names with values",
    float: "a number",
    int: "a whole number",
    str: "text",
    type(None): "null",
}


def _describe_type(hint: Any) -> str:
    """Describe a field's type for people who write JSON and ``--set``, not Python."""
    origin, items = get_origin(hint), get_args(hint)
    if origin is Literal:
        names = [item if isinstance(item, str) else json.dumps(item) for item in items]
        return ("one of " if len(names) > 1 else "") + ", ".join(names)
    if origin in {Union, types.UnionType}:
        return " or ".join(_describe_type(item) for item in items)
    if origin is dict:
        return f"names, each with {_describe_type(items[1])}"
    if origin is tuple and items[-1] is Ellipsis:
        return f"a list, each entry {_describe_type(items[0])}"
    if origin is tuple:
        return f"a list of {len(items)}: {', '.join(map(_describe_type, items))}"
    if issubclass(hint, Config):
        return "the fields " + ", ".join(field.name for field in dataclasses.fields(hint))
    return _TYPE_NAMES[hint]


def _unknown_field_error(path: str, cls: type[Config]) -> ConfigError:
    parent = path.rpartition(".")[0]
    names = [_dotted(parent, f.name) for f in dataclasses.fields(cls)]
    last = path.rpartition(".")[2]
    renamed = cls.RENAMED_FIELDS.get(last)
    if instead := cls.REMOVED_FIELDS.get(last):
        action = f"use {instead} instead, since clipmill 0.2"
    elif renamed:
        action = f"use {_dotted(parent, renamed)}, its name since clipmill 0.2"
    else:
        action = suggestion(path, names, otherwise=f"use one of these instead of {path}")
    return ConfigError(
        f"{path} is not a field of {cls.__name__}",
        expected=f"one of {', '.join(names)}" if names else "no field at all",
        action=action,
    )


def _wrong_type_error(path: str, value: object, hint: Any) -> ConfigError:
    choices = [
        item
        for kind in _alternatives(hint)
        if get_origin(kind) is Literal
        for item in get_args(kind)
        if isinstance(item, str)
    ]
    return ConfigError(
        f"{path} was {value!r}",
        expected=_describe_type(hint),
        action=suggestion(str(value), choices, otherwise=f"correct {path}"),
    )

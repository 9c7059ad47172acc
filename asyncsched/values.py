"""Arguments, results and metadata as bytes: typed, tagged data that no reader has to trust.

MessagePack with extension types for what it lacks. Reading never imports a module and never calls anything but the
constructors of dataclasses, msgspec structs, pydantic models and enums that the process has already loaded.
"""

from __future__ import annotations

import dataclasses
import enum
import pickle
import sys
import warnings
from collections.abc import Callable
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from typing import Any, Protocol
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec

from asyncsched.errors import SerializationError

__all__ = ["DataSerializer", "PickleSerializer", "Serializer"]

_MAX_DEPTH = 100
_PLAIN = frozenset({type(None), bool, float, bytes})


class Serializer(Protocol):
    """How arguments, results and metadata become bytes. The first byte of what is stored names the serializer."""

    #: One byte, kept in front of the data: b"D" and b"P" are taken.
    tag: bytes

    def dumps(self, value: Any, path: str) -> bytes:
        """Encode; a value that cannot be stored raises SerializationError that begins with *path* to it."""
        ...

    def loads(self, data: bytes) -> Any:
        """Decode what ``dumps`` gave; raises SerializationError."""
        ...


class DataSerializer:
    """The default: None, bool, int, float, str, bytes, dates and times, timedelta, UUID, Decimal, enums, dataclasses,
    msgspec structs, pydantic models, and lists, dicts, sets and tuples of these, each restored as what it was."""

    tag = b"D"

    def dumps(self, value: Any, path: str) -> bytes:
        try:
            return _encoder.encode(_tagged(value, path, 0))
        except (msgspec.MsgspecError, UnicodeEncodeError, OverflowError) as error:
            raise SerializationError(f"{path}: cannot be stored: {error}") from error

    def loads(self, data: bytes) -> Any:
        try:
            return _decoder.decode(data)
        except Exception as error:  # Constructors of users' classes may raise what they like.
            raise SerializationError(f"stored data cannot be read: {error}") from error


class PickleSerializer:
    """Opt-in: stores what pickle can. Whoever can write to the store can then run code in your workers."""

    tag = b"P"

    def __init__(self) -> None:
        warnings.warn(
            "PickleSerializer lets whoever can write to the job store run code in this process; "
            "use it only where the store is as trusted as the code",
            UserWarning,
            stacklevel=2,
        )

    def dumps(self, value: Any, path: str) -> bytes:
        try:
            return pickle.dumps(value)
        except Exception as error:
            raise SerializationError(f"{path}: cannot be pickled: {error}") from error

    def loads(self, data: bytes) -> Any:
        try:
            return pickle.loads(data)
        except Exception as error:
            raise SerializationError(f"stored pickle cannot be read: {error}") from error


def _tagged(value: Any, path: str, depth: int) -> Any:
    """*value* in terms of MessagePack and this module's extension types."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is str:
        return value if value.isascii() else _encodable(value, path)
    if kind is int:
        return value if -(1 << 63) <= value < 1 << 64 else _ext(_INT, hex(value))
    if depth > _MAX_DEPTH:
        raise SerializationError(f"{path}: nested deeper than {_MAX_DEPTH} levels, or it contains itself")
    depth += 1
    if kind is list:
        return [_tagged(item, f"{path}[{i}]", depth) for i, item in enumerate(value)]
    if kind is dict:
        return _tagged_dict(value, path, depth)
    write = _WRITERS.get(kind)
    if write is not None:
        return write(value, path, depth)
    return _tagged_object(value, kind, path, depth)


def _encodable(text: str, path: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise SerializationError(f"{path}: cannot be stored: {error}") from error
    return text


def _tagged_dict(value: dict[Any, Any], path: str, depth: int) -> Any:
    if all(type(key) is str for key in value):
        return {key: _tagged(item, f"{path}.{key}", depth) for key, item in value.items()}
    pairs = [
        [_tagged(key, f"{path} key {key!r}", depth), _tagged(item, f"{path}[{key!r}]", depth)]
        for key, item in value.items()
    ]
    return _ext(_DICT, pairs)


def _tagged_object(value: Any, kind: type, path: str, depth: int) -> Any:
    name = f"{kind.__module__}:{kind.__qualname__}"
    if isinstance(value, enum.Enum):
        return _ext(_OBJECT, [name, _tagged(value.value, f"{path}.value", depth)])
    fields = _fields_of(value, kind)
    if fields is None:
        raise SerializationError(
            f"{path}: {kind.__qualname__} cannot be stored; pass plain data, a dataclass, a msgspec struct or a pydantic "
            f"model, or give the scheduler a serializer that knows it"
        )
    if "<locals>" in name:
        raise SerializationError(
            f"{path}: {name} is a local class and cannot be found again; define it in a module"
        )
    return _ext(_OBJECT, [name, {key: _tagged(item, f"{path}.{key}", depth) for key, item in fields.items()}])


def _fields_of(value: Any, kind: Any) -> dict[str, Any] | None:
    if dataclasses.is_dataclass(kind):
        return {f.name: getattr(value, f.name) for f in dataclasses.fields(kind) if f.init}
    if isinstance(value, msgspec.Struct):
        return {name: getattr(value, name) for name in kind.__struct_fields__}
    if _is_pydantic(kind):
        return {name: getattr(value, name) for name in kind.model_fields} | (value.model_extra or {})
    return None


def _is_pydantic(kind: type) -> Any:
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and issubclass(kind, pydantic.BaseModel)


def _restored_object(name: str, payload: Any) -> Any:
    module_name, _, qualname = name.partition(":")
    kind: Any = sys.modules.get(module_name)
    for part in qualname.split("."):
        kind = getattr(kind, part, None)
    if not isinstance(kind, type) or kind.__qualname__ != qualname:
        raise SerializationError(
            f"{name} is not loaded here; import {module_name} where the scheduler is made"
        )
    return _constructed(kind, name, payload)


def _constructed(kind: Any, name: str, payload: Any) -> Any:
    if issubclass(kind, enum.Enum):
        return kind(payload)
    make: Callable[..., Any] = kind
    if dataclasses.is_dataclass(kind) or issubclass(kind, msgspec.Struct):
        return make(**payload)
    if _is_pydantic(kind):
        return _model(kind, payload)
    raise SerializationError(f"{name} is not a dataclass, struct, model or enum")


def _model(kind: Any, payload: dict[str, Any]) -> Any:
    """A pydantic model of its fields by name, whatever aliases its JSON has."""
    if getattr(kind, "__pydantic_root_model__", False):
        return kind.model_validate(payload["root"])
    if any(info.validation_alias is not None for info in kind.model_fields.values()):
        return kind.model_validate(payload, by_alias=False, by_name=True)
    return kind.model_validate(payload)


# Extension codes of this format: they are stored, so none is ever given another meaning.
_INT, _DICT, _TUPLE, _SET, _FROZENSET, _DATETIME, _DATE, _TIME, _TIMEDELTA, _UUID, _DECIMAL, _OBJECT = range(
    1, 13
)


def _ext(code: int, payload: Any) -> msgspec.msgpack.Ext:
    return msgspec.msgpack.Ext(code, _encoder.encode(payload))


def _items(value: Any, path: str, depth: int) -> list[Any]:
    return [_tagged(item, f"{path}[{i}]", depth) for i, item in enumerate(value)]


def _datetime_form(value: datetime) -> list[Any]:
    if isinstance(value.tzinfo, ZoneInfo) and value.tzinfo.key:
        return [value.tzinfo.key, value.isoformat()]
    return [None, value.isoformat()]


def _restored_datetime(form: list[Any]) -> datetime:
    zone, text = form
    value = datetime.fromisoformat(text)
    if zone is None:
        return value
    local = value.astimezone(ZoneInfo(zone))
    # A time that a gap skips has no instant of its own: its wall time is what counts.
    wall = value.replace(tzinfo=None)
    if local.replace(tzinfo=None, fold=0) == wall:
        return local
    skipped = wall.replace(tzinfo=local.tzinfo)
    return skipped if skipped.utcoffset() == value.utcoffset() else skipped.replace(fold=1)


_WRITERS: dict[type, Callable[[Any, str, int], Any]] = {
    tuple: lambda v, p, d: _ext(_TUPLE, _items(v, p, d)),
    set: lambda v, p, d: _ext(_SET, _items(v, p, d)),
    frozenset: lambda v, p, d: _ext(_FROZENSET, _items(v, p, d)),
    datetime: lambda v, p, d: _ext(_DATETIME, _datetime_form(v)),
    date: lambda v, p, d: _ext(_DATE, v.isoformat()),
    time: lambda v, p, d: _ext(_TIME, v.isoformat()),
    timedelta: lambda v, p, d: _ext(_TIMEDELTA, [v.days, v.seconds, v.microseconds]),
    UUID: lambda v, p, d: _ext(_UUID, v.bytes),
    Decimal: lambda v, p, d: _ext(_DECIMAL, str(v)),
}

_READERS: dict[int, Callable[[Any], Any]] = {
    _INT: lambda text: int(text, 0),
    _DICT: dict,
    _TUPLE: tuple,
    _SET: set,
    _FROZENSET: frozenset,
    _DATETIME: _restored_datetime,
    _DATE: date.fromisoformat,
    _TIME: time.fromisoformat,
    _TIMEDELTA: lambda parts: timedelta(*parts),
    _UUID: lambda data: UUID(bytes=data),
    _DECIMAL: Decimal,
    _OBJECT: lambda form: _restored_object(*form),
}


def _restore(code: int, data: memoryview) -> Any:
    read = _READERS.get(code)
    if read is None:
        raise SerializationError(
            f"stored data has the unknown type code {code}; was it written by a newer version?"
        )
    return read(_decoder.decode(data))


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(ext_hook=_restore)

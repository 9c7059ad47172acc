"""Definitions, cursors and log entries as bytes, with a version in front."""

from __future__ import annotations

import sys
from typing import Generic, TypeVar

import msgspec

from asyncsched.definition import (
    Cursor,
    Definition,
    InstanceForm,
    OrphanForm,
    RetryForm,
    Roster,
    RunForm,
    SpanForm,
)
from asyncsched.errors import NewerFormatError, SerializationError
from asyncsched.model import Retry

__all__ = [
    "decode_cursor",
    "decode_definition",
    "decode_instance",
    "decode_orphans",
    "decode_roster",
    "decode_run",
    "decode_span",
    "encode",
    "retry_from",
    "retry_to",
]

#: Stands in front of every form. A reader refuses higher ones, so that a record of a newer version is left to newer code.
FORMAT = 1

T = TypeVar("T")
_FRESH = Cursor()


class _Sealed(msgspec.Struct, Generic[T], frozen=True, array_like=True, gc=False):
    format: int
    form: T


_encoder = msgspec.msgpack.Encoder()
_definitions = msgspec.msgpack.Decoder(_Sealed[Definition])
_cursors = msgspec.msgpack.Decoder(_Sealed[Cursor])
_runs = msgspec.msgpack.Decoder(_Sealed[RunForm])
_spans = msgspec.msgpack.Decoder(_Sealed[SpanForm])
_instances = msgspec.msgpack.Decoder(_Sealed[InstanceForm])
_rosters = msgspec.msgpack.Decoder(_Sealed[Roster])
_orphans = msgspec.msgpack.Decoder(_Sealed[OrphanForm])


def encode(
    form: Definition | Cursor | RunForm | SpanForm | InstanceForm | Roster | OrphanForm,
) -> bytes:
    """The blob of a form."""
    return _encoder.encode((FORMAT, form))


def decode_definition(blob: bytes) -> Definition:
    """Raises NewerFormatError for a blob of a later version, SerializationError for one that cannot be read."""
    return _decode(_definitions, blob)


def decode_cursor(blob: bytes) -> Cursor:
    """As decode_definition; an empty blob is the cursor of a job that has not run."""
    return _decode(_cursors, blob) if blob else _FRESH


def decode_run(blob: bytes) -> RunForm:
    """As decode_definition."""
    return _decode(_runs, blob)


def decode_span(blob: bytes) -> SpanForm:
    """As decode_definition."""
    return _decode(_spans, blob)


def decode_instance(blob: bytes) -> InstanceForm:
    """As decode_definition."""
    return _decode(_instances, blob)


def decode_roster(blob: bytes) -> Roster:
    """As decode_definition."""
    return _decode(_rosters, blob)


def decode_orphans(blob: bytes) -> OrphanForm:
    """As decode_definition."""
    return _decode(_orphans, blob)


def _decode(decoder: msgspec.msgpack.Decoder[_Sealed[T]], blob: bytes) -> T:
    try:
        sealed = decoder.decode(blob)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError) as error:
        _refuse_newer(blob)
        raise SerializationError(f"the stored data cannot be read: {error}") from error
    if sealed.format != FORMAT:
        _refuse_newer(blob)
        raise SerializationError(
            f"the stored data is of format {sealed.format}, which no version of asyncsched writes"
        )
    return sealed.form


def _refuse_newer(blob: bytes) -> None:
    """Raise NewerFormatError if that is what the blob is, however its form may look."""
    try:
        outer = msgspec.msgpack.decode(blob)
    except (msgspec.MsgspecError, ValueError, TypeError, RecursionError):
        return
    if isinstance(outer, list) and outer and isinstance(outer[0], int) and outer[0] > FORMAT:
        raise NewerFormatError(
            f"stored in format {outer[0]}, and this version of asyncsched reads up to {FORMAT}: upgrade this instance"
        )


def retry_to(retry: Retry) -> RetryForm:
    """A Retry as it is stored: error classes become ``module:qualname``."""
    return RetryForm(
        max_attempts=retry.max_attempts,
        base=retry.base,  # type: ignore[arg-type]  # a Retry holds seconds once it is made
        multiplier=retry.multiplier,
        max_delay=retry.max_delay,  # type: ignore[arg-type]  # likewise
        spread=retry.spread,
        delays=retry.delays,  # type: ignore[arg-type]  # likewise
        on=tuple(map(_class_name, retry.on)),  # type: ignore[arg-type]  # and a tuple, never one class
        never_on=tuple(map(_class_name, retry.never_on)),  # type: ignore[arg-type]  # likewise
    )


def retry_from(form: RetryForm) -> Retry:
    """The Retry of its stored form. A class that is not loaded here cannot have been raised here, so it is left out."""
    return Retry(
        max_attempts=form.max_attempts,
        base=form.base,
        multiplier=form.multiplier,
        max_delay=form.max_delay,
        spread=form.spread,
        delays=form.delays,
        on=_loaded(form.on),
        never_on=_loaded(form.never_on),
    )


def _class_name(kind: type) -> str:
    return f"{kind.__module__}:{kind.__qualname__}"


def _loaded(names: tuple[str, ...]) -> tuple[type[BaseException], ...]:
    found = []
    for name in names:
        module_name, _, qualname = name.partition(":")
        kind: object = sys.modules.get(module_name)
        for part in qualname.split("."):
            kind = getattr(kind, part, None)
        if isinstance(kind, type) and issubclass(kind, BaseException):
            found.append(kind)
    return tuple(found)

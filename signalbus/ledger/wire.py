"""Batches of facts to bytes and back. Pure.

One JSON object: ``v`` (the version), who tells, the number of the first fact, and the facts as arrays, see
`signalbus.ledger.facts`. Members and trailing array elements that are not known are ignored, missing trailing ones
take their defaults, so that releases of one version can add to both. Anything else is a new version.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields, replace
from typing import cast

import orjson

from ..errors import SignalBusError
from .facts import STEPS, Batch, Level, Origin, Row

VERSION = 1
SEQUENCES = range(1, 2**62)


class LedgerError(SignalBusError):
    """Base of the errors of reading the ledger."""


class MalformedBatch(LedgerError):
    """Raised when bytes are not a batch of facts."""


class NewerBatch(LedgerError):
    """Raised when a batch was written by a newer version, which only a newer version can read."""


def encode(batch: Batch) -> bytes:
    """Return a batch as bytes. Text that is no Unicode (lone surrogates) is replaced, never refused."""
    origin = batch.origin
    members: dict[str, object] = {
        "v": VERSION,
        "recorder": origin.recorder,
        "session": origin.session,
        "name": origin.name,
        "host": origin.host,
        "pid": origin.pid,
        "level": origin.level,
        "share": origin.share,
        "first": batch.first,
        "dropped": batch.dropped,
        "facts": batch.rows,
    }
    try:
        return orjson.dumps(members)
    except TypeError:
        return orjson.dumps(_clean(members))


def writable(batch: Batch) -> Batch:
    """Return a batch that was not sent as it would have arrived: with text that any store takes."""
    try:
        orjson.dumps(batch.rows)
    except TypeError:
        rows = [tuple(cast("list[object]", _clean(row))) for row in batch.rows]
        return replace(batch, rows=rows)
    return batch


def decode(encoded: bytes) -> Batch:
    """Return a batch, every row checked. Raises `NewerBatch` or `MalformedBatch` saying what is wrong."""
    members = _members(encoded)
    origin = Origin(
        recorder=_text(members, "recorder"),
        session=_text(members, "session"),
        name=_text(members, "name", ""),
        host=_text(members, "host", ""),
        pid=_integer(members, "pid", 0),
        level=_text(members, "level", Level.ALL.value),
        share=_share(members),
    )
    rows = members.get("facts")
    if not isinstance(rows, list):
        raise MalformedBatch("not a batch of facts: 'facts' is not an array")
    first = _integer(members, "first", 0)
    if first not in SEQUENCES:
        raise MalformedBatch(f"not a batch of facts: 'first' is {first}, not a number from 1 on")
    checked = [_checked(row, index) for index, row in enumerate(cast("list[object]", rows))]
    return Batch(origin=origin, first=first, rows=checked, dropped=_integer(members, "dropped", 0))


def _members(encoded: bytes) -> Mapping[str, object]:
    try:
        found = cast("object", orjson.loads(encoded))
    except ValueError as error:
        raise MalformedBatch(f"not a batch of facts: {error}") from error
    if not isinstance(found, dict):
        raise MalformedBatch(f"not a batch of facts: {type(found).__name__} instead of a JSON object")
    members = cast("dict[str, object]", found)
    version = members.get("v")
    if type(version) is not int or version < 1:
        raise MalformedBatch("not a batch of facts: its version 'v' is missing")
    if version > VERSION:
        raise NewerBatch(
            f"a batch of facts has version {version}, this signalbus reads up to {VERSION}; "
            "update the router before the services that it collects from"
        )
    return members


def _text(members: Mapping[str, object], name: str, default: str | None = None) -> str:
    value = members.get(name, default)
    if not isinstance(value, str):
        raise MalformedBatch(f"not a batch of facts: {name!r} is not a string")
    return value


def _integer(members: Mapping[str, object], name: str, default: int) -> int:
    value = members.get(name, default)
    if not _is_integer(value):
        raise MalformedBatch(f"not a batch of facts: {name!r} is not a number that fits")
    return cast("int", value)


def _share(members: Mapping[str, object]) -> float:
    value = members.get("share", 1.0)
    if not _is_number(value):
        raise MalformedBatch("not a batch of facts: 'share' is not a number")
    return float(cast("float", value))


# Rows


def _is_text(value: object) -> bool:
    return type(value) is str


def _is_integer(value: object) -> bool:
    return type(value) is int and -(2**62) < value < 2**62  # an unsigned 64-bit number would not fit into a store


def _is_number(value: object) -> bool:
    return type(value) in (float, int) and -1e15 < cast("float", value) < 1e15


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(type(item) is str for item in cast("list[object]", value))


_CHECKS: dict[str, Callable[[object], bool]] = {
    "str": _is_text,
    "int": _is_integer,
    "bool": lambda value: type(value) is bool,
    "str | None": lambda value: value is None or type(value) is str,
    "int | None": lambda value: value is None or _is_integer(value),
    "float | None": lambda value: value is None or _is_number(value),
    "tuple[str, ...] | None": lambda value: value is None or _is_texts(value),
}
# By kind: the checks of its fields in order, and how many of them must be there.
_SHAPES = {
    kind: (
        tuple((field.name, _CHECKS[str(field.type)]) for field in fields(step)),
        sum(field.default is MISSING for field in fields(step)),
    )
    for kind, step in STEPS.items()
}


def _checked(row: object, index: int) -> Row:
    if not isinstance(row, list) or len(items := cast("list[object]", row)) < 2:
        raise MalformedBatch(f"fact {index} of the batch is not an array of kind, time and fields")
    shape = _SHAPES.get(items[0]) if isinstance(items[0], str) else None
    if shape is None:
        raise MalformedBatch(f"fact {index} of the batch is of no known kind: {ascii(items[0])[:80]}")
    if not _is_number(items[1]):
        raise MalformedBatch(f"fact {index} of the batch has no time")
    checks, needed = shape
    if len(items) < 2 + needed:
        raise MalformedBatch(f"fact {index} of the batch, {items[0]}, lacks {checks[len(items) - 2][0]!r}")
    for (name, check), value in zip(checks, items[2:], strict=False):
        if not check(value):
            raise MalformedBatch(f"fact {index} of the batch, {items[0]}: {name!r} is {ascii(value)[:80]}")
    return tuple(items[: 2 + len(checks)])


def _clean(value: object) -> object:
    """Return a copy that can be written: the slow way, for the rare batch that cannot be written as it is."""
    match value:
        case str():
            return value.encode("utf-8", "replace").decode()
        case dict():
            return {str(_clean(key)): _clean(item) for key, item in cast("dict[object, object]", value).items()}
        case list() | tuple():
            return [_clean(item) for item in cast("list[object]", value)]
        case int():
            return value if -(2**62) < value < 2**62 else 0
        case _:
            return value

"""The signal: an immutable CloudEvents 1.0 event, and the rules its attributes obey. Pure.

Source: CloudEvents 1.0.2, https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/spec.md.
"""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter
from typing import cast

import uuid_utils

from .errors import InvalidSignal
from .patterns import check_type

ExtensionValue = str | int | bool

ATTRIBUTE_LIMIT = 2_048  # bytes of one attribute: ids and URIs are far shorter
EXTENSIONS_LIMIT = 32_768  # bytes of all extensions: RabbitMQ closes the connection above a frame (128 KiB)
INT_RANGE = range(-(2**31), 2**31)  # CloudEvents "Integer" is 32 bits

#: Attributes that are fields of `Signal`, so they cannot be extensions.
ATTRIBUTES = frozenset(
    {"specversion", "id", "type", "source", "subject", "time", "datacontenttype", "dataschema"}
    | {"data", "data_base64", "correlationid", "causationid", "traceparent", "tracestate"}
    | {"receiptto"}  # ours: see `codec.RECEIPT_TO`
)

_OPTIONAL = (
    "subject",
    "datacontenttype",
    "dataschema",
    "correlationid",
    "causationid",
    "traceparent",
    "tracestate",
)
_optional_of = attrgetter(*_OPTIONAL)
_NONE = (None,) * len(_OPTIONAL)
_NO_EXTENSIONS: Mapping[str, ExtensionValue] = {}
_EXTENSION_NAME = re.compile(r"[a-z0-9]{1,64}\Z")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffe\uffff]")
_valid_type = lru_cache(maxsize=4096)(check_type)


def new_id() -> str:
    """Return a new UUIDv7 (RFC 9562): unique, and sorted by time to the millisecond."""
    return str(uuid_utils.uuid7())


def utc_now() -> datetime:
    """Return the time of day, in UTC."""
    return datetime.now(UTC)


def utc_now_text() -> str:
    """Return the time of day in UTC as RFC 3339, to the microsecond; a `datetime` takes four times as long."""
    microseconds = time.time_ns() // 1_000
    return f"{_second(microseconds // 1_000_000)}{microseconds % 1_000_000:06d}Z"


@lru_cache(2)
def _second(seconds: int) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%S.", time.gmtime(seconds))


@dataclass(frozen=True, slots=True, kw_only=True)
class Signal:
    """One event. Attributes are those of CloudEvents 1.0.

    ``type`` is dot-separated words, ``order.placed``. ``source`` says who published it (a URI reference); a bus
    fills in its own name when it is empty. ``data`` is anything that JSON can hold, a pydantic model, a dataclass,
    or ``bytes``. ``correlationid`` is shared by all that one cause set off, ``causationid`` is the id of the signal
    that directly caused this one; ``traceparent`` and ``tracestate`` are those of W3C Trace Context.
    ``extensions`` are named by lower-case letters and digits and hold strings, 32-bit integers or booleans.

    Raises `InvalidSignal` when an attribute breaks a rule.
    """

    type: str
    data: object = None
    source: str = ""
    id: str = field(default_factory=new_id)
    subject: str | None = None
    time: datetime = field(default_factory=utc_now)
    datacontenttype: str | None = None
    dataschema: str | None = None
    correlationid: str | None = None
    causationid: str | None = None
    traceparent: str | None = None
    tracestate: str | None = None
    extensions: Mapping[str, ExtensionValue] = field(default_factory=lambda: _NO_EXTENSIONS)

    def __post_init__(self) -> None:
        check_signal_type(self.type)
        _check_text("id", self.id, required=True)
        _check_text("source", self.source)
        if (optional := _optional_of(self)) != _NONE:
            for name, value in zip(_OPTIONAL, optional, strict=True):
                if value is not None:
                    _check_text(name, value, required=True)
        time = cast("object", self.time)
        if not isinstance(time, datetime):
            raise InvalidSignal(f"time is {type(time).__name__}, not a datetime")
        if time.tzinfo is None:
            raise InvalidSignal(f"time {time.isoformat()} has no time zone; use datetime.now(UTC)")
        if self.extensions:
            _check_extensions(self.extensions)


def check_signal_type(signal_type: str) -> None:
    """Raise `InvalidSignal` if it is none; nearly free for one that was checked before."""
    try:
        _valid_type(signal_type)
    except TypeError:  # unhashable, so certainly not a string
        check_type(signal_type)


@lru_cache(maxsize=64)
def check_source(source: str) -> None:
    """Raise `InvalidSignal` if it cannot be the source of a signal; nearly free for one that was checked before."""
    _check_text("source", source, required=True)


def _check_text(name: str, value: object, *, required: bool = False) -> None:
    if not isinstance(value, str):
        raise InvalidSignal(f"{name} is {type(value).__name__}, not a string")
    if required and not value:
        raise InvalidSignal(f"{name} is empty; leave it out or give it a value")
    if not (value.isascii() and value.isprintable()) and _CONTROL.search(value):
        raise InvalidSignal(f"{name} has control characters or lone surrogates: {value[:80]!a}")
    if len(value) * 4 > ATTRIBUTE_LIMIT and len(value.encode()) > ATTRIBUTE_LIMIT:
        size = len(value.encode())
        raise InvalidSignal(f"{name} has {size} bytes, more than {ATTRIBUTE_LIMIT}; put it into the data")


def _check_extensions(extensions: Mapping[str, ExtensionValue]) -> None:
    size = 0
    # Typed as promised, checked as met: untyped callers pass anything.
    if not isinstance(cast("object", extensions), Mapping):
        raise InvalidSignal(f"extensions is {type(extensions).__name__}, not a dict")
    items = cast("Iterable[tuple[object, object]]", extensions.items())
    for name, value in items:
        if not isinstance(name, str) or not _EXTENSION_NAME.match(name):
            raise InvalidSignal(f"extension {ascii(name)[:80]}: names are 1 to 64 lower-case letters and digits")
        if name in ATTRIBUTES:
            raise InvalidSignal(f"extension {name!r} is an attribute of its own: Signal({name}=...)")
        match value:
            case bool():
                size += len(name) + 1
            case int():
                if value not in INT_RANGE:
                    raise InvalidSignal(f"extension {name!r} is {value}, beyond 32 bits; send it as a string")
                size += len(name) + 4
            case str():
                _check_text(f"extension {name!r}", value)
                size += len(name) + len(value.encode())
            case _:
                kind = type(value).__name__
                raise InvalidSignal(f"extension {name!r} is {kind}; use str, int or bool, or put it into the data")
    if size > EXTENSIONS_LIMIT:
        raise InvalidSignal(f"the extensions have {size} bytes, more than {EXTENSIONS_LIMIT}; put them into the data")

"""Basic.Publish with its header and bodies, to bytes; pure.

The same bytes as pamqp's, but for the order of headers, at a tenth of its time: what repeats itself is remembered,
and what is rare is left to pamqp.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import UTC, datetime
from functools import lru_cache
from operator import attrgetter

from pamqp import commands, encode, frame
from pamqp.common import FieldTable

_PROPERTIES = tuple(commands.Basic.Properties.__slots__)
_values_of = attrgetter(*_PROPERTIES)
# Long-lived, and few: names of attributes, content types, signal types.
_REMEMBERED = 1_024

_FRAME = struct.Struct(">BHI")
_HEADER = struct.Struct(">BHIHHQH")  # frame, then class, weight, body size, flags
_TEXT = struct.Struct(">sI")
_TIME = struct.Struct(">Q")
_SHORT = [bytes((length,)) for length in range(256)]
_HEADER_KIND, _BODY_KIND, _END = 2, 3, b"\xce"
_BASIC = commands.Basic.frame_id
_FIXED = 14  # class, weight, body size and flags


def publication(
    channel: int,
    limit: int,
    exchange: str,
    key: str,
    mandatory: bool,
    properties: commands.Basic.Properties,
    body: bytes,
) -> bytes:
    """Return the frames of a publish. ``limit``: bytes of the body in one frame, at most.

    Raises TypeError, ValueError or OverflowError if it cannot be encoded.
    """
    flags, encoded = _properties(properties)
    size = len(body)
    parts = [
        _method(channel, exchange, key, mandatory),
        _HEADER.pack(_HEADER_KIND, channel, _FIXED + len(encoded), _BASIC, 0, size, flags),
        encoded,
        _END,
    ]
    for start in range(0, size, limit):
        part = body if size <= limit else body[start : start + limit]
        parts += (_FRAME.pack(_BODY_KIND, channel, len(part)), part, _END)
    return b"".join(parts)


@lru_cache(_REMEMBERED)
def _method(channel: int, exchange: str, key: str, mandatory: bool) -> bytes:
    return frame.marshal(commands.Basic.Publish(exchange=exchange, routing_key=key, mandatory=mandatory), channel)


def _properties(properties: commands.Basic.Properties) -> tuple[int, bytes]:
    flags = 0
    parts: list[bytes] = []
    for value, flag, write in zip(_values_of(properties), _FLAGS, _WRITERS, strict=True):
        if value is not None and value != "":
            flags |= flag
            parts.append(write(value))
    return flags, b"".join(parts)


def _table(headers: FieldTable) -> bytes:
    parts: list[bytes] = []
    for name, value in headers.items():
        parts.append(_name(name))
        if type(value) is str:
            text = value.encode()
            parts += (_TEXT.pack(b"S", len(text)), text)
        else:
            parts.append(encode.encode_table_value(value))
    encoded = b"".join(parts)
    return len(encoded).to_bytes(4) + encoded


@lru_cache(_REMEMBERED)
def _name(name: str) -> bytes:
    return encode.field_table({name: None})[4:-1]  # without the table's size, and the mark of None


def _short(text: str) -> bytes:
    data = text.encode()
    return _SHORT[len(data)] + data if len(data) < len(_SHORT) else encode.short_string(text)


def _time(time: datetime) -> bytes:
    return _TIME.pack(int(time.timestamp())) if time.tzinfo is UTC else encode.timestamp(time)


_remembered = lru_cache(_REMEMBERED)(_short)
_writer_of: dict[str, Callable[..., bytes]] = {
    **{name: encode.METHODS[commands.Basic.Properties.amqp_type(name)] for name in _PROPERTIES},
    "content_type": _remembered,
    "headers": _table,
    "delivery_mode": lru_cache(encode.octet),
    "correlation_id": _short,
    "reply_to": _remembered,
    "expiration": _short,
    "message_id": _short,
    "timestamp": _time,
    "message_type": _remembered,
}
_FLAGS = tuple(commands.Basic.Properties.flags[name] for name in _PROPERTIES)
_WRITERS = tuple(_writer_of[name] for name in _PROPERTIES)

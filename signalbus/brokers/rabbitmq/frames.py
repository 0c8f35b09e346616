"""Messages to publish, as frames. Pure. pamqp's general encoder, with which tests compare, takes four times as long."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from functools import lru_cache

from pamqp import commands

_METHOD, _HEADER, _BODY, _END = 1, 2, 3, b"\xce"
_FRAME = struct.Struct(">BHI")
_PUBLISH = struct.Struct(">HHH")
_CONTENT = struct.Struct(">HHQH")
_LONG = struct.Struct(">I")
_INTEGER = struct.Struct(">cq")
_TIMESTAMP = struct.Struct(">Q")
_MANDATORY, _OPTIONAL = b"\x01", b"\x00"
_SHORT_BYTES = 255


@lru_cache(maxsize=1024)
def method(channel: int, exchange: str, key: str, *, mandatory: bool) -> bytes:
    """Return the frame ``Basic.Publish``. Raises ValueError for names that are too long."""
    payload = _PUBLISH.pack(60, 40, 0) + _short(exchange) + _short(key) + (_MANDATORY if mandatory else _OPTIONAL)
    return _FRAME.pack(_METHOD, channel, len(payload)) + payload + _END


def content(channel: int, properties: commands.Basic.Properties, body: bytes, limit: int) -> list[bytes]:
    """Return the frames of properties and body, none with more than ``limit`` bytes of the body, in parts.

    Raises TypeError or ValueError for what AMQP cannot carry. Properties that we never set are left out.
    """
    flags, fields = _fields(properties)
    payload = _CONTENT.pack(60, 0, len(body), flags) + b"".join(fields)
    parts = [_FRAME.pack(_HEADER, channel, len(payload)), payload, _END]
    for start in range(0, len(body), limit):
        part = body[start : start + limit]
        parts += (_FRAME.pack(_BODY, channel, len(part)), part, _END)
    return parts


def _fields(properties: commands.Basic.Properties) -> tuple[int, list[bytes]]:
    """Return the flags of the properties that are set, and their values, in the order of the specification."""
    flags, fields = 0, list[bytes]()
    if properties.content_type is not None:
        flags |= 1 << 15
        fields.append(_short(properties.content_type))
    if properties.headers is not None:
        flags |= 1 << 13
        fields.append(_table(properties.headers))
    if properties.delivery_mode is not None:
        flags |= 1 << 12
        fields.append(bytes((properties.delivery_mode,)))
    if properties.correlation_id is not None:
        flags |= 1 << 10
        fields.append(_short(properties.correlation_id))
    if properties.reply_to is not None:
        flags |= 1 << 9
        fields.append(_short(properties.reply_to))
    if properties.expiration is not None:
        flags |= 1 << 8
        fields.append(_short(properties.expiration))
    if properties.message_id is not None:
        flags |= 1 << 7
        fields.append(_short(properties.message_id))
    if properties.timestamp is not None:
        flags |= 1 << 6
        fields.append(_TIMESTAMP.pack(int(properties.timestamp.timestamp())))
    if properties.message_type is not None:
        flags |= 1 << 5
        fields.append(_short(properties.message_type))
    return flags, fields


def _short(text: str) -> bytes:
    data = text.encode()
    if len(data) > _SHORT_BYTES:
        raise ValueError(f"{text[:40]!a}... has more than {_SHORT_BYTES} bytes")
    return bytes((len(data),)) + data


def _table(headers: Mapping[str, object]) -> bytes:
    parts = list[bytes]()
    for key, value in headers.items():
        kind = type(value)
        if isinstance(value, str):
            data = value.encode()
            parts += (_name(key), b"S", _LONG.pack(len(data)), data)
        elif kind is bool:
            parts += (_name(key), b"t\x01" if value else b"t\x00")
        elif isinstance(value, int) and -(2**63) <= value < 2**63:
            parts += (_name(key), _INTEGER.pack(b"l", value))
        else:
            raise TypeError(f"header {key!a} is {kind.__name__}, not str, bool or an integer of 64 bits")
    table = b"".join(parts)
    return _LONG.pack(len(table)) + table


@lru_cache(maxsize=1024)
def _name(key: str) -> bytes:
    return _short(key)

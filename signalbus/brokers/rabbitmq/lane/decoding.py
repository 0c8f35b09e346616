"""Delivered messages out of their frames; pure.

Our own usual properties are read directly. Everything else, also what is broken, is read by pamqp, so that it means
the same with and without the lane.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

from pamqp import commands
from pamqp.header import ContentHeader

from .. import tolerant

SIMPLE_BYTES = 32 * 1024  # of a table: larger ones are rare, and somebody's mistake

_FLAGS_AT, _PROPERTIES_AT = 12, 14  # behind class, weight and body size
_FLAGS = struct.Struct(">H")
_LENGTH = struct.Struct(">I")
_TEXT = ord("S")
_NUMBERS = {
    ord("t"): struct.Struct(">?"),
    ord("b"): struct.Struct(">b"),
    ord("B"): struct.Struct(">B"),
    ord("s"): struct.Struct(">h"),
    ord("u"): struct.Struct(">H"),
    ord("I"): struct.Struct(">i"),
    ord("i"): struct.Struct(">I"),
    ord("l"): struct.Struct(">q"),
    ord("L"): struct.Struct(">q"),
}

_flag = commands.Basic.Properties.flags
_CONTENT_TYPE, _HEADERS, _DELIVERY_MODE = _flag["content_type"], _flag["headers"], _flag["delivery_mode"]
_CORRELATION_ID, _REPLY_TO, _EXPIRATION = _flag["correlation_id"], _flag["reply_to"], _flag["expiration"]
_MESSAGE_ID, _TIMESTAMP, _TYPE = _flag["message_id"], _flag["timestamp"], _flag["message_type"]
_OF_REQUESTS = _CORRELATION_ID | _REPLY_TO | _EXPIRATION
_UNUSUAL = 0xFFFF & ~(_CONTENT_TYPE | _HEADERS | _DELIVERY_MODE | _OF_REQUESTS | _MESSAGE_ID | _TIMESTAMP | _TYPE)


class Simple(dict[str, str | int | bool]):
    """A table that has been seen to hold texts, integers and booleans only, and to be of a usual size."""

    __slots__ = ()


class Properties(NamedTuple):
    """The properties of a message that mean something to us. ``malformed``: why they could not be read, if so."""

    # A tuple is made in half the time of a frozen dataclass.

    headers: Mapping[str, object]
    content_type: str | None = None
    message_id: str | None = None
    message_type: str | None = None
    correlation_id: str | None = None
    reply_to: str | None = None
    malformed: str | None = None


NO_PROPERTIES = Properties({})


@dataclass(slots=True)
class Received:
    """A message as the broker handed it out."""

    tag: int
    redelivered: bool
    routing_key: str
    properties: Properties
    body: bytes


def read_header(payload: bytes) -> Properties:
    """Read a content header, from its class id on."""
    try:
        return _usual(payload) or of_header(_unmarshalled(payload))
    except (ValueError, IndexError, struct.error):
        return of_header(_unmarshalled(payload))


def of_header(header: ContentHeader) -> Properties:
    """Return what a header says that pamqp has read."""
    found = header.properties
    return Properties(
        cast("Mapping[str, object]", found.headers or {}),
        found.content_type,
        found.message_id,
        found.message_type,
        found.correlation_id,
        found.reply_to,
        tolerant.malformed(header),
    )


def _unmarshalled(payload: bytes) -> ContentHeader:
    header = ContentHeader()
    header.unmarshal(payload)
    return header


def _usual(payload: bytes) -> Properties | None:
    """Read properties of the usual shape; None, or any error, means that they have another one."""
    flags = _FLAGS.unpack_from(payload, _FLAGS_AT)[0]
    if flags & _UNUSUAL:
        return None
    at = _PROPERTIES_AT
    content_type = message_id = message_type = correlation_id = reply_to = None
    headers: Mapping[str, object] = {}
    if flags & _CONTENT_TYPE:
        start, at = at + 1, at + 1 + payload[at]
        content_type = payload[start:at].decode()
    if flags & _HEADERS:
        start, at = at + 4, at + 4 + _LENGTH.unpack_from(payload, at)[0]
        if (found := _usual_table(payload, start, at)) is None:
            return None
        headers = found
    if flags & _DELIVERY_MODE:
        at += 1
    if flags & _OF_REQUESTS:
        if flags & _CORRELATION_ID:
            start, at = at + 1, at + 1 + payload[at]
            correlation_id = payload[start:at].decode()
        if flags & _REPLY_TO:
            start, at = at + 1, at + 1 + payload[at]
            reply_to = payload[start:at].decode()
        if flags & _EXPIRATION:
            start, at = at + 1, at + 1 + payload[at]
            payload[start:at].decode()  # what is no text is malformed, wanted or not
    if flags & _MESSAGE_ID:
        start, at = at + 1, at + 1 + payload[at]
        message_id = payload[start:at].decode()
    if flags & _TIMESTAMP:
        if payload[at : at + 4] != b"\0\0\0\0":
            return None  # beyond the year 2106: milliseconds, or no time at all
        at += 8
    if flags & _TYPE:
        start, at = at + 1, at + 1 + payload[at]
        message_type = payload[start:at].decode()
    if at > len(payload):
        return None
    return Properties(headers, content_type, message_id, message_type, correlation_id, reply_to)


def _usual_table(payload: bytes, at: int, end: int) -> Simple | None:
    """Read a table of texts, integers and booleans."""
    if end - at > SIMPLE_BYTES:
        return None
    table = Simple()
    while at < end:
        start, at = at + 1, at + 1 + payload[at]
        name = payload[start:at].decode()
        kind = payload[at]
        if kind == _TEXT:
            start, at = at + 5, at + 5 + _LENGTH.unpack_from(payload, at + 1)[0]
            table[name] = payload[start:at].decode()
        elif (number := _NUMBERS.get(kind)) is not None:
            table[name] = number.unpack_from(payload, at + 1)[0]
            at += 1 + number.size
        else:
            return None
    return table if at == end else None

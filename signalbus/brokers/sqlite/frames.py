"""What travels between sessions: frames, and what is in them. Pure.

A frame is the length of the rest (32 bits, big-endian), its kind, and its content. Both ends say `HELLO` first.
Anything that is not as it should be raises `Malformed`: the other end is not one of us, or not of our version.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import cast

import orjson

from ...codec import EncodedSignal, HeaderValue
from ...errors import InvalidSignal
from ..base import Answer, AnswerKind
from .records import pack

HELLO = b"signalbus 1"
CONTENT_BYTES = 16 * 1024 * 1024  # of one frame, as the largest signal by default
_HEAD_BYTES = 256 * 1024  # attributes and extensions of a signal have limits of their own, far below
_LIMIT = CONTENT_BYTES + _HEAD_BYTES

_LENGTH = struct.Struct(">IB")
_NUMBER = struct.Struct(">Q")
_REQUEST = struct.Struct(">QQQBI")  # number, milliseconds left, when (see Request.at), redelivered, bytes of the head
_ANSWER = struct.Struct(">QI")  # number, bytes of the head
_LENGTH_BYTES = 4


class Kind(IntEnum):
    """What a frame is."""

    HELLO = 0
    REQUEST = 1
    ANSWER = 2
    ASK = 3  # what do you say of yourself?
    REPORT = 4
    MESSAGE = 5
    GONE = 6  # who had this request leaves it to others


class Malformed(ValueError):
    """Raised for bytes that are no frame of ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """A request as it travels. ``remaining``: milliseconds until nobody waits any more, counted from ``at``, in
    milliseconds of the machine's monotonic clock: a stopped process reads it late."""

    number: int
    remaining: int
    at: int
    redelivered: bool
    signal: EncodedSignal


class Splitter:
    """Cuts a stream into frames. ``limit`` bounds the length of the next one."""

    def __init__(self, limit: int = _LIMIT) -> None:
        self.limit = limit
        self._buffer = bytearray()

    def feed(self, data: bytes) -> Iterator[tuple[int, bytes]]:
        """Yield kind and content of each frame that is complete. Raises `Malformed` for one too long or empty."""
        buffer = self._buffer
        buffer += data
        start = 0
        try:
            while len(buffer) - start >= _LENGTH.size:
                length, kind = _LENGTH.unpack_from(buffer, start)
                if not 1 <= length <= self.limit:
                    raise Malformed(f"a frame of {length} bytes; 1 to {self.limit} are allowed")
                end = start + _LENGTH_BYTES + length
                if len(buffer) < end:
                    break
                content = bytes(memoryview(buffer)[start + _LENGTH.size : end])
                start = end
                yield kind, content
        finally:
            del buffer[:start]


def frame(kind: Kind, *parts: bytes) -> bytes:
    """Return a frame."""
    return b"".join((_LENGTH.pack(1 + sum(map(len, parts)), kind), *parts))


def numbered(kind: Kind, number: int, content: bytes = b"") -> bytes:
    """Return a frame that begins with a number: `ASK`, `REPORT` or `GONE`."""
    return frame(kind, _NUMBER.pack(number), content)


def read_number(content: bytes) -> tuple[int, bytes]:
    """Return the number and what follows."""
    if len(content) < _NUMBER.size:
        raise Malformed("a frame without its number")
    return _NUMBER.unpack_from(content)[0], content[_NUMBER.size :]


def pack_request(signal: EncodedSignal) -> tuple[bytes, bytes]:
    """Return head and body of a request. Raises `InvalidSignal` if it cannot travel."""
    _, head, body, _ = pack(signal)
    check_size(len(head), len(body), f"request {signal.id!a}")
    return head, body


def check_size(head: int, body: int, what: str) -> None:
    """Raise `InvalidSignal` for what no frame holds."""
    if head + body > _LIMIT - _REQUEST.size - 1:
        raise InvalidSignal(f"{what} has {head + body} bytes, more than {CONTENT_BYTES}; send a reference to the data")


def write_request(number: int, remaining: int, at: int, redelivered: bool, packed: tuple[bytes, bytes]) -> bytes:
    """Return the frame of a request; see `Request`."""
    head, body = packed
    return frame(Kind.REQUEST, _REQUEST.pack(number, remaining, at, redelivered, len(head)), head, body)


def read_request(content: bytes) -> Request:
    """Return a request."""
    if len(content) < _REQUEST.size:
        raise Malformed("a request that is cut off")
    number, remaining, at, redelivered, length = _REQUEST.unpack_from(content)
    head, body = _cut(content, _REQUEST.size, length)
    return Request(
        number=number, remaining=remaining, at=at, redelivered=bool(redelivered), signal=_signal(_json(head), body)
    )


def write_answer(number: int, answer: Answer) -> bytes:
    """Return the frame of an answer. Raises `InvalidSignal` if its body is too large."""
    head = orjson.dumps((answer.kind.value, answer.content_type, answer.session, answer.reason))
    check_size(len(head), len(answer.body), "the answer")
    return frame(Kind.ANSWER, _ANSWER.pack(number, len(head)), head, answer.body)


def read_answer(content: bytes) -> tuple[int, Answer]:
    """Return the number of a request, and its answer."""
    if len(content) < _ANSWER.size:
        raise Malformed("an answer that is cut off")
    number, length = _ANSWER.unpack_from(content)
    head, body = _cut(content, _ANSWER.size, length)
    match _json(head):
        case [str(kind), (str() | None) as content_type, str(session), str(reason)] if kind in _ANSWERS:
            return number, Answer(AnswerKind(kind), body, content_type, session, reason)
        case _:
            raise Malformed("an answer with a head that makes no sense")


_ANSWERS = frozenset(kind.value for kind in AnswerKind)


def _cut(content: bytes, start: int, length: int) -> tuple[bytes, bytes]:
    if len(content) < start + length:
        raise Malformed("a head that is cut off")
    return content[start : start + length], content[start + length :]


def _json(head: bytes) -> object:
    try:
        return cast("object", orjson.loads(head))
    except ValueError as error:
        raise Malformed(f"a head that is not JSON: {error}") from error


def _signal(head: object, body: bytes) -> EncodedSignal:
    match head:
        case [str(signal_id), str(signal_type), (str() | None) as content_type, dict()]:
            headers = cast("list[dict[object, object]]", head)[3]
            if all(isinstance(value, str | int) for value in headers.values()):
                return EncodedSignal(
                    signal_id, signal_type, cast("dict[str, HeaderValue]", headers), body, content_type
                )
        case _:
            pass
    raise Malformed("a request with a head that makes no sense")

"""Signals and histories as the bytes in the database, with a checksum over them. Pure.

SQLite does not notice a flipped bit inside a value, so each signal carries a checksum that is verified when it is
handed out. Everything is read from blobs: text that is no longer UTF-8 must not make a whole batch unreadable.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import cast

import orjson

from ...codec import EncodedSignal, HeaderValue
from ...delivery import Failure
from ...errors import InvalidSignal

# (type, head, body, checksum): the head is a JSON array of id, type, content type and headers.
Record = tuple[str, bytes, bytes, int]

_MASK = 0xFFFFFFFF
_NO_HISTORY: tuple[Failure, ...] = ()


def pack(signal: EncodedSignal) -> Record:
    """Return a signal as a record. Raises `InvalidSignal` if its headers cannot be written as JSON."""
    headers = signal.headers
    try:
        head = orjson.dumps(
            (signal.id, signal.type, signal.content_type, headers if type(headers) is dict else dict(headers))
        )
    except TypeError as error:
        raise InvalidSignal(f"the headers of signal {signal.id!a} cannot be stored: {error}") from error
    body = signal.body
    return signal.type, head, body, zlib.crc32(body, zlib.crc32(head))


def seal(checksum: int, seq: int, fanout: int) -> int:
    """Bind a record's checksum to the row it is stored in, so that a flip in those columns shows as well."""
    return (checksum ^ seq ^ (fanout << 20)) & _MASK


def unpack(seq: int, fanout: object, sealed: object, head: object, body: object) -> tuple[EncodedSignal, str | None]:
    """Return the stored signal and None, or what is left of it and what is wrong with it."""
    if type(head) is not bytes or type(body) is not bytes or type(fanout) is not int:
        return _damaged(seq, head, body), f"signal {seq} in the database is damaged: a part of it is missing"
    if seal(zlib.crc32(body, zlib.crc32(head)), seq, fanout) != sealed:
        return _damaged(seq, head, body), f"signal {seq} in the database is damaged: its checksum does not match"
    signal_id, signal_type, content_type, headers = orjson.loads(head)
    return EncodedSignal(signal_id, signal_type, headers, body, content_type), None


def unpack_head(head: object) -> EncodedSignal:
    """Return a stored signal without its body, to look at; one that is damaged as far as it can be read."""
    return _damaged(0, head, b"")


def pack_history(history: Sequence[Failure]) -> bytes | None:
    """Return a history as JSON; nothing for an empty one."""
    if not history:
        return None
    return orjson.dumps([(f.attempt, f.error, f.message, f.at.isoformat(), f.session, f.traceback) for f in history])


def unpack_history(stored: object) -> tuple[Failure, ...]:
    """Return a stored history; a damaged one is empty, since it only explains."""
    if stored is None:
        return _NO_HISTORY
    try:
        return tuple(
            Failure(
                attempt=int(attempt),
                error=str(error),
                message=str(message),
                at=datetime.fromisoformat(at),
                session=str(session),
                traceback=str(traceback),
            )
            for attempt, error, message, at, session, traceback in orjson.loads(stored)  # type: ignore[arg-type]
        )
    except (ValueError, TypeError):
        return _NO_HISTORY


def moment(seconds: object) -> datetime:
    """Return stored seconds since 1970 as a time; the epoch if they are damaged."""
    try:
        return datetime.fromtimestamp(float(seconds), UTC)  # type: ignore[arg-type]
    except (ValueError, TypeError, OverflowError, OSError):
        return datetime.fromtimestamp(0, UTC)


def moment_of(text: str) -> datetime:
    """Return a time that was stored as text; the epoch if it is damaged."""
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        return datetime.fromtimestamp(0, UTC)


def _damaged(seq: int, head: object, body: object) -> EncodedSignal:
    """Save what can be read, to show it to people; nothing of it can be relied on."""
    content = body if isinstance(body, bytes) else b""
    try:
        signal_id, signal_type, content_type, headers = orjson.loads(head)  # type: ignore[arg-type]
        if isinstance(signal_id, str) and isinstance(signal_type, str) and isinstance(headers, dict):
            known = content_type if isinstance(content_type, str) else None
            return EncodedSignal(signal_id, signal_type, cast("dict[str, HeaderValue]", headers), content, known)
    except (ValueError, TypeError):
        pass  # not even JSON any more
    return EncodedSignal(f"damaged-{seq}", "damaged", {}, content, None)

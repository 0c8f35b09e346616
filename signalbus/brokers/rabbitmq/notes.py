"""What sessions tell each other, as messages: who comes and goes, who is there. Pure.

A header names the kind. The bodies are JSON, from anybody who may publish: what cannot be read raises `Malformed`.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeVar, cast

from pamqp import commands

from ...sessions import Down, DownReason, SessionInfo
from ...signals import utc_now
from .lane import Received

T = TypeVar("T")

KIND = "signalbus-note"
NUMBER = "signalbus-number"
_FIRST_DEATH = "x-first-death-queue"
TEXT_BYTES = 255  # of one attribute of a session
BODY_BYTES = 4 * 1024 * 1024
_SHORTEST = 8  # what is left of host and name when nothing else fits


class Note(StrEnum):
    """The kinds of messages between sessions."""

    TOKEN = "token"  # noqa: S105 - held by a living session; freed by its death
    UP = "up"  # a session lives from now on
    DOWN = "down"  # a session ended, by its own account
    LEFT = "left"  # a responder to a type stopped
    REGISTRY = "registry"  # the durable subscriptions are others now
    ROLL = "roll"  # who is there?
    TOLD = "told"  # to oneself: what came before a roll call's end is here
    REPORT = "report"  # I am, and this is what I do
    MESSAGE = "message"  # to the bus itself


class Malformed(ValueError):
    """Raised when a message is not what its header says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a live event loop answers to a roll call. ``temporary``: its temporary subscriptions' patterns by name."""

    info: SessionInfo
    temporary: Mapping[str, tuple[str, ...]]
    text: bytes


def properties(
    kind: Note, message_id: str, *, number: int | None = None, durable: bool = False
) -> commands.Basic.Properties:
    """Return the properties of a note. ``number``: which token, or to which roll call it belongs."""
    headers: dict[str, str | int] = {KIND: kind.value}
    if number is not None:
        headers[NUMBER] = number
    return commands.Basic.Properties(
        headers=headers,  # type: ignore[arg-type]  # dict is invariant
        delivery_mode=2 if durable else 1,
        message_id=message_id,
    )


def kind_of(message: Received) -> object:
    """Return the kind that a message claims to be."""
    return message.properties.headers.get(KIND)


def number_of(message: Received) -> int:
    """Return the number of a note."""
    number = message.properties.headers.get(NUMBER)
    if not isinstance(number, int):
        raise Malformed("a note without a number")
    return number


def expired_in(message: Received) -> str | None:
    """Return the queue in which the broker let a message expire; None if none did."""
    queue = message.properties.headers.get(_FIRST_DEATH)
    return queue if isinstance(queue, str) else None


# Sessions


def write_session(info: SessionInfo) -> dict[str, object]:
    """Return a session as JSON data."""
    return {
        "id": info.id,
        "name": info.name,
        "host": info.host,
        "pid": info.pid,
        "version": info.version,
        "started": info.started.isoformat(),
        "incarnation": info.incarnation,
    }


def read_session(data: object) -> SessionInfo:
    """Read a session from JSON data."""
    record = _record(data)
    return SessionInfo(
        id=_text(record, "id"),
        name=_text(record, "name"),
        host=_text(record, "host"),
        pid=_count(record, "pid"),
        version=_text(record, "version"),
        started=_time(record, "started"),
        incarnation=_count(record, "incarnation"),
    )


def compact(info: SessionInfo, limit: int) -> str:
    """Return a session without its id in at most ``limit`` characters of base64url; host and name are cut to fit."""
    size = 64
    while True:
        text = _compacted(info, size)
        if len(text) <= limit or size <= _SHORTEST:
            return text
        size -= _SHORTEST


def _compacted(info: SessionInfo, size: int) -> str:
    started = round(info.started.timestamp() * 1000)
    record = [info.name[:size], info.host[:size], info.pid, info.version[:16], started, info.incarnation]
    text = json.dumps(record, separators=(",", ":"), ensure_ascii=False)
    return base64.urlsafe_b64encode(text.encode("utf-8", "replace")).decode().rstrip("=")


def expand(session: str, text: str) -> SessionInfo:
    """Read what `compact` wrote."""

    def read() -> SessionInfo:
        name, host, pid, version, started, incarnation = json.loads(
            base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
        )
        return SessionInfo(
            id=session,
            name=str(name),
            host=str(host),
            pid=int(pid),
            version=str(version),
            started=datetime.fromtimestamp(int(started) / 1000, UTC),
            incarnation=int(incarnation),
        )

    return _reading(read)


# Bodies


def write_token(info: SessionInfo, unsettled: int) -> bytes:
    """Write the body of a token or of an announcement."""
    return _json({"session": write_session(info), "unsettled": unsettled})


def read_up(message: Received) -> SessionInfo:
    """Read who is there from now on."""
    return read_session(_body(message).get("session"))


def write_goodbye(info: SessionInfo, reason: DownReason, *, unsettled: int | None) -> bytes:
    """Write the body of a session's own last word."""
    return _json({"session": write_session(info), "unsettled": unsettled, "reason": reason.value})


def read_down(message: Received) -> Down:
    """Read how a session ended: from its last word, or from its token, which the broker set free."""
    key = message.routing_key
    session = key.removeprefix("down.")
    if session == key or not session:
        raise Malformed("the end of no session")
    body = _body(message)
    name, unsettled = _record(body.get("session")).get("name"), body.get("unsettled")
    return Down(
        session=session,
        reason=_reason(body.get("reason")) if kind_of(message) == Note.DOWN else DownReason.CONNECTION_LOST,
        at=utc_now(),
        name=name if isinstance(name, str) else "",
        unsettled=unsettled if isinstance(unsettled, int) and unsettled >= 0 else None,
    )


def write_report(report: Report) -> bytes:
    """Write the answer to a roll call."""
    return _json(
        {
            "session": write_session(report.info),
            "temporary": report.temporary,
            "report": base64.b64encode(report.text).decode(),
        }
    )


def read_report(message: Received) -> Report:
    """Read the answer to a roll call."""
    body = _body(message)

    def read() -> Report:
        temporary = {
            str(name): tuple(str(pattern) for pattern in cast("list[object]", patterns))
            for name, patterns in _record(body.get("temporary")).items()
        }
        text = base64.b64decode(_text(body, "report", limit=BODY_BYTES))
        return Report(info=read_session(body.get("session")), temporary=temporary, text=text)

    return _reading(read)


def _json(data: object) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()


def _body(message: Received) -> Mapping[str, object]:
    if len(message.body) > BODY_BYTES:
        raise Malformed(f"a note of {len(message.body)} bytes")
    return _record(_reading(lambda: json.loads(message.body)))


def _reading(read: Callable[[], T]) -> T:
    try:
        return read()
    except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
        raise Malformed(f"a note that cannot be read: {error}") from error


def _record(data: object) -> Mapping[str, object]:
    if not isinstance(data, dict):
        raise Malformed("a note that is no JSON object")
    return cast("dict[str, object]", data)


def _text(record: Mapping[str, object], name: str, *, limit: int = TEXT_BYTES) -> str:
    value = record.get(name)
    if not isinstance(value, str) or len(value) > limit:
        raise Malformed(f"{name} is no text, or too long")
    return value


def _count(record: Mapping[str, object], name: str) -> int:
    value = record.get(name)
    if not isinstance(value, int) or value < 0:
        raise Malformed(f"{name} is no count")
    return value


def _time(record: Mapping[str, object], name: str) -> datetime:
    time = _reading(lambda: datetime.fromisoformat(_text(record, name)))
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _reason(value: object) -> DownReason:
    try:
        return DownReason(cast("str", value))
    except ValueError as error:
        raise Malformed(f"ended for the reason {value!a}") from error

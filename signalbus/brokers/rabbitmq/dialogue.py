"""Requests and answers as messages. Pure.

A request carries its deadline twice: as what is left of it, and as a time of day, which also counts the time on the
way; the second is believed only where it agrees with the first, since clocks differ and jump.
"""

from __future__ import annotations

from dataclasses import dataclass

from pamqp import commands

from ...codec import EncodedSignal, HeaderValue
from ..base import Answer, AnswerKind
from . import wire
from .lane import Received

REPLY_QUEUE = "amq.rabbitmq.reply-to"
#: What RabbitMQ makes of it for the responder. Nothing is ever published to other addresses.
REPLY_ADDRESS = REPLY_QUEUE + "."

REMAINING = "signalbus-remaining"
UNTIL = "signalbus-until"
ANSWER = "signalbus-answer"
SESSION = "signalbus-session"

WORKING = "working"  # the responder stops, but its handler runs: wait for that session only
RELEASED = "released"  # it will not answer after all: somebody else may

_KINDS = {kind.value: kind for kind in AnswerKind}
REASON_CHARACTERS = 2_000
MAX_MILLISECONDS = 2**31 - 1  # RabbitMQ takes no longer expiration


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """A request as it arrived, and where its answer goes. ``remaining`` is in seconds."""

    signal: EncodedSignal
    remaining: float
    redelivered: bool
    reply_to: str
    correlation: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """A message of a responder. ``kind`` is that of an answer, or `WORKING` or `RELEASED`."""

    kind: str
    session: str
    answer: Answer | None


def request(signal: EncodedSignal, id: str, remaining: float, now: float) -> commands.Basic.Properties:  # noqa: A002
    """Return the properties of a request; ``remaining`` and ``now`` (time of day) in seconds."""
    milliseconds = max(1, min(int(remaining * 1000), MAX_MILLISECONDS))
    headers: dict[str, HeaderValue] = {
        **signal.headers,
        REMAINING: milliseconds,
        UNTIL: int(now * 1000) + milliseconds,
    }
    content_type = signal.content_type
    if content_type is not None and len(content_type) * 4 > wire.SHORT_BYTES:
        headers[wire.CONTENT_TYPE], content_type = content_type, None
    return commands.Basic.Properties(
        content_type=content_type,
        headers=headers,  # type: ignore[arg-type]  # dict is invariant
        delivery_mode=1,  # worth nothing after a restart: its requester waits no more
        correlation_id=id,
        reply_to=REPLY_QUEUE,
        expiration=str(milliseconds),
        message_id=id,  # by which the driver finds what is returned
    )


def read_request(message: Received, now: float) -> Asked | str:
    """Read a request, or return why it is refused. ``now`` is the time of day in seconds."""
    found = message.properties
    if found.malformed is not None:
        return found.malformed
    reply_to, correlation = found.reply_to or "", found.correlation_id or ""
    if not reply_to.startswith(REPLY_ADDRESS):
        return f"it wants its answer at {reply_to[:80]!a}"
    if not correlation:
        return "it has no correlation id"
    incoming = wire.read(message, counted=False).incoming
    if incoming.malformed is not None:
        return incoming.malformed
    return Asked(
        signal=incoming.signal,
        remaining=_remaining(message, now),
        redelivered=message.redelivered,
        reply_to=reply_to,
        correlation=correlation,
    )


def answer(answer: Answer, correlation: str, message_id: str, session: str) -> commands.Basic.Properties:
    """Return the properties of an answer by ``session``."""
    headers: dict[str, HeaderValue] = {ANSWER: answer.kind.value, SESSION: session}
    if answer.reason:
        headers[wire.REASON] = answer.reason[:REASON_CHARACTERS].encode("utf-8", "replace").decode()
    content_type = answer.content_type
    if content_type is not None and len(content_type) * 4 > wire.SHORT_BYTES:
        headers[wire.CONTENT_TYPE], content_type = content_type, None
    return _said(headers, correlation, message_id, content_type)


def notice(kind: str, correlation: str, message_id: str, session: str) -> commands.Basic.Properties:
    """Return the properties of `WORKING` or `RELEASED`."""
    return _said({ANSWER: kind, SESSION: session}, correlation, message_id, None)


def read_answer(message: Received) -> Said | None:
    """Read what a responder says; None if it cannot be read."""
    headers = message.properties.headers
    kind, session = headers.get(ANSWER), headers.get(SESSION)
    if not isinstance(kind, str) or not isinstance(session, str):
        return None
    if kind in (WORKING, RELEASED):
        return Said(kind=kind, session=session, answer=None)
    known = _KINDS.get(kind)
    if known is None:
        return None
    content_type, reason = headers.get(wire.CONTENT_TYPE), headers.get(wire.REASON)
    if not isinstance(content_type, str):
        content_type = message.properties.content_type
    text = reason if isinstance(reason, str) else ""
    return Said(kind=kind, session=session, answer=Answer(known, message.body, content_type, session, text))


def _said(
    headers: dict[str, HeaderValue], correlation: str, message_id: str, content_type: str | None
) -> commands.Basic.Properties:
    return commands.Basic.Properties(
        content_type=content_type,
        headers=headers,  # type: ignore[arg-type]  # dict is invariant
        delivery_mode=1,
        correlation_id=correlation,
        message_id=message_id,
    )


def _remaining(message: Received, now: float) -> float:
    headers = message.properties.headers
    remaining, until = headers.get(REMAINING), headers.get(UNTIL)
    if not isinstance(remaining, int) or remaining <= 0:
        return MAX_MILLISECONDS / 1000  # a stranger's: it waits as long as it says to itself
    if isinstance(until, int) and 0 < (left := until - int(now * 1000)) <= remaining:
        return left / 1000
    return remaining / 1000

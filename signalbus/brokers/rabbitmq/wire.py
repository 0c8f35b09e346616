"""Messages of RabbitMQ: from encoded signals, and back to deliveries.

Our own bookkeeping travels in headers named ``signalbus-*``. Only attributes of CloudEvents pass from a user: a
``CC`` or ``BCC`` header would make the broker route copies to any queue, and ``x-*`` headers are the broker's own.
"""

from __future__ import annotations

import json
import struct
from bisect import bisect_left
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache
from typing import cast

from ...codec import PREFIXES, EncodedSignal, HeaderValue
from ...delivery import DeadLetter, DeadReason, Failure
from ...signals import new_id
from ..base import Incoming, StoredDeadLetter
from .delays import NO_DELAY, Plan, parse
from .lane import Persistent, Received, Simple

ATTEMPT = "signalbus-attempt"
CRASHES = "signalbus-crashes"
HISTORY = "signalbus-history"
DELAYS = "signalbus-delays"
CONTENT_TYPE = "signalbus-content-type"
REASON = "signalbus-reason"
DETAIL = "signalbus-detail"
SUBSCRIPTION = "signalbus-subscription"
AT = "signalbus-at"
MALFORMED = "signalbus-malformed"

HISTORY_BYTES = 16_384
DETAIL_CHARACTERS = 2_000
# RabbitMQ closes the connection (501) when headers do not fit into one frame of 128 KiB. Bookkeeping takes its share.
HEADERS_BYTES = 96 * 1024
KEY_BYTES = 128  # pamqp cuts longer names with no more than a log line
SHORT_BYTES = 255
NAMES = 1_024  # sets of names of attributes that are remembered, if they are small
NAMES_TOGETHER = 32  # names in such a set
SMALL_CHARACTERS, SMALL_COUNT = 256, 64  # what is kept of a stranger's attributes that are too large
_INT64 = range(-(2**63), 2**63)
_COUNT_LIMIT = 1_000_000  # a forged counter must not overflow anything

_ID = tuple(prefix + "id" for prefix in PREFIXES)
_TYPE = tuple(prefix + "type" for prefix in PREFIXES)

Headers = dict[str, HeaderValue]


@dataclass(slots=True)
class Message:
    """A message as the broker hands it out, its bookkeeping read. ``wait`` is what is left of a delay."""

    incoming: Incoming
    wait: Plan
    message_id: str | None


def problem_of(signal: EncodedSignal) -> str | None:
    """Return why a signal cannot go on the wire, or None. The broker would close the channel or connection on it."""
    headers = signal.headers
    problem, size = _names(tuple(headers)) if len(headers) <= NAMES_TOGETHER else _look_at_names(headers)
    if problem is not None:
        return problem
    for key, value in headers.items():
        if type(value) is str:
            size += len(value)
        elif type(value) is int:
            if value not in _INT64:
                return f"header {key!a} is an integer beyond 64 bits"
        elif type(value) is not bool:
            return f"header {key!a} is {type(value).__name__}, not str, int or bool"
    if size * 4 > HEADERS_BYTES and _headers_bytes(headers) > HEADERS_BYTES:
        return f"the headers have more than {HEADERS_BYTES} bytes"
    if len(signal.type) * 4 > SHORT_BYTES and len(signal.type.encode("utf-8", "replace")) > SHORT_BYTES:
        return f"the type has more than {SHORT_BYTES} bytes"
    return None


def _look_at_names(keys: Iterable[object]) -> tuple[str | None, int]:
    """Return what is wrong with the names of headers, and how much room they take with values of no size."""
    problems = [problem for key in keys if (problem := _problem_of_name(key)) is not None]
    return (problems[0] if problems else None), sum(len(key) + 8 for key in keys if isinstance(key, str))


_names = lru_cache(NAMES)(_look_at_names)


def _problem_of_name(key: object) -> str | None:
    if not isinstance(key, str) or not key.startswith(PREFIXES):
        return f"header {key!a} is not an attribute of CloudEvents"
    if len(key.encode("utf-8", "replace")) > KEY_BYTES:
        return f"header {key[:40]!a}... has a name of more than {KEY_BYTES} bytes"
    return None


def persistent(
    signal: EncodedSignal, message_id: str, seconds: int, extra: Mapping[str, HeaderValue] | None = None
) -> Persistent:
    """Return the properties of one attempt to publish ``signal``, at a time in seconds since 1970.

    ``message_id`` is unique for the attempt, since the driver matches returned messages to publishes by it.
    """
    headers = signal.headers
    content_type = signal.content_type
    if content_type is not None and len(content_type) * 4 > SHORT_BYTES and len(content_type.encode()) > SHORT_BYTES:
        headers = {**headers, CONTENT_TYPE: content_type}
        content_type = None
    if extra:
        headers = {**headers, **extra}
    return Persistent(headers, content_type, message_id, seconds, _short(signal.type))


def read(message: Received, *, counted: bool) -> Message:
    """Read a delivered message. Never raises: what cannot be read arrives with ``malformed`` set.

    ``counted``: the queue counts returns itself (quorum), in ``x-delivery-count``.
    """
    found = message.properties
    headers = found.headers
    reason = found.malformed
    if isinstance(headers, Simple) and _are_attributes(tuple(headers)):
        attributes: Headers = headers
    else:
        attributes, problem = _attributes(headers)
        reason = reason or problem
    message_id = found.message_id
    content_type = found.content_type
    incoming = Incoming(
        signal=EncodedSignal(
            _text(attributes, _ID) or message_id or new_id(),
            _text(attributes, _TYPE) or found.message_type or message.routing_key,
            attributes,
            message.body,
            content_type,
        ),
        malformed=reason,
    )
    wait = NO_DELAY
    if message.redelivered or len(headers) > len(attributes):
        text = headers.get(MALFORMED)
        if isinstance(text, str):
            incoming.malformed = text
        incoming.attempt = max(1, _count(headers.get(ATTEMPT)))
        incoming.crashes = _count(headers.get(CRASHES))
        incoming.history = read_history(headers.get(HISTORY))
        if isinstance(text := headers.get(CONTENT_TYPE), str):
            incoming.signal = EncodedSignal(incoming.signal.id, incoming.signal.type, attributes, message.body, text)
        if DELAYS in headers:
            wait = parse(headers[DELAYS])
        if counted and message.redelivered:
            # Only then is the header the broker's; on a first delivery a publisher may have forged it.
            incoming.crashes += _count(headers.get("x-delivery-count"))
    return Message(incoming, wait, message_id)


@lru_cache(NAMES)
def _are_attributes(names: tuple[str, ...]) -> bool:
    return all(name.startswith(PREFIXES) for name in names)


def _attributes(headers: Mapping[str, object]) -> tuple[Headers, str | None]:
    """Return those headers that are attributes of the signal, and what is wrong with them, if anything."""
    # Outside the prefix there may be anything: nested tables, bytes, floats. It is none of our business.
    attributes: Headers = {}
    reason: str | None = None
    for key, value in headers.items():
        if key.startswith(PREFIXES):
            if type(value) is str or type(value) is int or type(value) is bool:
                attributes[key] = value
            else:
                reason = reason or f"attribute {key[:80]!a} is {type(value).__name__}, not str, int or bool"
    if _headers_bytes(attributes) > HEADERS_BYTES:
        # A copy with our bookkeeping would not fit into a frame, so it could never be put aside.
        reason = reason or f"its attributes have more than {HEADERS_BYTES} bytes"
        attributes = {key: value for key, value in attributes.items() if len(str(value)) <= SMALL_CHARACTERS}
        attributes = dict(list(attributes.items())[:SMALL_COUNT])
    return attributes, reason


def bookkeeping(incoming: Incoming, *, history: Sequence[Failure] | None = None, wait: Plan = NO_DELAY) -> Headers:
    """Return the headers that carry a delivery's counts and history into a copy of it."""
    headers: Headers = {ATTEMPT: incoming.attempt}
    if incoming.crashes:
        headers[CRASHES] = incoming.crashes
    trail = incoming.history if history is None else history
    if trail:
        headers[HISTORY] = write_history(trail)
    if wait is not NO_DELAY and (text := str(wait)):
        headers[DELAYS] = text
    if incoming.malformed is not None:
        headers[MALFORMED] = incoming.malformed
    return headers


def dead_letter(incoming: Incoming, settlement: DeadLetter, subscription: str, at: datetime) -> Headers:
    """Return the headers that a dead letter carries besides its signal's."""
    headers = bookkeeping(incoming, history=settlement.history)
    headers[REASON] = settlement.reason.value
    headers[DETAIL] = _utf8(settlement.detail[:DETAIL_CHARACTERS])
    headers[SUBSCRIPTION] = subscription
    headers[AT] = at.isoformat()
    return headers


def read_dead_letter(message: Received, queue_prefix: str) -> StoredDeadLetter:
    """Read a dead letter: ours, or one that the broker made (delivery limit). Never raises."""
    incoming = read(message, counted=False).incoming
    headers = message.properties.headers
    subscription = headers.get(SUBSCRIPTION)
    detail = headers.get(DETAIL)
    try:
        reason = DeadReason(cast("str", headers.get(REASON)))
    except ValueError:
        reason, detail = DeadReason.BROKER, _broker_detail(headers)
        subscription = message.routing_key.removeprefix(queue_prefix)
    return StoredDeadLetter(
        position=0,  # known once they are in order
        subscription=subscription if isinstance(subscription, str) else "",
        signal=incoming.signal,
        reason=reason,
        detail=detail if isinstance(detail, str) else "",
        attempt=incoming.attempt,
        crashes=incoming.crashes,
        at=_time(headers.get(AT)) or _death_time(headers) or datetime.fromtimestamp(0, UTC),
        history=incoming.history,
    )


def write_history(history: Sequence[Failure]) -> str:
    """Write a history as JSON within the limit: tracebacks go first, then failures from the middle."""
    records = [
        {
            "attempt": failure.attempt,
            "error": failure.error,
            "message": failure.message,
            "at": failure.at.isoformat(),
            "session": failure.session,
            **({"traceback": failure.traceback} if failure.traceback else {}),
        }
        for failure in history
    ]
    text = json.dumps(records)  # ASCII: its length is its size, and no surrogate can break it
    if len(text) > HISTORY_BYTES:
        for record in records:
            record.pop("traceback", None)
        text = json.dumps(records)
    while len(text) > HISTORY_BYTES and records:
        records.pop(1 if len(records) > 2 else 0)
        text = json.dumps(records)
    return text


def read_history(text: object) -> tuple[Failure, ...]:
    """Read a history back; anything that is not one means none."""
    if not isinstance(text, str) or len(text) > 4 * HISTORY_BYTES:
        return ()
    try:
        return tuple(_failure(record) for record in json.loads(text))
    except (ValueError, TypeError, KeyError, RecursionError):
        return ()


def _failure(record: Mapping[str, object]) -> Failure:
    return Failure(
        attempt=_count(record["attempt"]),
        error=str(record["error"]),
        message=str(record["message"]),
        at=datetime.fromisoformat(str(record["at"])),
        session=str(record["session"]),
        traceback=str(record.get("traceback", "")),
    )


def _short(text: str) -> str:
    """Return the part of a text that fits into a short string. Ours always fit; a stranger's routing key may not."""
    if len(text) * 4 <= SHORT_BYTES:
        return text
    return text.encode("utf-8", "replace")[:SHORT_BYTES].decode("utf-8", "ignore")


def _text(attributes: Headers, names: tuple[str, ...]) -> str | None:
    value = attributes.get(names[0])
    if value is None:
        value = attributes.get(names[1]) or attributes.get(names[2])
    return value if isinstance(value, str) else None


def _count(value: object) -> int:
    return min(value, _COUNT_LIMIT) if isinstance(value, int) and value > 0 else 0


def _headers_bytes(headers: Mapping[str, HeaderValue]) -> int:
    return sum(
        len(key.encode("utf-8", "replace")) + (len(value.encode("utf-8", "replace")) if isinstance(value, str) else 8)
        for key, value in headers.items()
    )


def _utf8(text: str) -> str:
    return text.encode("utf-8", "replace").decode()


def _time(text: object) -> datetime | None:
    if not isinstance(text, str):
        return None
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def _deaths(headers: Mapping[str, object]) -> Mapping[str, object]:
    deaths = headers.get("x-death")
    if isinstance(deaths, list) and deaths and isinstance(deaths[0], dict):
        return cast("dict[str, object]", deaths[0])
    return {}


def _broker_detail(headers: Mapping[str, object]) -> str:
    death = _deaths(headers)
    reason = death.get("reason", "unknown reason")
    return f"RabbitMQ gave it up: {reason} in queue {death.get('queue', 'unknown')}"


def _death_time(headers: Mapping[str, object]) -> datetime | None:
    time = _deaths(headers).get("time")
    return time if isinstance(time, datetime) else None


_ACK = struct.Struct(">BHIIQBB")
_MULTIPLE, _NACK_REQUEUE = 0b01, 0b10


def ack(channel: int, delivery_tag: int) -> bytes:
    """Return the frame ``Basic.Ack`` of one delivery. The generic encoder takes ten times as long."""
    return _ACK.pack(1, channel, 13, 0x003C0050, delivery_tag, 0, 0xCE)


def acks(channel: int, tags: Sequence[int], *, oldest_held: int | None) -> bytes:
    """Return the frames that acknowledge ``tags``, the fewest there can be: to a quorum queue each frame is a command.

    One does for all that are older than the oldest delivery in our hands, as everything older is settled; so whatever
    else was settled must have been written before. It means all deliveries up to its own that are not settled yet.
    """
    ordered = sorted(tags)
    count = len(ordered) if oldest_held is None else bisect_left(ordered, oldest_held)
    frames = [ack(channel, tag) for tag in ordered[count:]]
    if count:
        frames.insert(0, _ACK.pack(1, channel, 13, 0x003C0050, ordered[count - 1], _MULTIPLE, 0xCE))
    return b"".join(frames)


def nack(channel: int, delivery_tag: int) -> bytes:
    """Return the frame ``Basic.Nack`` that gives one delivery back to its queue."""
    return _ACK.pack(1, channel, 13, 0x003C0078, delivery_tag, _NACK_REQUEUE, 0xCE)

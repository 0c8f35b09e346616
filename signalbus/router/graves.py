"""A router's file of dead letters: what its transactions do. The contents are kept as the embedded broker keeps them.

Functions over a connection, inside a write transaction of the caller.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import cast

from ..acknowledgements import KIND
from ..brokers.base import PublishOutcome, PublishResult, StoredDeadLetter
from ..brokers.rabbitmq.draining import Arrived
from ..brokers.sqlite.deaths import content
from ..brokers.sqlite.records import Record, pack, pack_history, seal
from ..codec import EncodedSignal
from ..deadletters import transitions
from ..deadletters.death import Death
from ..deadletters.recording import known_death, record
from ..deadletters.selection import Condition, storable
from ..deadletters.transitions import Copy
from ..delivery import DeadReason, Failure
from ..errors import InvalidSignal
from ..ledger import Replayed
from ..receipts import Outcome

SEND_BYTES = 8 * 1024 * 1024  # of one batch
_LATEST = datetime(9999, 1, 1, tzinfo=UTC).timestamp()
_GONE = "its subscription does not exist; declare it, and replay this again"
_DELETED = "its subscription was deleted after this was sent, so it may have been handled or not"
_LOST = "its content is not in the store any more"


@dataclass(frozen=True, slots=True, kw_only=True)
class Sending:
    """A dead letter that is taken up to be sent."""

    number: int
    subscription: str
    signal: EncodedSignal
    fact: Replayed


def bury(connection: sqlite3.Connection, arrived: Sequence[Arrived], now: float) -> None:
    """Store dead letters, those that are stored already excepted."""
    for each in arrived:
        death = _death(each.letter, now)
        if not _is_repeated(connection, each, death):
            _store(connection, death)


def hear(connection: sqlite3.Connection, words: Sequence[bytes], now: float) -> int:
    """Note what subscribers say became of dead letters; return how many words made no sense.

    Only that they are acked: what died again arrives as a dead letter.
    """
    senseless = 0
    for word in words:
        try:
            signal, subscription, outcome = _read(word)
        except (ValueError, TypeError, KeyError, RecursionError):
            senseless += 1
            continue
        if outcome is Outcome.ACKED:
            which = Condition("replay <> '' AND signal = ? AND subscription = ?", (signal, subscription))
            transitions.was_sent(connection, which, at=now)
            transitions.acked(connection, which, at=now)
    return senseless


def take_up(connection: sqlite3.Connection, replay: str, limit: int, now: float) -> tuple[int, list[Sending]]:
    """Take up dead letters of a replay; return how many were looked at, and those to send now."""
    sending: list[Sending] = []
    looked = size = 0
    by = _asker(connection, replay)
    for number in transitions.next_up(connection, replay, limit):
        if size > SEND_BYTES:
            break
        looked += 1
        position, subscription, signal, kind = connection.execute(
            "SELECT content, subscription, signal, type FROM letters WHERE number = ?", (number,)
        ).fetchone()
        death = content(connection, position)
        if death is None or death.damaged:
            transitions.returned(connection, [number], _LOST if death is None else death.detail, at=now)
            continue
        size += len(death.content.body)
        fact = Replayed(signal=signal, type=kind, subscription=subscription, by=by)
        sending.append(Sending(number=number, subscription=subscription, signal=death.content, fact=fact))
    transitions.take_up(connection, (each.number for each in sending))
    return looked, sending


def note(
    connection: sqlite3.Connection, sending: Sequence[Sending], outcomes: Sequence[PublishOutcome], now: float
) -> list[Replayed]:
    """Note how sending ended; return the facts of those that were sent."""
    confirmed: list[Sending] = []
    for each, outcome in zip(sending, outcomes, strict=True):
        match outcome.result:
            case PublishResult.CONFIRMED:
                confirmed.append(each)
            case PublishResult.RETURNED:
                transitions.returned(connection, [each.number], _GONE, at=now)
            case PublishResult.REFUSED:
                transitions.returned(connection, [each.number], f"not sent: {outcome.reason}", at=now)
            case PublishResult.UNKNOWN:
                transitions.laid_down(connection, [each.number])
    copies = [Copy(letter=each.number, queue=transitions.IN_HAND) for each in confirmed]
    transitions.sent(connection, copies, at=now)
    return [each.fact for each in confirmed]


def orphan(connection: sqlite3.Connection, subscription: str, now: float) -> int:
    """Give up what was sent to a subscription that is gone; return how many replays end with that."""
    which = Condition("replay <> '' AND subscription = ?", (storable(subscription),))
    return transitions.orphaned(connection, which, _DELETED, at=now)


def _asker(connection: sqlite3.Connection, replay: str) -> str:
    row = connection.execute("SELECT actor FROM letter_replays WHERE id = ?", (replay,)).fetchone()
    return "" if row is None else str(row[0])


def _is_repeated(connection: sqlite3.Connection, arrived: Arrived, death: Death) -> bool:
    """Whether the broker, or the subscriber, sent the same one twice.

    Subscribers note the time to the microsecond, the broker to the second, if at all: it may give two copies up in
    one second, but says when it hands out one of them again.
    """
    exact = arrived.letter.reason is not DeadReason.BROKER
    if not exact and not arrived.redelivered:
        return False
    if death.at != arrived.letter.at.timestamp():  # it does not say when it died
        return connection.execute("SELECT 1 FROM letters WHERE id = ?", (death.letter,)).fetchone() is not None
    return known_death(connection, death)


def _store(connection: sqlite3.Connection, death: Death) -> None:
    _, head, body, checksum = _packed(death.content)
    position = connection.execute(
        "INSERT INTO dead_letters"
        " (subscription, signal, fanout, checksum, head, body, reason, detail, attempt, crashes, at, history)"
        " VALUES (?, 0, 1, ?, ?, ?, ?, ?, ?, ?, ?, ?) RETURNING position",
        (
            storable(death.subscription),
            *(seal(checksum, 0, 1), head, body, death.reason.value, storable(death.detail)),
            *(death.attempt, death.crashes, death.at, pack_history([_storable(each) for each in death.history])),
        ),
    ).fetchone()[0]
    superseded = record(connection, replace(death, position=position))
    connection.execute("DELETE FROM dead_letters WHERE position = ?", (superseded,))
    connection.execute("UPDATE letter_meta SET recorded = ?", (position,))


def _death(letter: StoredDeadLetter, now: float) -> Death:
    return Death(
        position=0,
        subscription=letter.subscription,
        content=letter.signal,
        reason=letter.reason,
        detail=letter.detail,
        attempt=letter.attempt,
        crashes=letter.crashes,
        at=_time(letter.at, now),
        history=letter.history,
    )


def _time(said: datetime, now: float) -> float:
    """Return when something died; now if it does not say, or cannot be shown anywhere."""
    seconds = said.timestamp()
    return seconds if 0.0 < seconds < _LATEST else now


def _packed(signal: EncodedSignal) -> Record:
    try:
        return pack(signal)
    except InvalidSignal:  # a stranger's, with text that is none
        headers = {
            storable(name): storable(value) if isinstance(value, str) else value
            for name, value in signal.headers.items()
        }
        kind = None if signal.content_type is None else storable(signal.content_type)
        return pack(EncodedSignal(storable(signal.id), storable(signal.type), headers, signal.body, kind))


def _storable(failure: Failure) -> Failure:
    return replace(
        failure,
        error=storable(failure.error),
        message=storable(failure.message),
        session=storable(failure.session),
        traceback=storable(failure.traceback),
    )


def _read(word: bytes) -> tuple[str, str, Outcome]:
    message: object = json.loads(word)
    if not isinstance(message, dict):
        raise TypeError("a word is a JSON object")
    fields = cast("dict[str, object]", message)
    if fields["kind"] != KIND:
        raise ValueError("a word of another kind")
    return storable(str(fields["signal"])), storable(str(fields["subscription"])), Outcome(str(fields["outcome"]))

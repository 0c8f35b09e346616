"""What can be asked without changing anything: rows as the seam's values."""

from __future__ import annotations

import json

from ...deadletters.death import Death
from ...deadletters.queries import reason_of
from ..ages import published_at
from ..base import QueueInfo, StoredDeadLetter
from . import store
from .records import moment, unpack, unpack_head, unpack_history


def queues(connection: store.Connection) -> list[QueueInfo]:
    """Return the subscriptions with what their queues hold, by name."""
    return [
        QueueInfo(
            name=name,
            patterns=tuple(json.loads(patterns)),
            durable=owner is None,
            ready=ready,
            unsettled=claimed,
            delayed=delayed,
            consumers=consumers,
            oldest=None if head is None else published_at(unpack_head(head)),
        )
        for name, patterns, owner, ready, claimed, delayed, consumers, head in store.queue_counts(connection)
    ]


def dead_letters(connection: store.Connection, limit: int) -> list[StoredDeadLetter]:
    """Return what is dead, the oldest first; of a damaged one, what is left."""
    return [_stored(death(row)) for row in store.dead_letters(connection, limit)]


def death(row: store.DeadRow) -> Death:
    """Return a row of dead letters as a value."""
    position, subscription, signal, fanout, checksum, head, body, reason, detail, attempt, crashes, at, history = row
    encoded, malformed = unpack(_number(signal, 0), fanout, checksum, head, body)
    return Death(
        position=position,
        subscription=str(subscription),
        content=encoded,
        reason=reason_of(str(reason)),
        detail=f"{detail} [{malformed}]" if malformed and malformed not in str(detail) else str(detail),
        attempt=_number(attempt, 1),
        crashes=_number(crashes, 0),
        at=moment(at).timestamp(),
        history=unpack_history(history),
        copy=_number(signal, 0),
        damaged=malformed is not None,
    )


def _stored(found: Death) -> StoredDeadLetter:
    return StoredDeadLetter(
        position=found.position,
        subscription=found.subscription,
        signal=found.content,
        reason=found.reason,
        detail=found.detail,
        attempt=found.attempt,
        crashes=found.crashes,
        at=moment(found.at),
        history=found.history,
    )


def _number(stored: object, otherwise: int) -> int:
    return stored if isinstance(stored, int) else otherwise

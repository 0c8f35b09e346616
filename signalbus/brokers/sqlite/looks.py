"""What can be asked without changing anything: rows as the seam's values."""

from __future__ import annotations

import json

from ...delivery import DeadReason
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
    """Return the oldest dead letters; of a damaged one, what is left."""
    return [_dead_letter(row) for row in store.dead_letters(connection, limit)]


def _dead_letter(row: tuple[object, ...]) -> StoredDeadLetter:
    (
        position,
        subscription,
        signal,
        fanout,
        checksum,
        head,
        body,
        reason,
        detail,
        attempt,
        crashes,
        at,
        history,
    ) = row
    encoded, malformed = unpack(_number(signal, 0), fanout, checksum, head, body)
    return StoredDeadLetter(
        position=_number(position, 0),
        subscription=str(subscription),
        signal=encoded,
        reason=_reason(reason),
        detail=f"{detail} [{malformed}]" if malformed and malformed not in str(detail) else str(detail),
        attempt=_number(attempt, 1),
        crashes=_number(crashes, 0),
        at=moment(at),
        history=unpack_history(history),
    )


def _number(stored: object, otherwise: int) -> int:
    return stored if isinstance(stored, int) else otherwise


def _reason(stored: object) -> DeadReason:
    try:
        return DeadReason(str(stored))
    except ValueError:
        return DeadReason.BROKER  # written by another version, or damaged

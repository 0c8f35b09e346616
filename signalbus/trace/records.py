"""Facts as rows of the store and back, and the order of a delivery's progress. Pure."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from enum import IntEnum
from typing import cast

import orjson

from ..ledger import FAILED_STEPS, LedgerError
from ..ledger.facts import SESSION_STEPS, Fact, Origin, Row, to_fact
from .model import State

_UNITS = 1_024 * 1_000_000  # places in a second
_LAST_SECOND = 4_000_000_000.0  # in 2096; beyond it a clock is wrong, and a place would not fit into 63 bits
_MAX_ATTEMPT = 1 << 40


class Rank(IntEnum):
    """How far a delivery got, told fact by fact: where the highest stands, `tree` may see any state of `STATES`.

    Only narrows down where to look. 3 and 6, by far the most, are left out of the index of the others.
    """

    OPEN = 0
    RETRIED = 1
    DEAD = 2
    ACKED = 3
    UNROUTABLE = 4
    ASKED = 5
    REPLIED = 6
    FAILED = 7
    REPLAYED = 8


BITS = 4
#: The ranks among which the deliveries in a state are.
RANKS: dict[State, frozenset[Rank]] = {
    State.WAITING: frozenset({Rank.OPEN, Rank.REPLAYED}),
    State.IN_HAND: frozenset({Rank.OPEN, Rank.REPLAYED}),
    State.RETRYING: frozenset({Rank.RETRIED, Rank.REPLAYED}),
    State.ACKED: frozenset({Rank.ACKED, Rank.REPLAYED}),
    State.DEAD: frozenset({Rank.DEAD, Rank.REPLAYED}),
    State.UNROUTABLE: frozenset({Rank.UNROUTABLE}),
    State.ASKED: frozenset({Rank.ASKED}),
    State.REPLIED: frozenset({Rank.REPLIED, Rank.FAILED}),
    State.FAILED: frozenset({Rank.FAILED}),
}
_DELIVERIES = {
    "delivered": int(Rank.OPEN),
    "released": int(Rank.OPEN),
    "retried": int(Rank.RETRIED),
    "acked": int(Rank.ACKED),
    "dead": int(Rank.DEAD),
}
_OPEN = int(Rank.OPEN)
_REPLAYED = (_MAX_ATTEMPT + 1 << BITS) | Rank.REPLAYED
_REPLIED, _FAILED = (("", int(Rank.REPLIED)),), (("", int(Rank.FAILED)),)
_ASKED, _UNROUTABLE = (("", int(Rank.ASKED)),), (("", int(Rank.UNROUTABLE)),)


def progress(row: Row) -> Iterable[tuple[str, int]]:
    """Return the subscriptions a fact is about, with how far it says their deliveries got; "" for none."""
    fields = cast("Sequence[object]", row)
    kind = cast("str", fields[0])
    if (rank := _DELIVERIES.get(kind)) is not None:
        attempt = cast("int", fields[5]) if len(fields) > 5 else 1
        return ((cast("str", fields[4]), (max(0, min(attempt, _MAX_ATTEMPT)) << BITS) | rank),)
    match kind:
        case "accepted":
            subscriptions = cast("list[str] | None", fields[10]) if len(fields) > 10 else None
            return [(subscription, _OPEN) for subscription in subscriptions or ()]
        case "replayed":
            return ((cast("str", fields[4]), _REPLAYED),)
        case "replied":
            return _REPLIED if fields[5] == "reply" else _FAILED
        case "requested":
            return _ASKED
        case "unroutable":
            return _UNROUTABLE
        case _:
            return ()


def has_failed(row: Row) -> bool:
    """Tell whether a fact makes its signal one of those that failed."""
    return row[0] in FAILED_STEPS or (row[0] == "replied" and row[5] != "reply")


def first_heard(row: Row) -> float:
    """Return when the signal of a fact was published, as far as the fact tells."""
    at = cast("float", row[1])
    if row[0] == "delivered" and len(row) > 7 and row[7]:
        return at - cast("float", row[7])
    return at


def place_of(at: float, signal: str) -> int:
    """Return where a signal belongs, see `schema`; the lowest bits tell apart what happens at the same time."""
    return round_place(at) | zlib.crc32(signal.encode("utf-8", "replace")) & 1_023


def round_place(at: float) -> int:
    """Return the first place of a time."""
    return int(min(max(at, 0.0), _LAST_SECOND) * 1_000_000) << 10


def time_of(place: int) -> float:
    """Return the time of a place."""
    return place / _UNITS


def packed(row: Row) -> bytes:
    """Return a fact without its signal and type, which are stored once."""
    if row[0] in SESSION_STEPS:
        return orjson.dumps(row)
    return orjson.dumps((row[0], row[1], *row[4:]))


def unpacked(origin: Origin, sequence: int, fact: bytes, signal: str, signal_type: str) -> Fact:
    """Return a stored fact. Raises `LedgerError` if it is damaged."""
    try:
        kind, at, *rest = orjson.loads(fact)
        if kind in SESSION_STEPS:
            return to_fact(origin, sequence, (kind, at, *rest))
        return to_fact(origin, sequence, (kind, at, signal, signal_type, *rest))
    except (ValueError, TypeError, KeyError, AssertionError) as error:
        raise LedgerError(
            f"fact {origin.recorder}/{sequence} in the store is damaged; "
            "check the file with 'PRAGMA integrity_check', and restore or remove it"
        ) from error

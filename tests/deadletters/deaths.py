"""Deaths for tests, and tables to record them in."""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping
from datetime import UTC, datetime

from signalbus.codec import EncodedSignal, HeaderValue
from signalbus.deadletters import schema
from signalbus.deadletters.death import Death
from signalbus.deadletters.model import LetterQuery, LetterState
from signalbus.delivery import DeadReason, Failure

NOON = 1_780_000_000.0
EVERYTHING = LetterQuery(states=frozenset(LetterState), limit=1_000)
TRACEBACK = """Traceback (most recent call last):
  File "/app/signalbus/handlers.py", line 80, in run
    await function(data)
  File "/app/shop/billing.py", line 12, in charge
    raise ValueError("no card")
ValueError: no card
"""


def tables() -> sqlite3.Connection:
    """Empty tables in memory."""
    connection = sqlite3.connect(":memory:", isolation_level=None)
    schema.prepare(connection)
    return connection


def content(
    signal: str = "signal-1",
    body: bytes = b"{}",
    kind: str = "order.placed",
    headers: Mapping[str, HeaderValue] | None = None,
) -> EncodedSignal:
    return EncodedSignal(signal, kind, headers or {}, body, "application/json")


def failure(error: str = "ValueError", traceback: str = TRACEBACK) -> Failure:
    at = datetime.fromtimestamp(NOON, UTC)
    return Failure(attempt=1, error=error, message="no card", at=at, session="s", traceback=traceback)


def death(
    signal: str = "signal-1",
    *,
    subscription: str = "billing",
    at: float = NOON,
    position: int = 1,
    copy: int = 0,
    reason: DeadReason = DeadReason.ATTEMPTS,
    detail: str = "1 attempts, the last: ValueError: no card",
    history: tuple[Failure, ...] = (failure(),),
    damaged: bool = False,
    kind: str = "order.placed",
) -> Death:
    return Death(
        position=position,
        subscription=subscription,
        content=content(signal, kind=kind),
        reason=reason,
        detail=detail,
        attempt=1,
        crashes=0,
        at=at,
        history=history,
        copy=copy,
        damaged=damaged,
    )

"""What becomes of a delivery: ``(failure, attempt, policy) -> settlement``. Pure.

Brokers carry settlements out; they never choose one.
"""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

from .errors import DecodeError, Reject, Retry
from .policy import RetryPolicy

HISTORY_LIMIT = 10  # the first failure and the newest ones; it travels with the delivery
MESSAGE_LIMIT = 500  # characters of an error message kept in the history
TRACEBACK_LIMIT = 8_000  # characters, the innermost end


class DeadReason(StrEnum):
    """Why a delivery was given up."""

    ATTEMPTS = "attempts exhausted"
    NEVER_RETRIED = "not retried by policy"
    REJECTED = "rejected by the handler"
    UNDECODABLE = "undecodable"
    CRASHES = "its subscriber died too often while holding it"
    BROKER = "given up by the broker"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """One failed attempt. ``traceback`` is kept for the newest failure only."""

    attempt: int
    error: str
    message: str
    at: datetime
    session: str
    traceback: str = ""


@dataclass(frozen=True, slots=True)
class Ack:
    """Done: forget the delivery."""


@dataclass(frozen=True, slots=True)
class RetryLater:
    """Deliver again after ``delay``, as the next attempt, with ``history``."""

    delay: timedelta
    history: tuple[Failure, ...]


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """Give the delivery up and keep it, with the reason and ``history``."""

    reason: DeadReason
    detail: str
    history: tuple[Failure, ...]


@dataclass(frozen=True, slots=True)
class Release:
    """Give the delivery back untouched: it was never started. Not an attempt."""


Settlement = Ack | RetryLater | DeadLetter | Release

ACK = Ack()
RELEASE = Release()


def after_failure(
    error: BaseException, failure: Failure, *, policy: RetryPolicy, history: Sequence[Failure], random: float
) -> RetryLater | DeadLetter:
    """Return the settlement of a delivery whose handler raised ``error``, described by ``failure``.

    ``history`` has the earlier failures; ``random`` in [0, 1) feeds the jitter.
    """
    trail = _trail(history, failure)
    said = f"{failure.error}: {failure.message}"
    if isinstance(error, Reject):
        return DeadLetter(DeadReason.REJECTED, failure.message, trail)
    if isinstance(error, DecodeError):
        return DeadLetter(DeadReason.UNDECODABLE, failure.message, trail)
    rule = policy.for_error(type(error))
    if policy.gives_up_on(type(error)) or rule.gives_up_on(type(error)):
        return DeadLetter(DeadReason.NEVER_RETRIED, said, trail)
    if failure.attempt >= rule.max_attempts:
        return DeadLetter(DeadReason.ATTEMPTS, f"{failure.attempt} attempts, the last: {said}", trail)
    if isinstance(error, Retry) and error.delay is not None:
        return RetryLater(max(error.delay, timedelta(0)), trail)
    return RetryLater(rule.delay_after(failure.attempt, random), trail)


def after_crashes(crashes: int, history: Sequence[Failure]) -> DeadLetter:
    """Return the settlement of a delivery that ``crashes`` subscribers held when they died: no handler may see it."""
    detail = f"{crashes} times its subscriber died or lost the broker while holding it"
    return DeadLetter(DeadReason.CRASHES, detail, tuple(history))


def describe(error: BaseException, *, attempt: int, at: datetime, session: str) -> Failure:
    """Return the record of a failed attempt; texts are bounded, since they travel in headers."""
    try:
        message = str(error)
    except Exception as broken:  # noqa: BLE001 - a foreign __str__ may do anything
        message = f"<__str__ raised {type(broken).__name__}>"
    kind = type(error)
    known = kind.__module__ in ("builtins", "signalbus.errors")
    return Failure(
        attempt=attempt,
        error=kind.__qualname__ if known else f"{kind.__module__}.{kind.__qualname__}",
        message=_storable(message[:MESSAGE_LIMIT]),
        at=at,
        session=session,
        traceback="" if isinstance(error, Retry | Reject) else _storable(_traceback(error)),
    )


def _traceback(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error, limit=-20))[-TRACEBACK_LIMIT:]
    except Exception as broken:  # noqa: BLE001 - format_exception calls foreign __str__ and __repr__
        return f"<no traceback: formatting it raised {type(broken).__name__}>"


def _storable(text: str) -> str:
    """Replace lone surrogates, which no store can encode."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _trail(history: Sequence[Failure], newest: Failure) -> tuple[Failure, ...]:
    earlier = [_without_traceback(failure) for failure in history]
    if len(earlier) >= HISTORY_LIMIT:
        earlier = earlier[:1] + earlier[-(HISTORY_LIMIT - 2) :]
    return (*earlier, newest)


def _without_traceback(failure: Failure) -> Failure:
    return replace(failure, traceback="") if failure.traceback else failure

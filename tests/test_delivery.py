"""What becomes of a delivery: the table of settlements."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from signalbus import DecodeError, Failure, Reject, Retry, RetryPolicy
from signalbus.delivery import (
    HISTORY_LIMIT,
    MESSAGE_LIMIT,
    TRACEBACK_LIMIT,
    DeadLetter,
    DeadReason,
    RetryLater,
    after_crashes,
    after_failure,
    describe,
)

SECOND = timedelta(seconds=1)
NOW = datetime(2026, 1, 2, tzinfo=UTC)
POLICY = RetryPolicy(
    max_attempts=3,
    initial=SECOND,
    multiplier=2,
    jitter=False,
    never=(LookupError,),
    rules={
        TimeoutError: RetryPolicy(max_attempts=5, initial=10 * SECOND, jitter=False),
        OSError: RetryPolicy(max_attempts=1),
        ArithmeticError: RetryPolicy(max_attempts=9, never=(ZeroDivisionError,), jitter=False),
    },
)


def failure(attempt: int, error: BaseException | None = None) -> Failure:
    return describe(error or ValueError("no"), attempt=attempt, at=NOW, session="s")


TABLE: list[tuple[BaseException, int, timedelta | DeadReason]] = [
    (ValueError("no"), 1, 1 * SECOND),
    (ValueError("no"), 2, 2 * SECOND),
    (ValueError("no"), 3, DeadReason.ATTEMPTS),
    (ValueError("no"), 4, DeadReason.ATTEMPTS),  # the policy was made stricter while it waited
    (KeyError("no"), 1, DeadReason.NEVER_RETRIED),
    (TimeoutError("no"), 3, 40 * SECOND),
    (TimeoutError("no"), 5, DeadReason.ATTEMPTS),
    (ConnectionResetError("no"), 1, DeadReason.ATTEMPTS),
    (OverflowError("no"), 8, 128 * SECOND),
    (ZeroDivisionError("no"), 1, DeadReason.NEVER_RETRIED),
    (Reject("no"), 1, DeadReason.REJECTED),
    (DecodeError("no"), 1, DeadReason.UNDECODABLE),
    (Retry(), 1, 1 * SECOND),
    (Retry(delay=30 * SECOND), 2, 30 * SECOND),
    (Retry(delay=timedelta(0)), 1, timedelta(0)),
    (Retry(delay=-SECOND), 1, timedelta(0)),
    (Retry(delay=30 * SECOND), 3, DeadReason.ATTEMPTS),
    (SystemExit(1), 1, 1 * SECOND),
    (KeyboardInterrupt(), 3, DeadReason.ATTEMPTS),
]


@pytest.mark.parametrize(("error", "attempt", "expected"), TABLE, ids=[f"{row[0]!r}-{row[1]}" for row in TABLE])
def test_the_table_of_settlements(error: BaseException, attempt: int, expected: timedelta | DeadReason) -> None:
    history = [failure(n) for n in range(1, attempt)]
    settlement = after_failure(error, failure(attempt, error), policy=POLICY, history=history, random=0.5)
    match settlement:
        case RetryLater():
            assert settlement.delay == expected
        case DeadLetter():
            assert settlement.reason == expected
    assert [entry.attempt for entry in settlement.history] == list(range(1, attempt + 1))


def test_a_dead_letter_says_why() -> None:
    rejected = after_failure(Reject("no stock"), failure(1, Reject("no stock")), policy=POLICY, history=[], random=0)
    assert isinstance(rejected, DeadLetter)
    assert rejected.detail == "no stock"
    exhausted = after_failure(ValueError("no"), failure(3), policy=POLICY, history=[], random=0)
    assert isinstance(exhausted, DeadLetter)
    assert exhausted.detail == "3 attempts, the last: ValueError: no"
    crashed = after_crashes(10, [failure(1)])
    assert crashed.reason is DeadReason.CRASHES
    assert "10" in crashed.detail
    assert crashed.history == (failure(1),)


def test_the_history_is_bounded_and_keeps_the_first_and_the_newest() -> None:
    trail: tuple[Failure, ...] = ()
    policy = RetryPolicy(max_attempts=1_000)
    for attempt in range(1, 51):
        settlement = after_failure(ValueError(), failure(attempt), policy=policy, history=trail, random=0)
        assert isinstance(settlement, RetryLater)
        trail = settlement.history
        assert len(trail) <= HISTORY_LIMIT
    assert [entry.attempt for entry in trail] == [1, *range(42, 51)]


def raised(error: BaseException) -> BaseException:
    try:
        raise error
    except BaseException as caught:  # noqa: BLE001 - any error, with its traceback
        return caught


def test_only_the_newest_failure_keeps_its_traceback() -> None:
    first, second = failure(1, raised(ValueError("one"))), failure(2, raised(ValueError("two")))
    assert "ValueError: one" in first.traceback
    settlement = after_failure(ValueError(), second, policy=POLICY, history=[first], random=0)
    assert not isinstance(settlement, DeadLetter)
    assert [bool(entry.traceback) for entry in settlement.history] == [False, True]


class Hostile(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")

    __repr__ = __str__


def test_a_failure_is_described_whatever_the_exception_does() -> None:
    assert describe(raised(Hostile()), attempt=1, at=NOW, session="s").message == "<__str__ raised RuntimeError>"
    lone = describe(raised(ValueError("a\ud800b")), attempt=1, at=NOW, session="s")
    lone.message.encode()
    lone.traceback.encode()


def recurse() -> None:
    recurse()


def test_texts_are_bounded() -> None:
    record = describe(raised(ValueError("x" * 10**6)), attempt=1, at=NOW, session="s")
    assert len(record.message) == MESSAGE_LIMIT
    assert len(record.traceback) <= TRACEBACK_LIMIT
    with pytest.raises(RecursionError) as caught:
        recurse()
    deep = describe(caught.value, attempt=1, at=NOW, session="s")
    assert len(deep.traceback) <= TRACEBACK_LIMIT
    assert "RecursionError" in deep.traceback


def test_control_flow_has_no_traceback_and_exceptions_are_named_fully() -> None:
    assert describe(raised(Retry("later")), attempt=1, at=NOW, session="s").traceback == ""
    assert describe(Reject("x"), attempt=1, at=NOW, session="s").error == "Reject"
    assert describe(ValueError("x"), attempt=1, at=NOW, session="s").error == "ValueError"
    assert describe(Hostile(), attempt=1, at=NOW, session="s").error == f"{__name__}.Hostile"

"""What a router's transactions do, without a broker."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import orjson
import pytest

from signalbus.brokers.base import CONFIRMED, RETURNED, PublishOutcome, PublishResult, StoredDeadLetter
from signalbus.brokers.rabbitmq.draining import Arrived
from signalbus.brokers.sqlite.letters import whole
from signalbus.codec import EncodedSignal
from signalbus.deadletters import queries, schema, transitions
from signalbus.deadletters.file import LetterFile
from signalbus.deadletters.model import LetterState, LetterSummary
from signalbus.deadletters.transitions import Claim
from signalbus.delivery import DeadReason, Failure
from signalbus.router import graves
from signalbus.trace.store import SqliteStore
from tests.deadletters.deaths import EVERYTHING, NOON, content, failure, tables

UNKNOWN = PublishOutcome(PublishResult.UNKNOWN, "cut")


@pytest.fixture
def connection() -> Iterator[sqlite3.Connection]:
    connection = tables()
    yield connection
    connection.close()


def arrived(
    signal: EncodedSignal | None = None,
    *,
    at: float = NOON,
    reason: DeadReason = DeadReason.ATTEMPTS,
    redelivered: bool = False,
    subscription: str = "billing",
    history: tuple[Failure, ...] = (failure(),),
    detail: str = "3 attempts",
) -> Arrived:
    letter = StoredDeadLetter(
        position=0,
        subscription=subscription,
        signal=signal or content(),
        reason=reason,
        detail=detail,
        attempt=3,
        crashes=1,
        at=datetime.fromtimestamp(at, UTC),
        history=history,
    )
    return Arrived(letter=letter, redelivered=redelivered)


def listed(connection: sqlite3.Connection) -> list[LetterSummary]:
    return list(reversed(queries.page(connection, EVERYTHING).letters))


def contents(connection: sqlite3.Connection) -> int:
    return int(connection.execute("SELECT count(*) FROM dead_letters").fetchone()[0])


def claim(connection: sqlite3.Connection) -> str:
    transitions.claim(connection, EVERYTHING, Claim(id="r1", by="ann", at=NOON, rate=10.0))
    return "r1"


def test_a_dead_letter_comes_back_as_it_was(connection: sqlite3.Connection) -> None:
    signal = content(body=b"\0\xff" * 100, headers={"cloudEvents_x": "\u202e\0", "cloudEvents_n": 2**62})
    graves.bury(connection, [arrived(signal)], NOON)
    [letter] = listed(connection)
    found = whole(connection, letter.id)
    assert found is not None
    assert (found.content, found.history) == (signal, (failure(),))
    assert (letter.attempt, letter.crashes, letter.place) == (3, 1, "billing.py:12 in charge")


def test_a_letter_that_arrives_twice_died_once(connection: sqlite3.Connection) -> None:
    graves.bury(connection, [arrived(), arrived(redelivered=True)], NOON)
    graves.bury(connection, [arrived(redelivered=True), arrived(at=NOON + 1)], NOON)
    assert [letter.deaths for letter in listed(connection)] == [2]
    assert contents(connection) == 1


def test_what_the_broker_gave_up_twice_within_a_second_died_twice(connection: sqlite3.Connection) -> None:
    given_up = DeadReason.BROKER  # whose times are of whole seconds
    graves.bury(connection, [arrived(reason=given_up), arrived(reason=given_up)], NOON)
    assert [letter.deaths for letter in listed(connection)] == [2]
    graves.bury(connection, [arrived(reason=given_up, redelivered=True)], NOON)
    assert [letter.deaths for letter in listed(connection)] == [2]


def test_what_does_not_say_when_it_died_died_now_and_once(connection: sqlite3.Connection) -> None:
    silent = DeadReason.BROKER
    graves.bury(connection, [arrived(reason=silent, at=0.0)], NOON)
    graves.bury(connection, [arrived(reason=silent, at=0.0, redelivered=True)], NOON + 5)
    assert [(letter.deaths, letter.died.timestamp()) for letter in listed(connection)] == [(1, NOON)]
    graves.bury(connection, [arrived(reason=silent, at=0.0)], NOON + 6)
    assert [letter.deaths for letter in listed(connection)] == [2]


@pytest.mark.parametrize(
    "at", [datetime(1, 1, 1, tzinfo=timezone(timedelta(hours=14))), datetime(9999, 12, 31, tzinfo=UTC)]
)
def test_a_time_beyond_the_calendar_does_no_harm(connection: sqlite3.Connection, at: datetime) -> None:
    odd = arrived()
    graves.bury(connection, [replace(odd, letter=replace(odd.letter, at=at))], NOON)
    assert [letter.died.timestamp() for letter in listed(connection)] == [NOON]


def test_text_that_is_none_is_kept_as_far_as_it_can_be(connection: sqlite3.Connection) -> None:
    signal = EncodedSignal(
        "id-\udc80", "type-\udc80", {"cloudEvents_x\udc80": "\udcff", "cloudEvents_n": 1}, b"x", "a\udc80"
    )
    broken = Failure(
        attempt=1,
        error="E\udc80",
        message="\udc80",
        at=datetime.fromtimestamp(NOON, UTC),
        session="\udc80",
        traceback="\udc80",
    )
    graves.bury(connection, [arrived(signal, subscription="s\udc80", history=(broken,), detail="d\udc80")], NOON)
    [letter] = listed(connection)
    assert (letter.signal, letter.type, letter.subscription, letter.detail) == ("id-?", "type-?", "s?", "d?")
    assert whole(connection, letter.id) is not None


def test_how_sending_ends_decides_what_becomes_of_each(connection: sqlite3.Connection) -> None:
    graves.bury(connection, [arrived(content(f"signal-{n}"), at=NOON + n) for n in range(4)], NOON)
    replay = claim(connection)
    looked, sending = graves.take_up(connection, replay, 4, NOON)
    assert looked == 4
    assert graves.take_up(connection, replay, 4, NOON) == (0, [])  # all in hand
    refused = PublishOutcome(PublishResult.REFUSED, "too large")
    facts = graves.note(connection, sending, [CONFIRMED, RETURNED, refused, UNKNOWN], NOON)
    assert [(fact.signal, fact.subscription, fact.by) for fact in facts] == [("signal-0", "billing", "ann")]
    assert [(letter.state, letter.note) for letter in listed(connection)] == [
        (LetterState.REPLAYING, ""),
        (LetterState.DEAD, "its subscription does not exist; declare it, and replay this again"),
        (LetterState.DEAD, "not sent: too large"),
        (LetterState.WAITING, ""),
    ]
    assert [each.signal.id for each in graves.take_up(connection, replay, 4, NOON)[1]] == ["signal-3"]


def test_a_batch_has_a_bound_in_bytes(connection: sqlite3.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graves, "SEND_BYTES", 100)
    graves.bury(connection, [arrived(content(f"signal-{n}", body=b"x" * 80), at=NOON + n) for n in range(4)], NOON)
    replay = claim(connection)
    assert [len(graves.take_up(connection, replay, 10, NOON)[1]) for _ in range(3)] == [2, 2, 0]


def test_a_content_that_is_damaged_on_disk_is_not_sent(connection: sqlite3.Connection) -> None:
    graves.bury(connection, [arrived()], NOON)
    connection.execute("UPDATE dead_letters SET body = CAST('other' AS BLOB)")
    replay = claim(connection)
    assert graves.take_up(connection, replay, 10, NOON) == (1, [])
    [letter] = listed(connection)
    assert letter.state is LetterState.DEAD
    assert "checksum" in letter.note


def test_an_ack_is_heard_only_of_what_may_have_been_sent(connection: sqlite3.Connection) -> None:
    graves.bury(connection, [arrived()], NOON)
    word = {"kind": "settled", "signal": "signal-1", "subscription": "billing", "outcome": "acked"}
    words = [orjson.dumps(word), b"nonsense"]

    def state() -> LetterState:
        return listed(connection)[0].state

    assert graves.hear(connection, words, NOON) == 1
    assert state() is LetterState.DEAD
    replay = claim(connection)
    graves.hear(connection, words, NOON)
    assert state() is LetterState.WAITING
    graves.take_up(connection, replay, 1, NOON)
    graves.hear(connection, [orjson.dumps({**word, "outcome": "dead"})], NOON)
    assert state() is LetterState.WAITING
    graves.hear(connection, words, NOON)
    assert state() is LetterState.ACKED
    graves.hear(connection, words, NOON)
    progress = queries.progress(connection, replay)
    assert progress is not None
    assert (progress.acked, progress.settled) == (1, True)


def test_the_file_of_a_ledger_gets_the_tables_of_dead_letters(tmp_path: Path) -> None:
    path = tmp_path / "router.db"
    SqliteStore(path).close()
    for _ in range(2):
        file = LetterFile(path)
        file.write(schema.prepare)
        assert file.read(queries.awaited) == []
        file.close()
    SqliteStore(path).close()

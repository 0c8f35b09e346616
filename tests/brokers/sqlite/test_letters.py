"""Dead letters of the embedded broker: several processes, earlier versions, deaths in the middle, and many of them."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from signalbus.brokers.base import SubscriptionSpec
from signalbus.brokers.sqlite import SqliteBroker, replays, writer
from signalbus.brokers.sqlite.clock import Clock
from signalbus.brokers.sqlite.consumer import SqliteConsumer
from signalbus.brokers.sqlite.records import pack, pack_history, seal
from signalbus.deadletters import DeadLetters, LetterQuery, LetterState, LetterSummary, Replay
from signalbus.delivery import ACK, DeadLetter, DeadReason
from signalbus.errors import BusClosed, ConfigError
from tests.brokers.sqlite.support import SECONDS, WORK, Place, receive, signal, signals, wait_until
from tests.deadletters.deaths import EVERYTHING, NOON, failure

GIVEN_UP = DeadLetter(DeadReason.REJECTED, "no", (failure(),))


@asynccontextmanager
async def letters_of(broker: SqliteBroker) -> AsyncIterator[DeadLetters]:
    letters = await broker.letters(SECONDS)
    try:
        yield letters
    finally:
        await letters.aclose()


async def bury(broker: SqliteBroker, consumer: SqliteConsumer, count: int) -> None:
    """Publish some signals and give them up."""
    await broker.publish(signals(count), SECONDS)
    for incoming in await receive(consumer, count):
        assert await consumer.settle(incoming, GIVEN_UP)


async def listed(letters: DeadLetters, *states: LetterState) -> list[LetterSummary]:
    """Return dead letters, oldest first."""
    query = LetterQuery(states=frozenset(states or LetterState), limit=1_000)
    return list(reversed((await letters.page(query)).letters))


async def progress(letters: DeadLetters, replay: Replay) -> Replay:
    found = await letters.progress(replay.id)
    assert found is not None
    return found


async def test_a_process_that_knows_nothing_of_this_buries_and_its_dead_letters_are_there(place: Place) -> None:
    broker, consumer = await place.serving()
    await bury(broker, consumer, 1)
    async with letters_of(broker) as letters:
        assert len(await listed(letters)) == 1
        other = sqlite3.connect(place.path, isolation_level=None)  # as version 2 does it
        _, head, body, checksum = pack(signal("theirs"))
        row = (77, 1, seal(checksum, 77, 1), head, body, "rejected by the handler", "no", time.time())
        other.execute(
            "INSERT INTO dead_letters (subscription, signal, fanout, checksum, head, body, reason, detail, attempt,"
            " crashes, at, history) VALUES ('work', ?, ?, ?, ?, ?, ?, ?, 1, 0, ?, NULL)",
            row,
        )
        other.close()
        assert [each.deaths for each in await listed(letters)] == [1, 1]
        replay = await letters.replay(LetterQuery(), by="ann", rate=100.0)
        assert replay.total == 2
        for incoming in await receive(consumer, 2):
            assert (incoming.attempt, incoming.crashes, incoming.history) == (1, 0, ())
            assert await consumer.settle(incoming, ACK)
        assert (await progress(letters, replay)).acked == 2


async def test_what_was_replayed_or_discarded_is_not_peeked_at_any_more(place: Place) -> None:
    broker, consumer = await place.serving()
    await bury(broker, consumer, 4)
    assert len(await broker.dead_letters(10, SECONDS)) == 4
    async with letters_of(broker) as letters:
        acked, discarded, *left = await listed(letters)
        await letters.discard(LetterQuery(ids=(discarded.id,)), by="ann")
        await letters.replay(LetterQuery(ids=(acked.id,)), by="ann", rate=100.0)
        [incoming] = await receive(consumer)
        assert [each.signal.id for each in await broker.dead_letters(10, SECONDS)] == [each.signal for each in left]
        await consumer.settle(incoming, GIVEN_UP)
        peeked = [each.signal.id for each in await broker.dead_letters(10, SECONDS)]
        assert peeked == [*(each.signal for each in left), acked.signal]
        assert [each.deaths for each in await listed(letters)] == [1, 1, 1, 2]
        assert [each.signal.id for each in await broker.dead_letters(10, SECONDS)] == peeked


async def test_a_replay_wakes_a_subscriber_in_another_process(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writer, "_POLL_SECONDS", 3_600.0)  # who is not told finds it too late
    serving, consumer = await place.serving()
    await bury(serving, consumer, 1)
    other = await place.open()
    async with letters_of(other) as letters:
        replay = await letters.replay(LetterQuery(), by="ann", rate=100.0)
        [incoming] = await receive(consumer)
        assert (await progress(letters, replay)).pending == 1
        await consumer.settle(incoming, ACK)
        assert (await progress(letters, replay)).acked == 1


async def test_what_a_killed_process_was_to_send_is_dead_again(place: Place) -> None:
    broker, consumer = await place.serving()
    await bury(broker, consumer, 5)
    peer = place.peer("replay")
    replay, total = (await peer.line()).split()
    assert total == "5"
    [incoming] = await receive(consumer)
    async with letters_of(broker) as letters:
        assert (await letters.replay(LetterQuery(), by="ann")).taken == 5
        peer.kill()

        async def given_back() -> bool:
            found = await letters.progress(replay)
            return found is not None and not found.waiting

        await wait_until(given_back)
        found = await letters.progress(replay)
        assert found is not None
        sent = found.pending
        assert (sent >= 1, found.cancelled) == (True, 5 - sent)
        dead = await listed(letters, LetterState.DEAD)
        assert {each.note for each in dead} == {"the process that was to send it has ended"}
        await consumer.settle(incoming, ACK)
        again = await letters.replay(LetterQuery(), by="ann", rate=100.0)
        assert again.total == 5 - sent
        for incoming in await receive(consumer, 4):
            await consumer.settle(incoming, ACK)
        assert {each.state for each in await listed(letters)} == {LetterState.ACKED}


@pytest.mark.parametrize("what", ["letters", "broker"])
async def test_closing_in_the_middle_makes_the_rest_dead_again(place: Place, what: str) -> None:
    broker, consumer = await place.serving()
    await bury(broker, consumer, 5)
    closing = await place.open()
    letters = await closing.letters(SECONDS)
    replay = await letters.replay(LetterQuery(), by="ann", rate=1.0)
    await receive(consumer)
    await (letters if what == "letters" else closing).aclose()
    with pytest.raises(BusClosed):
        await letters.page(LetterQuery())
    async with letters_of(broker) as ours:
        found = await progress(ours, replay)
        assert (found.waiting, found.pending + found.cancelled) == (0, 5)
        assert {each.note for each in await listed(ours, LetterState.DEAD)} == {"whoever was to send it has stopped"}


@pytest.mark.parametrize("again", [False, True])
async def test_a_subscription_that_is_deleted_meanwhile_leaves_its_replays_dead(place: Place, again: bool) -> None:
    broker, consumer = await place.serving()
    await bury(broker, consumer, 2)
    await consumer.aclose()
    async with letters_of(broker) as letters:
        replay = await letters.replay(LetterQuery(), by="ann", rate=100.0)

        async def sent() -> bool:
            return (await progress(letters, replay)).pending == 2

        await wait_until(sent)
        await broker.delete(WORK.name, SECONDS)
        if again:
            await broker.declare(WORK, SECONDS)
        found = await progress(letters, replay)
        assert (found.died_again, found.acked) == (2, 0)
        notes = {each.note for each in await listed(letters, LetterState.DEAD)}
        assert notes == {"its subscription was deleted after this was sent, so it may have been handled or not"}


async def test_another_subscription_of_the_same_name_gets_the_replay(place: Place) -> None:
    broker, consumer = await place.serving()
    await bury(broker, consumer, 1)
    await consumer.aclose()
    await broker.delete(WORK.name, SECONDS)
    await broker.declare(SubscriptionSpec(name=WORK.name, patterns=("something.else",)), SECONDS)
    later = await broker.consume(WORK.name, 10, SECONDS)
    async with letters_of(broker) as letters:
        replay = await letters.replay(LetterQuery(), by="ann")
        [incoming] = await receive(later)
        await later.settle(incoming, ACK)
        assert (await progress(letters, replay)).acked == 1


async def test_what_is_damaged_is_not_sent(place: Place) -> None:
    broker, consumer = await place.serving()
    await bury(broker, consumer, 2)
    await broker.aclose()
    with place.raw() as connection:
        connection.execute("UPDATE dead_letters SET body = CAST(body || x'00' AS BLOB) WHERE position = 1")
    broker = await place.open()
    async with letters_of(broker) as letters:
        replay = await letters.replay(LetterQuery(), by="ann", rate=100.0)

        async def ended() -> bool:
            return not (await progress(letters, replay)).sending

        await wait_until(ended)
        found = await progress(letters, replay)
        assert (found.returned, found.pending) == (1, 1)
        [damaged] = await listed(letters, LetterState.DEAD)
        assert "checksum" in damaged.detail
        assert damaged.note == "it is damaged in the database, so it is not sent"


async def test_a_replay_waits_while_there_is_no_room(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    broker, consumer = await place.serving()
    await bury(broker, consumer, 1)
    full = [True]
    monkeypatch.setattr(
        "signalbus.brokers.sqlite.database.Database.short_of_space", lambda _: "no room" if full[0] else ""
    )
    async with letters_of(broker) as letters:
        replay = await letters.replay(LetterQuery(), by="ann", rate=100.0)
        assert (await progress(letters, replay)).waiting == 1
        full[0] = False
        [incoming] = await receive(consumer)
        await consumer.settle(incoming, ACK)
        assert (await progress(letters, replay)).acked == 1


async def test_a_bug_in_sending_is_seen_and_what_waits_is_dead_again(
    place: Place, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(*_: object, **__: object) -> tuple[int, object]:
        return 1, ["a fact"]

    broker, consumer = await place.serving()
    await bury(broker, consumer, 2)
    monkeypatch.setattr(replays, "send", broken)
    monkeypatch.setattr("signalbus.brokers.sqlite.letters.Batch", None)
    async with letters_of(broker) as letters:
        replay = await letters.replay(LetterQuery(), by="ann", rate=100.0)
        await wait_until(lambda: _cancelled(letters, replay, 2))
        assert {each.note for each in await listed(letters)} == {"sending failed again and again; see the log"}
    assert "giving up" in caplog.text


async def _cancelled(letters: DeadLetters, replay: Replay, count: int) -> bool:
    return (await progress(letters, replay)).cancelled == count


async def test_a_rate_or_a_state_that_cannot_be_is_refused_before_anything_is_claimed(place: Place) -> None:
    broker, consumer = await place.serving()
    await bury(broker, consumer, 1)
    async with letters_of(broker) as letters:
        for rate in (0.0, -1.0, float("nan"), 1e9):
            with pytest.raises(ConfigError, match="rate"):
                await letters.replay(LetterQuery(), by="ann", rate=rate)
        with pytest.raises(ConfigError, match="pattern"):
            await letters.replay(LetterQuery(patterns=("a..b",)), by="ann")
        assert await letters.replays() == []
        assert [each.state for each in await listed(letters)] == [LetterState.DEAD]


async def test_dead_letters_of_a_file_of_version_2_are_there(place: Place) -> None:
    broker, consumer = await place.serving()
    await bury(broker, consumer, 3)
    await broker.aclose()
    with place.raw() as connection:
        for table in ("letter_meta", "letters", "letter_deaths", "letter_replays", "letter_audit"):
            connection.execute(f"DROP TABLE {table}")
        connection.execute("PRAGMA user_version = 2")
    broker = await place.open()
    async with letters_of(broker) as letters:
        assert [(each.state, each.place) for each in await listed(letters)] == [
            (LetterState.DEAD, "billing.py:12 in charge")
        ] * 3


async def test_what_was_acked_a_month_ago_is_forgotten_with_its_content(place: Place) -> None:
    days = [0.0]
    broker, consumer = await place.serving(clock=Clock(wall=lambda: time.time() + days[0] * 86_400))
    await bury(broker, consumer, 3)
    async with letters_of(broker) as letters:
        acked, discarded, _ = await listed(letters)
        await letters.discard(LetterQuery(ids=(discarded.id,)), by="ann")
        replay = await letters.replay(LetterQuery(ids=(acked.id,)), by="ann")
        [incoming] = await receive(consumer)
        await consumer.settle(incoming, ACK)
        days[0] = 29.0
        assert (await progress(letters, replay)).acked == 1
        assert len(await listed(letters)) == 3
        days[0] = 60.0
        assert [each.state for each in await listed(letters)] == [LetterState.DISCARDED, LetterState.DEAD]
        assert (await progress(letters, replay)).acked == 1
        assert await letters.get(acked.id) is None
    await broker.aclose()
    with place.raw() as connection:
        assert connection.execute("SELECT count(*) FROM dead_letters").fetchone() == (2,)


def _many(connection: sqlite3.Connection, count: int) -> None:
    """Bury many, of a hundred types and twenty errors."""
    rows: list[tuple[Any, ...]] = []
    for number in range(count):
        _, head, body, checksum = pack(signal({"number": number}, type=f"work.t{number % 100}"))
        history = pack_history((failure(f"shop.Error{number % 20}"),))
        row = (number, 1, seal(checksum, number, 1), head, body)
        rows.append((*row, DeadReason.ATTEMPTS.value, f"detail {number}", NOON + number, history))
    connection.execute("BEGIN")
    connection.executemany(
        "INSERT INTO dead_letters (subscription, signal, fanout, checksum, head, body, reason, detail, attempt,"
        " crashes, at, history) VALUES ('work', ?, ?, ?, ?, ?, ?, ?, 3, 0, ?, ?)",
        rows,
    )
    connection.execute("COMMIT")


async def _seconds(ask: Callable[[], Awaitable[object]]) -> float:
    """The processor's time, the least of three: others use this machine as well."""
    times: list[float] = []
    for _ in range(3):
        started = time.process_time()
        await ask()
        times.append(time.process_time() - started)
    return min(times)


async def test_of_ten_thousand_dead_letters_lists_and_groups_take_less_than_200_ms(place: Place) -> None:
    await (await place.open()).aclose()
    with place.raw() as connection:
        _many(connection, 10_000)
    broker = await place.open()
    async with letters_of(broker) as letters:
        assert (await letters.page(EVERYTHING)).total == 10_000  # all are put on record now
        asked: dict[str, Callable[[], Awaitable[object]]] = {
            "page": lambda: letters.page(LetterQuery(limit=50)),
            "far page": lambda: letters.page(LetterQuery(limit=50, after=f"{NOON + 100!r}~99")),
            "by pattern": lambda: letters.page(LetterQuery(patterns=("*.t7", "work.t8"))),
            "by error": lambda: letters.page(LetterQuery(error="Error7")),
            "groups": lambda: letters.groups(LetterQuery()),
            "find": lambda: letters.find("abcdef"),
        }
        # The best of three: others have the processor now and then.
        took = {name: min([await _seconds(ask) for _ in range(3)]) for name, ask in asked.items()}
        groups = await letters.groups(LetterQuery())
        assert (len(groups), {group.count for group in groups}) == (20, {500})
        assert (await letters.page(LetterQuery(error="Error7"))).total == 500
        assert (await letters.page(LetterQuery(patterns=("*.t7", "work.t8")))).total == 200
    assert max(took.values()) < 0.2, took


async def test_questions_at_the_same_time_do_not_stand_in_each_others_way(place: Place) -> None:
    broker, consumer = await place.serving()
    await bury(broker, consumer, 10)
    async with letters_of(broker) as letters, letters_of(broker) as more:
        pages = await asyncio.gather(*(each.page(LetterQuery()) for each in (letters, more) * 10))
        assert {page.total for page in pages} == {10}

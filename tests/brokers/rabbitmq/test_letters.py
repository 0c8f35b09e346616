"""Dead letters at a router: taken in once, sent at least once, heard of even when the router was away meanwhile."""

from __future__ import annotations

import asyncio
import os
import signal as signals
import sqlite3
import sys
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import orjson
import pytest
from aiormq.abc import AbstractChannel
from pamqp import commands

from signalbus.acknowledgements import Acknowledgements
from signalbus.brokers.base import Consumer, Incoming, PublishOutcome, PublishResult
from signalbus.brokers.rabbitmq import RabbitBroker
from signalbus.brokers.rabbitmq.draining import Arrived
from signalbus.codec import RECEIPT_TO, EncodedSignal
from signalbus.deadletters import LetterQuery, LetterState, LetterSummary, Replay
from signalbus.delivery import ACK, DeadLetter, DeadReason, Settlement
from signalbus.errors import StorageError
from signalbus.ledger import Replayed
from signalbus.router import graves
from signalbus.router.graves import Sending
from signalbus.router.letters import RouterLetters
from signalbus.router.store import RouterStore
from signalbus.testing.proxy import FaultProxy
from signalbus.trace.store import SqliteStore
from tests.brokers.rabbitmq.conftest import ROOT, TIMEOUT, Brokers, publish, receive, signal
from tests.brokers.rabbitmq.test_malformed import POISON, write
from tests.brokers.world import DEADLINE, wait_until

pytestmark = pytest.mark.rabbitmq
PROCESS_SECONDS = 60.0  # for what a process does that has to start first
GIVEN_UP = DeadLetter(DeadReason.REJECTED, "no", ())


@pytest.fixture
async def path(tmp_path: Path) -> AsyncIterator[Path]:
    """The file of a router."""
    path = tmp_path / "router.db"
    store = await asyncio.to_thread(SqliteStore, path)
    yield path
    await asyncio.to_thread(store.close)


@asynccontextmanager
async def opened(path: Path) -> AsyncIterator[RouterStore]:
    """The file of a router, as one of its processes has it."""
    store = RouterStore(path)
    await asyncio.to_thread(store.open)
    try:
        yield store
    finally:
        await asyncio.to_thread(store.close)


@asynccontextmanager
async def kept(broker: RabbitBroker, path: Path) -> AsyncIterator[RouterLetters]:
    """Dead letters that nobody takes in or sends."""
    async with opened(path) as store:
        yield RouterLetters(broker, store)


@asynccontextmanager
async def routed(broker: RabbitBroker, path: Path) -> AsyncIterator[RouterLetters]:
    """Dead letters with all that a router does for them."""
    async with kept(broker, path) as letters:
        tasks = [asyncio.ensure_future(child.start()) for child in letters.children()]
        try:
            yield letters
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert all(task.cancelled() for task in tasks), tasks


async def settle(consumer: Consumer, incoming: Incoming, settlement: Settlement, broker: RabbitBroker) -> None:
    """Settle as a subscriber does: who wants to know is told."""
    assert await consumer.settle(incoming, settlement)
    if to := incoming.signal.headers.get(RECEIPT_TO):
        telling = Acknowledgements(broker.send)
        telling.tell(str(to), incoming.signal.id, "work", settlement, "nobody")
        await telling.aclose()


async def bury(broker: RabbitBroker, consumer: Consumer, count: int) -> None:
    await publish(broker, *[signal(number) for number in range(count)])
    for incoming in await receive(consumer, count):
        await settle(consumer, incoming, GIVEN_UP, broker)


async def listed(letters: RouterLetters, *states: LetterState) -> list[LetterSummary]:
    """Return dead letters, oldest first."""
    query = LetterQuery(states=frozenset(states or LetterState), limit=1_000)
    return list(reversed((await letters.page(query)).letters))


async def there(
    letters: RouterLetters, count: int, *states: LetterState, timeout: float = DEADLINE
) -> list[LetterSummary]:
    """Wait for so many."""

    async def enough() -> bool:
        return len(await listed(letters, *states)) == count

    await wait_until(enough, timeout, message=f"{count} letters {states}")
    return await listed(letters, *states)


async def reached(letters: RouterLetters, replay: str, **wanted: int) -> Replay:
    """Wait until a replay has come so far."""
    found: list[Replay] = []

    async def enough() -> bool:
        now = await letters.progress(replay)
        assert now is not None
        found[:] = [now]
        return all(getattr(now, name) == count for name, count in wanted.items())

    await wait_until(enough, message=f"{wanted}")
    return found[0]


async def test_what_is_stored_and_not_acknowledged_is_stored_once(brokers: Brokers, path: Path) -> None:
    """The router dies between storing and acknowledging, again and again."""
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    await bury(broker, consumer, 3)
    loop = asyncio.get_running_loop()
    async with kept(broker, path) as letters, opened(path) as file:
        for _ in range(3):
            stored = asyncio.Event()

            def store(arrived: Sequence[Arrived], stored: asyncio.Event = stored) -> None:
                file.write(lambda connection: graves.bury(connection, arrived, time.time()))
                loop.call_soon_threadsafe(stored.set)
                raise StorageError("dead before the acknowledgement")

            task = asyncio.create_task(broker.take_dead_letters(store))
            async with asyncio.timeout(TIMEOUT):
                await stored.wait()
            task.cancel()
            await asyncio.wait([task])
        before = [(each.id, each.died) for each in await listed(letters)]
        task = asyncio.create_task(letters.take_in())
        found = await there(letters, 3)
        await wait_until(lambda: _empty(broker))
        task.cancel()
        await asyncio.wait([task])
        assert {each.deaths for each in found} == {1}
        assert set(before) <= {(each.id, each.died) for each in found}


async def _empty(broker: RabbitBroker) -> bool:
    return not await broker.dead_letters(10, TIMEOUT)


async def test_a_router_that_was_killed_is_followed_by_one_that_sends_the_rest(
    brokers: Brokers, path: Path, amqp_url: str
) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    await bury(broker, consumer, 12)

    async def router() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-m", "signalbus.cli", "router", "--url", amqp_url, "--store", str(path)),
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stderr=asyncio.subprocess.DEVNULL,
        )

    seen: set[str] = set()
    async with kept(broker, path) as letters:
        first = await router()
        try:
            await there(letters, 12, timeout=PROCESS_SECONDS)
            replay = await letters.replay(LetterQuery(), by="ann", rate=4.0)
            async with asyncio.timeout(TIMEOUT):
                while len(seen) < 2:
                    for incoming in await _some(consumer):
                        seen.add(incoming.signal.id)
                        await settle(consumer, incoming, ACK, broker)
        finally:
            first.send_signal(signals.SIGKILL)
            await first.wait()
        sent_before = 12 - (await reached(letters, replay.id)).waiting
        second = await router()
        try:
            async with asyncio.timeout(PROCESS_SECONDS):
                while (found := await letters.progress(replay.id)) is not None and not found.settled:
                    for incoming in await _some(consumer):
                        seen.add(incoming.signal.id)
                        await settle(consumer, incoming, ACK, broker)
        finally:
            second.send_signal(signals.SIGTERM)
            assert await second.wait() == 0
        assert found is not None
        assert (found.acked, found.cancelled, found.returned) == (12, 0, 0)
        assert 1 <= sent_before < 12  # of what was received last, it may not have been noted
        assert len(seen) == 12


async def _some(consumer: Consumer) -> Sequence[Incoming]:
    try:
        async with asyncio.timeout(0.2):
            return await consumer.receive()
    except TimeoutError:
        return ()


async def test_what_subscribers_say_while_no_router_runs_is_heard_later(brokers: Brokers, path: Path) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    await bury(broker, consumer, 2)
    async with routed(broker, path) as letters:
        await there(letters, 2)
        replay = await letters.replay(LetterQuery(), by="ann", rate=100.0)
        await reached(letters, replay.id, pending=2)
    first, second = await receive(consumer, 2)
    await settle(consumer, first, ACK, broker)
    await settle(consumer, second, GIVEN_UP, broker)
    async with routed(broker, path) as letters:
        await reached(letters, replay.id, acked=1, died_again=1)
        assert [each.deaths for each in await listed(letters)] in ([1, 2], [2, 1])


async def test_what_may_have_been_sent_is_sent_again_with_the_same_id(
    brokers: Brokers, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    await bury(broker, consumer, 1)
    send = broker.return_dead_letters
    tries: list[int] = []

    async def unsure(letters: Sequence[tuple[str, EncodedSignal]], timeout: float) -> Sequence[PublishOutcome]:
        tries.append(len(letters))
        outcomes = await send(letters, timeout)
        return [PublishOutcome(PublishResult.UNKNOWN, "cut")] if len(tries) < 3 else outcomes

    monkeypatch.setattr(broker, "return_dead_letters", unsure)
    async with routed(broker, path) as letters:
        await there(letters, 1)
        replay = await letters.replay(LetterQuery(), by="ann", rate=100.0)
        received = await receive(consumer, 3)
        assert len({incoming.signal.id for incoming in received}) == 1
        for incoming in received:
            await settle(consumer, incoming, ACK, broker)
        assert (await reached(letters, replay.id, waiting=0, pending=0)).acked == 1


async def test_what_is_refused_is_dead_and_says_why(
    brokers: Brokers, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(letters: Sequence[tuple[str, EncodedSignal]], _: float) -> Sequence[PublishOutcome]:
        return [PublishOutcome(PublishResult.REFUSED, "a queue is full")] * len(letters)

    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    await bury(broker, consumer, 1)
    monkeypatch.setattr(broker, "return_dead_letters", refuse)
    async with routed(broker, path) as letters:
        await there(letters, 1)
        replay = await letters.replay(LetterQuery(), by="ann", rate=100.0)
        await reached(letters, replay.id, returned=1)
        assert [each.note for each in await listed(letters, LetterState.DEAD)] == ["not sent: a queue is full"]


@pytest.mark.parametrize("name", ["timestamp of 2^63", *list(POISON)[:2]])
async def test_a_malformed_message_is_kept_and_can_be_replayed(
    brokers: Brokers, raw: AbstractChannel, path: Path, name: str
) -> None:
    flags, properties = POISON[name]
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    await write(raw, flags, properties, b"poison")
    [poison] = await receive(consumer)
    assert await consumer.settle(poison, DeadLetter(DeadReason.UNDECODABLE, poison.malformed or "", ()))
    async with routed(broker, path) as letters:
        [letter] = await there(letters, 1)
        assert letter.reason is DeadReason.UNDECODABLE
        replay = await letters.replay(LetterQuery(), by="ann", rate=100.0)
        [again] = await receive(consumer)
        assert (again.signal.body, again.signal.id) == (b"poison", letter.signal)
        await settle(consumer, again, GIVEN_UP, broker)
        await reached(letters, replay.id, died_again=1)
        assert [each.deaths for each in await listed(letters)] == [2]


async def test_a_message_of_a_stranger_without_an_id_is_the_same_dead_letter_when_it_dies_again(
    brokers: Brokers, raw: AbstractChannel, path: Path
) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    await raw.basic_publish(b"not json", exchange="signalbus.signals", routing_key="order.x")
    [foreign] = await receive(consumer)
    assert await consumer.settle(foreign, GIVEN_UP)
    async with routed(broker, path) as letters:
        await there(letters, 1)
        for deaths in (2, 3):
            replay = await letters.replay(LetterQuery(), by="ann", rate=100.0)
            [again] = await receive(consumer)
            assert again.signal.body == b"not json"
            await settle(consumer, again, GIVEN_UP, broker)
            await reached(letters, replay.id, died_again=1)
            assert [each.deaths for each in await listed(letters)] == [deaths]


async def test_what_the_broker_gave_up_is_kept(brokers: Brokers, raw: AbstractChannel, path: Path) -> None:
    """As a message beyond the delivery limit arrives: without a word of ours."""
    broker = await brokers.open()
    await brokers.serve(broker)
    properties = commands.Basic.Properties(
        message_id="7",
        headers={"x-death": [{"reason": "delivery_limit", "queue": "signalbus.q.work", "count": 1}]},
    )
    for key in ("signalbus.q.work", "", "elsewhere"):
        await raw.basic_publish(b"\0", exchange="signalbus.dead", routing_key=key, properties=properties)
    async with routed(broker, path) as letters:
        found = await there(letters, 3)
        assert {each.subscription for each in found} == {"work", "", "elsewhere"}
        assert {each.reason for each in found} == {DeadReason.BROKER}
        assert all("delivery_limit in queue signalbus.q.work" in each.detail for each in found)
        assert all(abs(each.died.timestamp() - time.time()) < 60.0 for each in found)
        replay = await letters.replay(LetterQuery(), by="ann", rate=100.0)
        end = await reached(letters, replay.id, waiting=0)
        assert (end.pending, end.returned) == (1, 2)


async def test_words_that_make_no_sense_are_dropped_and_the_others_heard(
    brokers: Brokers, path: Path, raw: AbstractChannel, caplog: pytest.LogCaptureFixture
) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    await bury(broker, consumer, 1)
    async with routed(broker, path) as letters:
        [letter] = await there(letters, 1)
        replay = await letters.replay(LetterQuery(), by="ann", rate=100.0)
        await reached(letters, replay.id, pending=1)
        word = {"kind": "settled", "signal": letter.signal, "subscription": "work", "outcome": "acked"}
        others = [{**word, "signal": "another"}, {**word, "subscription": "another"}, {**word, "outcome": "dead"}]
        hard = [b"", b"\xff", b"[]", b"{}", b"[" * 100_000, orjson.dumps({**word, "kind": "x"}), b'{"kind":"settled"}']
        for body in (*hard, *map(orjson.dumps, others)):
            await raw.basic_publish(body, exchange="", routing_key="signalbus.s.router")
        await wait_until(lambda: _said(caplog))
        assert (await reached(letters, replay.id)).pending == 1
        await raw.basic_publish(orjson.dumps(word), exchange="", routing_key="signalbus.s.router")
        await reached(letters, replay.id, acked=1)


async def _said(caplog: pytest.LogCaptureFixture) -> bool:
    return "could not be read" in caplog.text


async def test_dead_letters_wait_while_the_store_has_trouble(
    brokers: Brokers, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    await bury(broker, consumer, 2)
    trouble = [2]

    def bury_with_trouble(connection: sqlite3.Connection, arrived: Sequence[Arrived], now: float) -> None:
        graves_bury(connection, arrived, now)
        if trouble[0]:
            trouble[0] -= 1
            raise StorageError("the disk is full")

    graves_bury = graves.bury
    monkeypatch.setattr(graves, "bury", bury_with_trouble)
    async with routed(broker, path) as letters:
        assert {each.deaths for each in await there(letters, 2)} == {1}


async def test_what_was_sent_is_noted_once_the_store_can(
    brokers: Brokers, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    await bury(broker, consumer, 1)
    note, trouble = graves.note, [2]

    def note_with_trouble(
        connection: sqlite3.Connection, sending: Sequence[Sending], outcomes: Sequence[PublishOutcome], now: float
    ) -> list[Replayed]:
        if trouble[0]:
            trouble[0] -= 1
            raise StorageError("the disk is full")
        return note(connection, sending, outcomes, now)

    monkeypatch.setattr(graves, "note", note_with_trouble)
    monkeypatch.setattr("signalbus.router.letters.AGAIN_SECONDS", 0.05)
    async with routed(broker, path) as letters:
        await there(letters, 1)
        replay = await letters.replay(LetterQuery(), by="ann", rate=100.0)
        await reached(letters, replay.id, pending=1)
        [incoming] = await receive(consumer)
        await settle(consumer, incoming, ACK, broker)
        await reached(letters, replay.id, acked=1)


async def test_row_35_dead_letters_that_find_no_room_stay_in_their_queue_and_others_go_on(
    brokers: Brokers, raw: AbstractChannel, path: Path
) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    await raw.queue_declare("full", durable=True, arguments={"x-max-length": 1, "x-overflow": "reject-publish"})
    await raw.queue_bind("full", "signalbus.dead")
    await publish(broker, *[signal(number) for number in range(20)])
    settling = [asyncio.create_task(consumer.settle(each, GIVEN_UP)) for each in await receive(consumer, 20)]
    done, stuck = await asyncio.wait(settling, timeout=1.0)
    assert stuck
    await publish(broker, signal(20))
    [healthy] = await receive(consumer)
    assert await consumer.settle(healthy, ACK)
    await raw.queue_delete("full")
    async with asyncio.timeout(TIMEOUT):
        assert set(await asyncio.gather(*settling)) == {True}
    async with routed(broker, path) as letters:
        found = await there(letters, 20)
        assert {each.deaths for each in found} == {1}  # though some were stored more than once
    assert len(done) < 20


async def test_a_router_goes_on_after_its_connections_were_cut(brokers: Brokers, proxy: FaultProxy, path: Path) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    apart = await brokers.open(proxy.url_for(brokers.url))
    await bury(broker, consumer, 5)
    async with routed(apart, path) as letters:
        await there(letters, 5)
        replay = await letters.replay(LetterQuery(), by="ann", rate=10.0)
        proxy.cut()
        await bury(broker, consumer, 1)
        acked: set[str] = set()
        async with asyncio.timeout(30.0):
            while len(acked) < 5:
                for incoming in await _some(consumer):
                    await settle(consumer, incoming, ACK, broker)
                    acked.add(incoming.signal.id)
        assert (await reached(letters, replay.id, waiting=0, pending=0)).acked == 5
        await there(letters, 1, LetterState.DEAD)

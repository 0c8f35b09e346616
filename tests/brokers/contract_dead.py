"""What every broker must do with dead letters: keep them, and replay them when asked. Part of the contract suite."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from signalbus import Bus, ConfigError, Delivery, Reject, RetryPolicy, Signal
from signalbus.brokers.rabbitmq.broker import RabbitBroker
from signalbus.brokers.sqlite.broker import SqliteBroker
from signalbus.deadletters import DeadLetters, LetterQuery, LetterState, LetterSummary, Replay
from signalbus.ledger import Replayed
from signalbus.router.daemon import Router
from signalbus.router.letters import RouterLetters
from signalbus.router.store import RouterStore
from signalbus.trace.listing import Retention
from signalbus.trace.model import End, SignalTrace, State
from signalbus.trace.reader import TraceReader
from signalbus.trace.rendering_tree import render_tree
from signalbus.trace.store import SqliteStore
from tests.brokers.contract import contract
from tests.brokers.contract_ledger import traced
from tests.brokers.world import DEADLINE, Inbox, World, wait_until

EVERYTHING = LetterQuery(states=frozenset(LetterState), limit=1_000)
ONCE = RetryPolicy(max_attempts=1)


@asynccontextmanager
async def keeping(world: World, bus: Bus) -> AsyncIterator[DeadLetters]:
    """The dead letters of a bus: of its own file, or kept by a router."""
    if isinstance(bus.broker, SqliteBroker):
        letters: DeadLetters = await bus.broker.letters(DEADLINE)
        try:
            yield letters
        finally:
            await letters.aclose()
        return
    assert isinstance(bus.broker, RabbitBroker)
    path = world.directory / "router.db"
    async with routing(world, path):
        store = RouterStore(path)
        await asyncio.to_thread(store.open)
        try:
            yield RouterLetters(bus.broker, store)  # as another process would
        finally:
            await asyncio.to_thread(store.close)


@asynccontextmanager
async def routing(world: World, path: Path) -> AsyncIterator[Router]:
    """A router at work."""
    router = Router(world.bus(name="router", ledger="off"), path, Retention(seconds=3_600.0))
    serving = asyncio.create_task(router.serve())
    try:
        async with asyncio.timeout(DEADLINE):
            await router.ready.wait()
        yield router
    finally:
        serving.cancel()
        await asyncio.wait([serving])


async def traces_of(world: World, bus: Bus) -> TraceReader:
    """The traces in the file that dead letters are kept in."""
    if isinstance(bus.broker, SqliteBroker):
        return await bus.broker.traces(DEADLINE)
    return TraceReader(await asyncio.to_thread(lambda: SqliteStore(world.directory / "router.db", read_only=True)))


class Patient:
    """A handler that rejects until it is told otherwise. ``seen``: (signal, attempt) of each run."""

    def __init__(self) -> None:
        self.healthy = False
        self.seen: list[tuple[str, int]] = []

    async def __call__(self, data: object, delivery: Delivery) -> None:
        self.seen.append((delivery.signal.id, delivery.attempt))
        if not self.healthy:
            raise Reject(f"no customer {data}")


async def dead(letters: DeadLetters, count: int) -> list[LetterSummary]:
    """Wait until so many are dead, and return them, oldest first."""
    found: list[LetterSummary] = []

    async def enough() -> bool:
        page = await letters.page(LetterQuery(states=frozenset({LetterState.DEAD}), limit=1_000))
        found[:] = reversed(page.letters)
        return page.total >= count

    await wait_until(enough, message=f"{count} dead letters")
    assert len(found) == count, found
    return found


async def settled(letters: DeadLetters, replay: Replay) -> Replay:
    """Wait until the end of each of a replay is known."""
    found: list[Replay] = [replay]

    async def over() -> bool:
        now = await letters.progress(replay.id)
        assert now is not None
        assert_adds_up(now)
        found[:] = [now]
        return now.settled

    await wait_until(over, message=f"the end of {replay}")
    return found[0]


def assert_adds_up(replay: Replay) -> None:
    ends = replay.acked + replay.died_again + replay.returned + replay.cancelled
    assert replay.total == replay.waiting + replay.pending + ends, replay


def this(letter: LetterSummary) -> LetterQuery:
    return LetterQuery(ids=(letter.id,))


@contract
async def a_dead_letter_is_replayed_to_the_subscription_that_failed_and_to_no_other(world: World) -> None:
    billing, audit = Patient(), Inbox()
    bus = world.bus(name="shop")
    bus.subscribe("order.*", handler=billing, name="billing", retry=ONCE)
    bus.subscribe("order.*", handler=audit, name="audit")
    async with bus, keeping(world, bus) as letters:
        receipt = await bus.publish("order.placed", {"n": 1})
        [letter] = await dead(letters, 1)
        assert (letter.subscription, letter.signal, letter.type) == ("billing", receipt.id, "order.placed")
        assert (letter.error, letter.place, letter.deaths) == ("Reject", "", 1)
        billing.healthy = True
        replay = await letters.replay(this(letter), by="ann")
        assert (replay.total, replay.taken, replay.by) == (1, 0, "ann")
        end = await settled(letters, replay)
        whole = await letters.get(letter.id)
        assert [each.id for each in await letters.replays()] == [replay.id]
        await world.wait_empty(bus, "billing", "audit")
    assert (end.acked, end.died_again, end.returned, end.cancelled) == (1, 0, 0, 0)
    assert billing.seen == [(receipt.id, 1), (receipt.id, 1)]
    assert [delivery.signal.id for _, delivery in audit.got] == [receipt.id]
    assert whole is not None
    assert (whole.summary.state, whole.content.id) == (LetterState.ACKED, receipt.id)
    assert [entry.action for entry in whole.audit] == ["replay", "sent", "acked"]
    assert (whole.audit[0].by, {entry.replay for entry in whole.audit}) == ("ann", {replay.id})


@contract
async def what_dies_again_is_the_same_dead_letter(world: World) -> None:
    work = Patient()
    async with world.serving("work.item", handler=work, retry=ONCE) as bus, keeping(world, bus) as letters:
        await bus.publish("work.item", 1)
        [letter] = await dead(letters, 1)
        for deaths in (2, 3):
            end = await settled(letters, await letters.replay(this(letter), by="ann"))
            assert (end.acked, end.died_again) == (0, 1)
            [again] = await dead(letters, 1)
            assert (again.id, again.deaths, again.group) == (letter.id, deaths, letter.group)
            assert again.died > letter.died
        whole = await letters.get(letter.id)
    assert whole is not None
    assert [entry.action for entry in whole.audit] == ["replay", "sent", "dead again"] * 2
    assert len(work.seen) == 3


@contract
async def one_dead_letter_replayed_twice_at_once_is_sent_once(world: World) -> None:
    work = Patient()
    async with world.serving("work.item", handler=work, retry=ONCE) as bus, keeping(world, bus) as letters:
        await bus.publish("work.item", 1)
        [letter] = await dead(letters, 1)
        work.healthy = True
        queries = (this(letter), LetterQuery(group=letter.group), LetterQuery(subscription="work"), this(letter))
        replays = await asyncio.gather(*(letters.replay(query, by="ann") for query in queries))
        assert sorted(replay.total for replay in replays) == [0, 0, 0, 1]
        for replay in replays:
            await settled(letters, replay)
        await world.wait_empty(bus, "work")
        late = await letters.replay(this(letter), by="bob")
        assert (late.total, late.settled) == (0, True)
    assert len(work.seen) == 2


@contract
async def a_replay_is_pending_until_its_subscription_has_settled_it(world: World) -> None:
    gate = asyncio.Event()
    failing = [True]

    async def work(data: object) -> None:
        if failing[0]:
            raise Reject("no")
        await gate.wait()

    async with world.serving("work.item", handler=work, retry=ONCE) as bus, keeping(world, bus) as letters:
        await bus.publish("work.item", 1)
        [letter] = await dead(letters, 1)
        failing[0] = False
        replay = await letters.replay(this(letter), by="ann")

        async def pending() -> bool:
            now = await letters.progress(replay.id)
            return now is not None and now.pending == 1

        await wait_until(pending, message="the replay to be sent")
        assert (await letters.replay(this(letter), by="bob")).taken == 1
        page = await letters.page(LetterQuery())
        assert [(each.state, each.by) for each in page.letters] == [(LetterState.REPLAYING, "ann")]
        gate.set()
        assert (await settled(letters, replay)).acked == 1


@contract
async def a_replay_keeps_its_rate(world: World) -> None:
    at: list[float] = []
    clock = asyncio.get_running_loop().time
    failing = [True]

    async def work(data: object) -> None:
        if failing[0]:
            raise Reject("no")
        at.append(clock())

    async with (
        world.serving("work.item", handler=work, retry=ONCE, concurrency=16) as bus,
        keeping(world, bus) as letters,
    ):
        await bus.publish_many([Signal(type="work.item", data=number) for number in range(60)])
        await dead(letters, 60)
        failing[0] = False
        started = clock()
        replay = await letters.replay(LetterQuery(), by="ann", rate=30.0)
        assert replay.rate == 30.0
        assert (await settled(letters, replay)).acked == 60
    # What is sent at even intervals may arrive in bunches, as the machine is busy; but the last one comes in its time.
    assert at[-1] - started > 1.6
    assert len(at) == 60


@contract
async def a_replay_is_cancelled_in_the_middle(world: World) -> None:
    work = Patient()
    async with world.serving("work.item", handler=work, retry=ONCE) as bus, keeping(world, bus) as letters:
        await bus.publish_many([Signal(type="work.item", data=number) for number in range(20)])
        await dead(letters, 20)
        work.healthy = True
        replay = await letters.replay(LetterQuery(), by="ann", rate=2.0)
        cancelled = await letters.cancel(replay.id, by="bob")
        end = await settled(letters, replay)
        assert 0 < cancelled <= 20
        assert (end.cancelled, end.acked) == (cancelled, 20 - cancelled)
        assert len(await dead(letters, cancelled)) == cancelled
        assert await letters.cancel(replay.id, by="bob") == 0
        assert (await letters.audit())[0].by == "bob"
        assert len(work.seen) == 20 + end.acked


@contract
async def what_is_discarded_can_be_restored(world: World) -> None:
    work = Patient()
    async with world.serving("work.item", handler=work, retry=ONCE) as bus, keeping(world, bus) as letters:
        await bus.publish_many([Signal(type="work.item", data=number) for number in range(3)])
        first, *rest = await dead(letters, 3)
        assert await letters.discard(this(first), by="ann", note="a test order") == 1
        assert await letters.discard(this(first), by="ann") == 0
        assert (await letters.replay(this(first), by="ann")).total == 0
        assert await letters.discard(LetterQuery(group=first.group), by="bob") == 2
        assert (await letters.page(LetterQuery())).total == 0
        discarded = LetterQuery(states=frozenset({LetterState.DISCARDED}))
        notes = {each.id: (each.by, each.note) for each in (await letters.page(discarded)).letters}
        assert notes == {first.id: ("ann", "a test order"), **{each.id: ("bob", "") for each in rest}}
        with pytest.raises(ConfigError, match="name one of the two"):
            await letters.restore(this(first), by="ann")
        assert await letters.restore(discarded, by="ann") == 3
        assert [each.id for each in await dead(letters, 3)] == [first.id, *(each.id for each in rest)]
        actions = [(entry.action, entry.count, entry.by) for entry in reversed(await letters.audit())]
    assert actions == [
        ("discard", 1, "ann"),
        ("discard", 2, "bob"),
        ("restore", 3, "ann"),
    ]


@contract
async def without_its_subscription_a_dead_letter_stays_dead_and_says_why(world: World) -> None:
    work = Patient()
    bus = world.bus()
    subscription = bus.subscribe("work.item", handler=work, name="work", retry=ONCE)
    async with bus, keeping(world, bus) as letters:
        receipt = await bus.publish("work.item", 1)
        [letter] = await dead(letters, 1)
        await subscription.cancel(delete=True)
        end = await settled(letters, await letters.replay(this(letter), by="ann"))
        assert (end.returned, end.acked) == (1, 0)
        [letter] = await dead(letters, 1)
        assert "does not exist" in letter.note
        work.healthy = True
        await bus.subscribe("work.item", handler=work, name="work", retry=ONCE)
        end = await settled(letters, await letters.replay(this(letter), by="ann"))
        assert (end.returned, end.acked) == (0, 1)
    assert work.seen == [(receipt.id, 1)] * 2


@contract
async def a_subscription_that_is_deleted_after_a_replay_was_sent_ends_it(world: World) -> None:
    gate = asyncio.Event()
    failing = [True]

    async def work(data: object) -> None:
        if failing[0]:
            raise Reject("no")
        await gate.wait()

    bus = world.bus()
    subscription = bus.subscribe("work.item", handler=work, name="work", retry=ONCE, concurrency=1, prefetch=1)
    async with bus, keeping(world, bus) as letters:
        await bus.publish_many([Signal(type="work.item", data=number) for number in range(2)])
        await dead(letters, 2)
        failing[0] = False
        replay = await letters.replay(LetterQuery(), by="ann")

        async def pending() -> bool:
            now = await letters.progress(replay.id)
            return now is not None and now.pending == 2

        await wait_until(pending, message="the replay to be sent")
        deleting = asyncio.create_task(subscription.cancel(delete=True))
        gate.set()
        await deleting
        end = await settled(letters, replay)
        assert (end.returned, end.cancelled, end.acked + end.died_again) == (0, 0, 2)
        assert end.died_again >= 1
        assert "was deleted after this was sent" in (await dead(letters, end.died_again))[0].note


@contract
async def a_replay_is_in_the_trace_of_its_signal(world: World) -> None:
    work = Patient()
    async with world.serving("work.item", handler=work, retry=ONCE) as bus, keeping(world, bus) as letters:
        receipt = await bus.publish("work.item", 1)
        [letter] = await dead(letters, 1)
        work.healthy = True
        await settled(letters, await letters.replay(this(letter), by="ann"))
        async with await traces_of(world, bus) as traces:

            def told(root: SignalTrace) -> bool:
                return State.ACKED in root.states and bool(root.deliveries[0].replays)

            trace = await traced(traces, receipt.id, told)
    [delivery] = trace.root.deliveries
    assert [(attempt.number, attempt.replay, attempt.end) for attempt in delivery.attempts] == [
        (1, 0, End.DEAD),
        (1, 1, End.ACKED),
    ]
    [fact] = delivery.replays
    assert fact.step == Replayed(signal=receipt.id, type="work.item", subscription="work", by="ann")
    assert "↺ replayed" in render_tree(trace)


@contract
async def dead_letters_are_grouped_by_subscription_error_and_place(world: World) -> None:
    async def charge(data: Any) -> None:
        if data == "card":
            raise ValueError("no such card")
        if data == "money":
            raise KeyError("not enough")
        raise Reject(str(data))

    bus = world.bus()
    bus.subscribe("order.*", handler=charge, name="billing", retry=ONCE)
    bus.subscribe("order.placed", handler=charge, name="shipping", retry=ONCE)
    async with bus, keeping(world, bus) as letters:
        for data in ("card", "card", "money", "no"):
            await bus.publish("order.placed", data)
        await bus.publish("order.changed", "card")
        await dead(letters, 9)
        groups = await letters.groups(LetterQuery())
        counts = {(group.subscription, group.error): group.count for group in groups}
        cards = next(group for group in groups if (group.subscription, group.error) == ("billing", "ValueError"))
        assert [each.id for each in await letters.groups(LetterQuery(group=cards.id))] == [cards.id]
        page = await letters.page(LetterQuery(group=cards.id))
    assert counts == {
        ("billing", "ValueError"): 3,
        ("billing", "KeyError"): 1,
        ("billing", "Reject"): 1,
        ("shipping", "ValueError"): 2,
        ("shipping", "KeyError"): 1,
        ("shipping", "Reject"): 1,
    }
    assert cards.types == ("order.changed", "order.placed")
    assert cards.place.startswith("contract_dead.py:")
    assert cards.place.endswith(" in charge")
    assert cards.counts == {LetterState.DEAD: 3}
    assert "no such card" in cards.sample
    assert cards.oldest < cards.newest
    assert {letter.group for letter in page.letters} == {cards.id}


@contract
async def a_list_has_pages_and_filters(world: World) -> None:
    async def work(data: Any) -> None:
        raise ValueError if data % 2 else KeyError

    bus = world.bus()
    bus.subscribe("order.#", handler=work, name="billing", retry=ONCE)
    async with bus, keeping(world, bus) as letters:
        receipts = [await bus.publish("order.placed" if n < 5 else "order.line.added", n) for n in range(7)]
        everything = await dead(letters, 7)

        async def fits(**query: Any) -> set[str]:
            return {each.signal for each in (await letters.page(LetterQuery(**query))).letters}

        ids = [receipt.id for receipt in receipts]
        assert await fits(error="ValueError") == {ids[1], ids[3], ids[5]}
        assert await fits(error="Error") == set()
        assert await fits(patterns=("order.line.*",)) == {ids[5], ids[6]}
        assert await fits(patterns=("order.*", "*.line.#"), error="KeyError") == {ids[0], ids[2], ids[4], ids[6]}
        assert await fits(signal=ids[4]) == {ids[4]}
        assert await fits(subscription="billing") == set(ids)
        assert await fits(subscription="other") == set()
        assert await fits(states=frozenset({LetterState.ACKED})) == set()
        middle = sorted(everything, key=lambda each: each.died)[3].died.timestamp()
        assert len(await fits(since=middle)) == 4
        assert len(await fits(until=middle)) == 4
        with pytest.raises(ConfigError, match="pattern"):
            await fits(patterns=("order..x",))
        with pytest.raises(ConfigError, match="no place in the list"):
            await fits(after="yesterday")
        pages: list[LetterSummary] = []
        query = LetterQuery(limit=3)
        while True:
            page = await letters.page(query)
            assert page.total == 7
            pages += page.letters
            if not page.next:
                break
            query = LetterQuery(limit=3, after=page.next)
        assert [each.id for each in reversed(pages)] == [each.id for each in everything]
        assert [each.id for each in await letters.find(everything[2].id[:12])] == [everything[2].id]
        assert [each.id for each in await letters.find(everything[2].signal)] == [everything[2].id]
        with pytest.raises(ConfigError, match="too short"):
            await letters.find("abc")
        assert await letters.get("nothing") is None
        assert await letters.progress("nothing") is None


HARD_TEXTS = ("nul \0 in it", "esc \x1b[31m", "right \u202e to left", "tab\tnew\nline\r", "\ufffe\U0001f600")


@contract
async def a_hard_signal_is_kept_and_replayed_unharmed(world: World) -> None:
    got: list[object] = []
    failing = [True]

    async def work(data: bytes, delivery: Delivery) -> None:
        if failing[0]:
            raise ValueError(" | ".join(HARD_TEXTS))
        got.append((data, delivery.signal.datacontenttype))

    bodies = [b"\0" * 10_000_000, "".join(HARD_TEXTS).encode(), b"", bytes(range(256))]
    async with (
        world.serving("work.item", handler=work, retry=ONCE, concurrency=1) as bus,
        keeping(world, bus) as letters,
    ):
        for body in bodies:
            await bus.publish("work.item", body)
        found = await dead(letters, len(bodies))
        wholes = [await letters.get(each.id) for each in found]
        assert {len(whole.content.body) for whole in wholes if whole} == {len(body) for body in bodies}
        failing[0] = False
        end = await settled(letters, await letters.replay(LetterQuery(), by="ann\0\u202e"))
        assert end.acked == len(bodies)
    assert sorted(got, key=str) == sorted(((body, "application/octet-stream") for body in bodies), key=str)
    assert all("right \u202e to left" in each.detail for each in found)
    assert all(each.place.endswith(" in work") for each in found)

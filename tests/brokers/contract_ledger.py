"""What every broker must do for the ledger: every step of a signal can be looked at. Part of the contract suite."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta
from unittest import mock

import pytest

from signalbus import Bus, Delivery, NoResponder, Reject, RemoteError, Retry, RetryPolicy, Signal
from signalbus.brokers.sqlite.broker import SqliteBroker
from signalbus.router.daemon import Router
from signalbus.trace.listing import Query, Retention
from signalbus.trace.model import End, SignalTrace, State, Trace
from signalbus.trace.reader import TraceReader
from signalbus.trace.store import SqliteStore
from tests.brokers.contract import contract
from tests.brokers.world import DEADLINE, Inbox, World, wait_until

WITH_ROUTER = Retention(seconds=3600.0)


@asynccontextmanager
async def inspected(world: World, bus: Bus) -> AsyncIterator[TraceReader]:
    """Traces of what happens within: of the bus' own file, or collected by a router."""
    if isinstance(bus.broker, SqliteBroker):
        async with await bus.broker.traces(DEADLINE) as traces:
            yield traces
        return
    path = world.directory / "ledger.db"
    router = Router(world.bus(name="router", ledger="off"), path, WITH_ROUTER)
    serving = asyncio.create_task(router.serve())
    try:
        async with asyncio.timeout(DEADLINE):
            await router.ready.wait()
        async with TraceReader(await asyncio.to_thread(lambda: SqliteStore(path, read_only=True))) as traces:
            yield traces
    finally:
        serving.cancel()
        await asyncio.wait([serving])


async def traced(traces: TraceReader, signal: str, enough: Callable[[SignalTrace], bool]) -> Trace:
    """Wait until the trace of a signal has what is looked for."""
    found: list[Trace] = []

    async def there() -> bool:
        found[:] = [await traces.trace(signal)]
        return enough(found[0].root)

    await wait_until(there, message=f"the trace of {signal}")
    return found[0]


def acked(signal: SignalTrace) -> bool:
    return signal.published is not None and State.ACKED in signal.states


@contract
async def a_signal_is_traced_through_what_it_caused(world: World) -> None:
    children: list[str] = []

    async def bill(order: dict[str, object]) -> None:
        children.append((await bus.publish("invoice.created", order, subject="A-1")).id)

    async def mail(invoice: dict[str, object]) -> None: ...

    bus = world.bus(name="shop")
    bus.subscribe("order.*", handler=bill, name="billing")
    bus.subscribe("invoice.*", handler=mail, name="mail")
    async with bus, inspected(world, bus) as traces:
        receipt = await bus.publish("order.placed", {"n": 1}, correlationid="cart-17")
        trace = await traced(
            traces, receipt.id, lambda root: acked(root) and len(root.children) == 1 and acked(root.children[0])
        )
    root, child = trace.root, trace.root.children[0]
    assert (root.type, root.source, root.correlationid, root.causationid) == ("order.placed", "shop", "cart-17", None)
    assert [(each.subscription, each.state) for each in root.deliveries] == [("billing", State.ACKED)]
    [attempt] = root.deliveries[0].attempts
    assert (attempt.number, attempt.end, attempt.inferred) == (1, End.ACKED, ())
    assert attempt.work is not None
    assert attempt.origin is not None
    assert (attempt.origin.session, attempt.origin.name) == (bus.session.id, "shop")
    assert (child.id, child.subject, child.causationid, child.cause) == (children[0], "A-1", receipt.id, "billing")
    assert (root.data, trace.complete, trace.skews) == (None, True, ())


@contract
async def what_fails_is_traced_with_its_errors(world: World) -> None:
    async def fail(data: str, delivery: Delivery) -> None:
        if data == "rejected":
            raise Reject("no such customer")
        if delivery.attempt < 3:
            raise ValueError(f"attempt {delivery.attempt}")

    bus = world.bus(name="shop")
    policy = RetryPolicy(max_attempts=5, initial=timedelta(milliseconds=20), jitter=False)
    bus.subscribe("work.item", handler=fail, name="work", retry=policy)
    async with bus, inspected(world, bus) as traces:
        retried = await bus.publish("work.item", "retried")
        rejected = await bus.publish("work.item", "rejected")
        alone = await bus.publish("nobody.cares", 1, unroutable="ignore")
        first = (await traced(traces, retried.id, acked)).root
        second = (await traced(traces, rejected.id, lambda root: State.DEAD in root.states)).root
        await traced(traces, alone.id, lambda root: root.unroutable)
        await traced(traces, rejected.id, lambda root: root.published is not None)
        page = await traces.page(Query(failed=True))
    ends = [(attempt.number, attempt.end, attempt.error) for attempt in first.deliveries[0].attempts]
    assert ends == [
        (1, End.RETRIED, "ValueError: attempt 1"),
        (2, End.RETRIED, "ValueError: attempt 2"),
        (3, End.ACKED, ""),
    ]
    assert second.deliveries[0].attempts[0].error == "rejected by the handler: no such customer"
    assert {listed.signal.id for listed in page.signals} == {retried.id, rejected.id, alone.id}


@contract
async def requests_are_traced_from_both_sides(world: World) -> None:
    async def quote(symbol: str) -> float:
        if symbol == "bad":
            raise ValueError("no such symbol")
        return 1.5

    bus = world.bus(name="shop")
    bus.respond("quote.get", quote)
    requests = {name: Signal(type="quote.get", data=name) for name in ("good", "bad")}
    nobody = Signal(type="nobody.responds", data=1)
    async with bus, inspected(world, bus) as traces:
        assert await bus.request(requests["good"]) == 1.5
        with pytest.raises(RemoteError):
            await bus.request(requests["bad"])
        with pytest.raises(NoResponder):
            await bus.request(nobody)
        both = [
            await traced(
                traces, request.id, lambda root: bool(root.reply and root.reply.answered and root.reply.received)
            )
            for request in requests.values()
        ]
        unanswered = await traced(traces, nobody.id, lambda root: root.reply is not None)
    replies = [trace.root.reply for trace in both]
    assert [(reply.outcome, reply.error) for reply in replies if reply] == [
        ("reply", ""),
        ("failed", "ValueError: no such symbol"),
    ]
    assert all(reply and reply.work is not None and reply.waited is not None for reply in replies)
    assert (unanswered.root.reply and unanswered.root.reply.outcome) == "no_responder"
    assert unanswered.root.states == (State.FAILED,)


@contract
async def a_subscriber_that_died_is_seen_in_the_trace(world: World) -> None:
    inbox = Inbox()
    async with world.bus(name="watcher") as watcher, inspected(world, watcher) as traces:
        worker = await world.worker(behaviour="hold", name="work", patterns=("work.*",))
        receipt = await watcher.publish("work.item", 1)
        await world.wait_steps("start", 1)
        await traced(traces, receipt.id, lambda root: bool(root.deliveries and root.deliveries[0].attempts))
        await worker.kill()
        async with world.serving("work.*", handler=inbox):
            await inbox.wait(1)
            trace = await traced(traces, receipt.id, lambda root: acked(root) and _has(root, End.LOST))
    attempts = trace.root.deliveries[0].attempts
    assert [attempt.end for attempt in attempts] == [End.LOST, End.ACKED]
    assert attempts[0].origin is not None
    assert attempts[0].origin.session == worker.session


def _has(root: SignalTrace, end: End) -> bool:
    return any(attempt.end is end for attempt in root.deliveries[0].attempts)


@contract
async def failures_only_are_recorded_if_that_is_asked_for(world: World) -> None:
    async def work(data: str, delivery: Delivery) -> None:
        if data == "bad" and delivery.attempt == 1:
            raise Retry(delay=timedelta(milliseconds=1))

    bus = world.bus(name="shop", ledger="failures")
    bus.subscribe("work.item", handler=work, name="work")
    async with bus, inspected(world, bus) as traces:
        good = await bus.publish("work.item", "good")
        bad = await bus.publish("work.item", "bad")
        trace = await traced(traces, bad.id, lambda root: State.ACKED in root.states)
        page = await traces.page(Query())
    assert [listed.signal.id for listed in page.signals] == [bad.id]
    assert good.id != bad.id
    assert not trace.complete


@contract
async def payloads_are_recorded_without_secrets_if_that_is_asked_for(world: World) -> None:
    with mock.patch.dict(os.environ, SIGNALBUS_LEDGER_PAYLOAD="truncated", SIGNALBUS_LEDGER_REDACT="iban"):
        bus = world.bus(name="shop")
    bus.subscribe("#", handler=Inbox(), name="work")
    async with bus, inspected(world, bus) as traces:
        receipt = await bus.publish("order.placed", {"order_id": "A-1", "api_token": "s3cret", "iban": "DE1"})
        [other] = await bus.publish_many([("order.placed", {"order_id": "A-2"})])
        trace = await traced(traces, receipt.id, acked)
        await traced(traces, other.id, acked)
        page = await traces.page(Query(where=(("data.order_id", "A-2"),)))
    assert trace.root.data == '{"order_id":"A-1","api_token":"[redacted]","iban":"[redacted]"}'
    assert [listed.signal.id for listed in page.signals] == [other.id]


@contract
async def a_ledger_that_is_off_records_nothing(world: World) -> None:
    inbox = Inbox()
    bus = world.bus(name="shop", ledger="off")
    bus.subscribe("#", handler=inbox, name="work")
    async with bus, inspected(world, bus) as traces:
        receipt = await bus.publish("order.placed", 1, until="acked")
        async with world.bus(name="other") as other:
            seen = await other.publish("order.placed", 2)
            await traced(traces, seen.id, lambda root: root.published is not None)
        assert (await traces.trace(receipt.id)).root.published is None
        assert (await traces.stats()).dropped == 0

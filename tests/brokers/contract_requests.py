"""What every broker must do for requests, and for publishing until acked. Part of the contract suite."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict

from signalbus import (
    AudienceMismatch,
    Bus,
    BusClosed,
    ConfigError,
    DecodeError,
    Delivery,
    InvalidSignal,
    NoResponder,
    NotSettled,
    Outcome,
    Overloaded,
    Receipt,
    Reject,
    RemoteError,
    RequestTimeout,
    ResponderDown,
    Retry,
    Signal,
    Unroutable,
)
from tests.brokers.contract import QUICK, contract
from tests.brokers.world import DEADLINE, Inbox, World, wait_until
from tests.support import eventually


class QuoteRequest(BaseModel):
    symbol: str
    count: int = 1


class Quote(BaseModel):
    symbol: str
    price: float


@dataclass
class Point:
    x: int
    y: int


class Row(TypedDict):
    a: int


async def echo(data: Any) -> Any:
    return data


async def double(data: str) -> str:
    return data + data


async def wait_in_flight(bus: Bus, request_type: str, count: int) -> None:
    """Wait until so many handlers run."""
    await eventually(lambda: bus.stats().responders[request_type].in_flight == count, message=f"{count} handlers")


# Requests and replies


@contract
async def a_request_returns_the_reply(world: World) -> None:
    responding = world.bus()

    @responding.respond("quote.get")
    async def quote(request: QuoteRequest, delivery: Delivery) -> Quote:
        assert delivery.type == "quote.get"
        return Quote(symbol=request.symbol, price=request.count * 2.5)

    async with responding, world.bus() as bus:
        asked = QuoteRequest(symbol="ABC", count=2)
        assert await bus.request("quote.get", asked, reply=Quote, timeout=5) == Quote(symbol="ABC", price=5.0)
        assert await bus.request("quote.get", {"symbol": "D"}) == {"symbol": "D", "price": 2.5}
        assert await responding.request("quote.get", asked, reply=Quote) == Quote(symbol="ABC", price=5.0)
        stats = responding.stats().responders["quote.get"]
        assert (stats.received, stats.replied, stats.in_flight) == (3, 3, 0)
        assert (bus.stats().requests.sent, bus.stats().requests.replied, bus.stats().requests.open) == (2, 2, 0)


@contract
async def replies_of_all_kinds_come_back_as_they_were(world: World) -> None:
    bus = world.bus()

    @bus.respond("bytes")
    async def as_bytes(data: bytes) -> bytes:
        return data[::-1]

    @bus.respond("nothing")
    async def nothing(signal: Signal) -> None:
        assert signal.data is None

    @bus.respond("point")
    def in_a_thread(point: Point) -> Point:
        return Point(point.y, point.x)

    @bus.respond("row")
    async def row(data: Row) -> Row:
        return {"a": data["a"] + 1}

    bus.respond("echo", echo)
    async with bus:
        assert await bus.request("bytes", b"\x00\xff", reply=bytes) == b"\xff\x00"
        assert await bus.request("bytes", b"") == b""
        assert await bus.request("nothing") is None
        assert await bus.request("point", Point(1, 2), reply=Point) == Point(2, 1)
        assert await bus.request("row", {"a": 2**70}, reply=Row) == {"a": 2**70 + 1}
        large = "x" * 1_000_000
        assert await bus.request("echo", large) == large
        assert await bus.request("echo", ["é", None, 1.5, {"a": []}]) == ["é", None, 1.5, {"a": []}]


@contract
async def a_request_that_nobody_responds_to_fails_at_once(world: World) -> None:
    async with world.bus() as bus:
        bus.subscribe("ask.*", handler=Inbox(), name="work")  # subscribers are no responders
        await bus.subscriptions()[0]
        for _ in range(3):
            started = time.monotonic()
            with pytest.raises(NoResponder, match=r"ask\.this") as caught:
                await bus.request("ask.this", 1, timeout=10)
            assert time.monotonic() - started < 1.0
            assert caught.value.request_type == "ask.this"


@contract
async def what_the_handler_raises_is_told(world: World) -> None:
    bus = world.bus()

    @bus.respond("fail")
    async def fail(data: int) -> None:
        if data == 1:
            raise LookupError("no such thing")
        raise Reject("not for you")

    @bus.respond("unsendable")
    async def unsendable(data: object) -> object:
        return object()

    async with bus:
        with pytest.raises(RemoteError) as caught:
            await bus.request("fail", 1)
        error = caught.value
        assert (error.type, error.message, error.session) == ("LookupError", "no such thing", bus.session.id)
        assert "raise LookupError" in error.traceback
        with pytest.raises(RemoteError) as caught:
            await bus.request("fail", 2)
        assert (caught.value.type, caught.value.message) == ("Reject", "not for you")
        with pytest.raises(RemoteError) as caught:
            await bus.request("fail", "no number")
        assert caught.value.type == "DecodeError"
        with pytest.raises(RemoteError, match="cannot be sent"):
            await bus.request("unsendable")
        assert bus.stats().responders["fail"].failed == 3


@contract
async def bad_requests_and_replies_are_typed_errors(world: World) -> None:
    bus = world.bus(max_signal_bytes=200_000)
    bus.respond("echo", echo)
    bus.respond("double", double)
    with pytest.raises(ConfigError):
        bus.respond("echo", echo)
    for bad in ("order.*", "#", "", "a b"):
        with pytest.raises((ConfigError, InvalidSignal)):
            bus.respond(bad, echo)
    with pytest.raises(BusClosed):
        await bus.request("echo", 1)
    async with bus:
        with pytest.raises(DecodeError, match="Quote"):
            await bus.request("echo", {"symbol": 1}, reply=Quote)
        with pytest.raises(InvalidSignal):
            await bus.request("echo", "x" * 300_000)
        with pytest.raises(InvalidSignal):
            await bus.request("echo", object())
        with pytest.raises(RemoteError, match="max_signal_bytes"):
            await bus.request("double", "x" * 120_000)
        assert await bus.request("echo", "well") == "well"
    with pytest.raises(BusClosed):
        await bus.request("echo", 1)


@contract
async def a_request_that_takes_too_long_ends_in_time_and_its_handler_is_cancelled(world: World) -> None:
    begun, cancelled = asyncio.Event(), asyncio.Event()
    responding = world.bus()

    @responding.respond("slow")
    async def slow(data: object) -> None:
        begun.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with responding, world.bus() as bus:
        started = time.monotonic()
        asking = asyncio.create_task(bus.request("slow", 1, timeout=2.0))
        # One that expires on its way is not handed out, and then there is nothing to cancel.
        await asyncio.wait_for(begun.wait(), DEADLINE)
        with pytest.raises(RequestTimeout):
            await asking
        assert 1.9 < time.monotonic() - started < 4.0
        await asyncio.wait_for(cancelled.wait(), 5)
        await eventually(lambda: responding.stats().responders["slow"].expired == 1)


@contract
async def a_late_reply_is_counted_and_dropped(world: World) -> None:
    begun, release = asyncio.Event(), asyncio.Event()
    responding = world.bus()

    @responding.respond("stubborn")
    async def stubborn(data: object) -> str:
        begun.set()
        while not release.is_set():
            try:
                await release.wait()
            except asyncio.CancelledError:
                continue
        return "late"

    async with responding, world.bus() as bus:
        asking = asyncio.create_task(bus.request("stubborn", 1, timeout=2.0))
        await asyncio.wait_for(begun.wait(), DEADLINE)
        with pytest.raises(RequestTimeout):
            await asking
        release.set()
        await eventually(lambda: bus.stats().broker.counters.get("replies_late", 0) == 1)
        assert await bus.request("stubborn", 2) == "late"


@contract
async def too_many_requests_are_refused_at_once(world: World) -> None:
    release = asyncio.Event()
    responding = world.bus()

    @responding.respond("busy", concurrency=1, backlog=2)
    async def busy(data: int) -> int:
        await release.wait()
        return data

    async with responding, world.bus() as bus:
        first = asyncio.create_task(bus.request("busy", 0, timeout=20))
        await wait_in_flight(responding, "busy", 1)
        asking = [asyncio.create_task(bus.request("busy", number, timeout=20)) for number in (1, 2)]

        def refused() -> int:
            return sum(task.done() and isinstance(task.exception(), Overloaded) for task in asking)

        async with asyncio.timeout(10):  # those that wait do so for twice as long
            while refused() < 3:
                asking.append(asyncio.create_task(bus.request("busy", 9, timeout=20)))
                # Without an answer in time it waits, as a place was free, or its refusal is late: we know at the end.
                await asyncio.wait(asking[-1:], timeout=0.5)
        release.set()
        assert await first == 0
        outcomes = await asyncio.gather(*asking, return_exceptions=True)
        taken = [outcome for outcome in outcomes if not isinstance(outcome, Overloaded)]
        assert set(taken) <= {1, 2, 9}, "all that were taken have a reply"
        assert len(taken) <= 4, "more than were to be taken"


@contract
async def a_thousand_requests_at_a_time_over_one_bus(world: World) -> None:
    responding = world.bus()
    responding.respond("echo", echo)
    async with responding, world.bus() as bus:
        replies = await asyncio.gather(*(bus.request("echo", number, timeout=30) for number in range(1_000)))
        assert replies == list(range(1_000))
        assert bus.stats().requests.open == 0


@contract
async def nested_requests_with_one_worker_do_not_deadlock(world: World) -> None:
    await world.worker(role="respond", name="outer", behaviour="nested", concurrency=1)
    async with world.bus() as bus:
        replies = await asyncio.gather(*(bus.request("outer", number, timeout=20) for number in range(20)))
        assert replies == [{"inner": number} for number in range(20)]


@contract
async def responders_to_one_type_share_the_requests(world: World) -> None:
    workers = [await world.worker(role="respond", name="ask", behaviour="sleep", seconds=0.01) for _ in range(2)]
    async with world.bus() as bus:
        replies = await asyncio.gather(*(bus.request("ask", n, timeout=20) for n in range(60)))
        pids = [reply["pid"] for reply in replies if isinstance(reply, dict)]
        assert {worker.pid for worker in workers} == set(pids)
        assert len(pids) == 60


@contract
async def responding_begins_and_ends_at_run_time(world: World) -> None:
    async with world.bus() as responding, world.bus() as bus:
        with pytest.raises(NoResponder):
            await bus.request("late", 1)
        endpoint = await responding.respond("late", echo)
        assert endpoint.type == "late"
        assert await bus.request("late", 1) == 1
        assert await endpoint(5) == 5
        await endpoint.cancel()
        with pytest.raises(NoResponder):
            await bus.request("late", 2)
        responding.respond("late", echo)
        assert await responding.request("late", 3) == 3  # it waits for what this bus is just starting


# Responders that die or leave


@contract
async def a_killed_responder_is_told_at_once(world: World) -> None:
    worker = await world.worker(role="respond", name="ask", behaviour="hold", concurrency=10)
    async with world.bus() as bus:
        requests = [asyncio.create_task(bus.request("ask", n, timeout=30)) for n in range(5)]
        await world.wait_steps("start", 5)
        started = time.monotonic()
        await worker.kill()
        outcomes = await asyncio.gather(*requests, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [ResponderDown] * 5
        assert time.monotonic() - started < 2.0
        with pytest.raises(NoResponder):
            await bus.request("ask", 9, timeout=5)
        assert len(world.steps("start")) == 5


@contract
async def a_responder_that_dies_before_or_after_its_effect_is_down(world: World) -> None:
    async with world.bus() as bus:
        for behaviour, effects in (("die-before-effect", 0), ("die-after-effect", 1)):
            await world.worker(role="respond", name=behaviour, behaviour=behaviour)
            with pytest.raises(ResponderDown):
                await bus.request(behaviour, behaviour, timeout=20)
            assert len([step for step in world.steps("effect") if step["data"] == behaviour]) == effects


@contract
async def a_request_is_not_run_again_by_another_responder_unless_it_may(world: World) -> None:
    async with world.bus() as bus:
        for idempotent in (False, True):
            name = f"ask.{idempotent}".lower()
            holder = await world.worker(role="respond", name=name, behaviour="hold", idempotent=idempotent)
            held = asyncio.create_task(bus.request(name, name, timeout=20))
            await eventually(lambda name=name: name in [step["data"] for step in world.steps("start")])  # type: ignore[misc]
            # The other one joins once the first has it, so that it can only get it second.
            other = world.bus()
            runs: list[bool] = []

            @other.respond(name, idempotent=idempotent)
            async def answer(data: object, delivery: Delivery, runs: list[bool] = runs) -> str:
                runs.append(delivery.redelivered)
                return "mine"

            async with other:
                await holder.kill()
                if idempotent:
                    assert await held == "mine"
                    assert runs == [True]
                else:
                    with pytest.raises(ResponderDown):
                        await held
                    assert runs == []
                # What comes fresh runs in any case.
                assert await bus.request(name, "fresh", timeout=20) == "mine"


@contract
async def a_requester_that_dies_leaves_its_responder_in_peace(world: World) -> None:
    release = asyncio.Event()
    runs: list[int] = []
    responding = world.bus()

    @responding.respond("ask")
    async def ask(data: int) -> int:
        runs.append(data)
        if data == 0:
            await release.wait()
        return data

    async with responding:
        worker = await world.worker(role="request", name="ask", count=1, timeout=60.0)
        await eventually(lambda: runs == [0])
        monitor = await responding.monitor(worker.session)
        await worker.kill()
        await asyncio.wait_for(monitor.down, DEADLINE)
        release.set()
        stats = responding.stats().responders["ask"]
        await eventually(lambda: stats.in_flight == 0)
        assert await responding.request("ask", 1) == 1
        assert runs == [0, 1]  # it did not come again


@contract
async def a_responder_that_leaves_in_good_order_still_replies(world: World) -> None:
    release = asyncio.Event()
    started = asyncio.Event()
    responding = world.bus()

    @responding.respond("ask")
    async def ask(data: int) -> int:
        started.set()
        await release.wait()
        return data

    async with world.bus() as bus:
        await responding.open()
        asked = asyncio.create_task(bus.request("ask", 1, timeout=20))
        await asyncio.wait_for(started.wait(), DEADLINE)
        closing = asyncio.create_task(responding.aclose())

        # From now on there is nobody for others ...
        async def refused() -> bool:
            try:
                await bus.request("ask", 2, timeout=1)
            except (NoResponder, ResponderDown):
                return True
            except RequestTimeout:
                return False
            return False

        await wait_until(refused, message="the responder to take nothing more")
        # ... but what it has, it answers.
        release.set()
        assert await asked == 1
        await closing


@contract
async def requests_that_wait_for_a_responder_that_leaves_go_to_another(world: World) -> None:
    release = asyncio.Event()
    leaving, staying = world.bus(), world.bus()
    answered: list[str] = []

    @leaving.respond("ask", concurrency=1)
    async def slow(data: int) -> str:
        await release.wait()
        return "leaving"

    @staying.respond("ask", concurrency=1)
    async def quick(data: int) -> str:
        answered.append("staying")
        return "staying"

    async with world.bus() as bus, staying:
        await leaving.open()
        requests = [asyncio.create_task(bus.request("ask", n, timeout=20)) for n in range(10)]
        await wait_in_flight(leaving, "ask", 1)
        closing = asyncio.create_task(leaving.aclose())
        await eventually(lambda: len(answered) >= 9)
        release.set()
        replies = await asyncio.gather(*requests)
        assert sorted(replies, key=str) == ["leaving"] + ["staying"] * 9
        await closing


# Publishing until acked


def outcomes(receipt: Receipt) -> dict[str, Outcome]:
    """What became of it, by subscription."""
    return {each.subscription: each.outcome for each in receipt.subscriptions}


@contract
async def publishing_until_acked_names_every_subscription(world: World) -> None:
    serving = world.bus()
    for name, pattern in {"all": "#", "orders": "order.*", "other": "cart.#"}.items():
        serving.subscribe(pattern, handler=Inbox(), name=name, durable=name != "orders")
    worker = await world.worker(name="worker", patterns=["order.#"])
    async with serving, world.bus() as bus:
        receipt = await bus.publish("order.placed", 1, until="acked", timeout=10, expect=3)
        assert receipt.acked
        assert outcomes(receipt) == dict.fromkeys(("all", "orders", "worker"), Outcome.ACKED)
        sessions = {each.subscription: each.session for each in receipt.subscriptions}
        assert sessions == {"all": serving.session.id, "orders": serving.session.id, "worker": worker.session}
        # Also in one's own process, and many at a time.
        receipts = await asyncio.gather(
            *(serving.publish("order.placed", n, until="acked", timeout=20) for n in range(50))
        )
        assert all(receipt.acked and len(receipt.subscriptions) == 3 for receipt in receipts)
        plain = await bus.publish("order.placed", 2)
        assert (plain.subscriptions, plain.acked) == ((), False)


@contract
async def dead_and_retried_signals_are_told_by_their_end(world: World) -> None:
    attempts: list[int] = []
    serving = world.bus()

    @serving.subscribe("a", name="stubborn", retry=QUICK)
    async def stubborn(data: object, delivery: Delivery) -> None:
        attempts.append(delivery.attempt)
        if delivery.attempt < 3:
            raise Retry(delay=timedelta(milliseconds=10))

    @serving.subscribe("a", name="hopeless", retry=QUICK)
    async def hopeless(data: object) -> None:
        raise Reject("never")

    async with serving, world.bus() as bus:
        receipt = await bus.publish("a", 1, until="acked", timeout=10)
        assert outcomes(receipt) == {"hopeless": Outcome.DEAD, "stubborn": Outcome.ACKED}
        assert not receipt.acked
        (dead,) = [each for each in receipt.subscriptions if each.outcome is Outcome.DEAD]
        assert "never" in dead.detail
        assert attempts == [1, 2, 3]


@contract
async def what_is_not_settled_in_time_is_pending_and_never_guessed(world: World) -> None:
    release = asyncio.Event()

    async def wait(data: object, delivery: Delivery) -> None:
        await release.wait()

    slow = Inbox(wait)
    async with world.serving("#", handler=Inbox(), name="unserved"):
        pass
    serving = world.bus()
    serving.subscribe("a", handler=Inbox(), name="quick")
    serving.subscribe("a", handler=slow, name="slow")
    async with serving, world.bus() as bus:
        with pytest.raises(NotSettled, match="slow, unserved") as caught:
            await bus.publish("a", 1, until="acked", timeout=5)
        receipt = caught.value.receipt
        assert outcomes(receipt) == {
            "quick": Outcome.ACKED,
            "slow": Outcome.PENDING,
            "unserved": Outcome.PENDING,
        }
        # It is stored all the same, and goes on.
        release.set()
        await eventually(lambda: serving.stats().subscriptions["slow"].acked == 1)


@contract
async def another_audience_than_expected_means_that_nothing_is_sent(world: World) -> None:
    inbox = Inbox()
    async with world.serving("a", handler=inbox) as bus:
        with pytest.raises(AudienceMismatch, match="work") as caught:
            await bus.publish("a", 1, until="acked", expect=2)
        assert (caught.value.expected, caught.value.actual) == (2, ("work",))
        with pytest.raises(AudienceMismatch, match="none"):
            await bus.publish("b", 1, expect=1)
        with pytest.raises(Unroutable):
            await bus.publish("b", 1, until="acked")
        receipt = await bus.publish("b", 1, until="acked", unroutable="ignore")
        assert (receipt.routed, receipt.subscriptions) == (False, ())
        await bus.publish("a", 2, expect=1)
        await inbox.wait(1)
        assert inbox.data == [2]


@contract
async def handlers_do_not_see_who_waits(world: World) -> None:
    got: list[Signal] = []

    async def handle(signal: Signal) -> None:
        got.append(signal)

    async with world.serving("a", handler=handle) as bus:
        sent = Signal(type="a", source="s", extensions={"tenant": "x"})
        assert (await bus.publish(sent, until="acked", timeout=10)).acked
        assert got[0].extensions == {"tenant": "x"}


# Causes


@contract
async def what_a_handler_publishes_or_requests_names_its_cause(world: World) -> None:
    got: dict[str, Signal] = {}
    bus = world.bus()

    @bus.respond("ask")
    async def answer(signal: Signal) -> None:
        got["ask"] = signal
        await bus.publish("from.responder", 1)

    @bus.subscribe("order.*", name="orders")
    async def order(signal: Signal) -> None:
        await bus.request("ask", 1)
        await bus.publish(Signal(type="from.subscriber", correlationid="mine"))

    @bus.subscribe("from.*", name="rest")
    def rest(signal: Signal) -> None:  # in a thread
        got[signal.type] = signal

    async with bus:
        first = Signal(type="order.placed")
        await bus.publish(first)
        await eventually(lambda: len(got) == 3)
        asked, responder, subscriber = got["ask"], got["from.responder"], got["from.subscriber"]
        assert (asked.causationid, asked.correlationid) == (first.id, first.id)
        assert (responder.causationid, responder.correlationid) == (asked.id, first.id)
        assert (subscriber.causationid, subscriber.correlationid) == (first.id, "mine")
        await bus.publish("from.outside", 1)
        await eventually(lambda: "from.outside" in got)
        assert (got["from.outside"].causationid, got["from.outside"].correlationid) == (None, None)

"""What is there now: health, numbers for Prometheus, subscribers, and what broken parts do to them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from signalbus import Bus
from signalbus.brokers.base import BrokerHealth, BrokerState, QueueInfo, SessionStatus
from signalbus.errors import BrokerUnavailable, StorageError
from signalbus.escapes import escape
from signalbus.sessions import ServiceReport, SessionInfo, SessionReport, encode_report
from signalbus.signals import utc_now
from signalbus.trace.listing import StoreStats
from signalbus.web.looks import Look
from signalbus.web.rates import OTHERS, SUBSCRIPTIONS, Tally
from tests.trace.examples import HOSTILE
from tests.web.ask import DEADLINE, Answer, get
from tests.web.fakes import FakeLetters, letter
from tests.web.world import World, world

Samples = dict[tuple[str, str], float]


async def scraped(here: World) -> Samples:
    """Scrape, and return values by name and labels."""
    answer = await get(here.port, "/metrics")
    assert answer.status == 200
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    return samples(answer)


def samples(answer: Answer) -> Samples:
    found: Samples = {}
    for family in text_string_to_metric_families(answer.body.decode()):
        assert family.documentation
        for sample in family.samples:
            labels = ",".join(f"{name}={value}" for name, value in sorted(sample.labels.items()))
            assert (sample.name, labels) not in found
            found[sample.name, labels] = sample.value
    return found


async def _take(data: dict[str, object]) -> None: ...


# Health


async def test_a_process_that_lives_says_so_whatever_is_wrong(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        here.troubles.append("the store is full")
        assert (await get(here.port, "/healthz")).status == 200
        assert (await get(here.port, "/healthz", method="HEAD")).status == 200


async def test_it_is_ready_unless_there_is_trouble(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path) as here:
        answer = await get(here.port, "/readyz")
        assert answer.status == 200
        assert answer.json == {"ready": True, "broker": {"state": "up", "reason": ""}, "troubles": [], "warnings": []}
        here.troubles.append("the store is full")
        answer = await get(here.port, "/readyz")
        assert (answer.status, answer.json["troubles"]) == (503, ["the store is full"])
        here.troubles.clear()
        blocked = BrokerHealth(state=BrokerState.BLOCKED, reason="memory alarm")
        monkeypatch.setattr(here.bus.broker, "health", lambda: blocked)
        answer = await get(here.port, "/readyz")
        assert (answer.status, answer.json["troubles"]) == (503, ["the broker is blocked: memory alarm"])


# Metrics


async def test_the_numbers_are_those_of_the_bus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signalbus.web.looks.SECONDS", 0.01)
    letters = FakeLetters([letter(1), letter(2), letter(3, subscription="mail")])
    async with world(tmp_path, letters=letters) as here:
        await scraped(here)  # counts begin with the first look
        async with Bus(f"sqlite:///{tmp_path}/bus.db", name="shop") as shop:
            await shop.subscribe("order.*", name="billing", handler=_take)
            for _ in range(3):
                await shop.publish("order.placed", {}, until="acked", timeout=10)
            await here.bus.publish("order.placed", {}, until="acked", timeout=10)
            found = await _once_told(here)
        assert found["signalbus_published_total", ""] == 4
        assert found["signalbus_deliveries_total", "outcome=acked,subscription=billing"] == 4
        assert found["signalbus_sessions", ""] == 2
        assert found["signalbus_queue_consumers", "subscription=billing"] == 1
        assert found["signalbus_dead_letters", "state=dead,subscription=billing"] == 2
        assert found["signalbus_broker_state", "state=up"] == 1
        assert found["signalbus_ledger_facts", ""] > 0
        assert found["process_resident_memory_bytes", ""] > 0
        assert found["process_cpu_seconds_total", ""] > 0
        assert found["signalbus_look_failed", "look=queues"] == 0


async def _once_told(here: World) -> Samples:
    """Scrape until looks are made anew, and sessions have told of everything."""
    async with asyncio.timeout(DEADLINE):
        while True:
            found = await scraped(here)
            acked = found.get(("signalbus_deliveries_total", "outcome=acked,subscription=billing"))
            seen = ("signalbus_queue_consumers", "subscription=billing") in found
            if acked == 4 and seen and found["signalbus_ledger_facts", ""] > 0:
                return found
            await asyncio.sleep(0.02)


async def test_the_age_of_the_oldest_waiting_signal_is_shown(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await (await here.bus.subscribe("order.*", name="billing", handler=_take)).cancel()
        await here.bus.publish("order.placed", {})
        found = await scraped(here)
        assert found["signalbus_queue_ready", "subscription=billing"] == 1
        assert 0 <= found["signalbus_queue_oldest_seconds", "subscription=billing"] < 60


async def test_what_cannot_be_asked_for_is_left_out_and_shown_as_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def away(*_: object) -> Sequence[QueueInfo]:
        raise BrokerUnavailable("nobody there")

    async with world(tmp_path) as here:
        monkeypatch.setattr(here.bus.broker, "queues", away)
        monkeypatch.setattr(here.letters, "groups", away)
        found = await scraped(here)
        assert found["signalbus_look_failed", "look=queues"] == 1
        assert found["signalbus_look_failed", "look=dead_letters"] == 1
        assert found["signalbus_look_failed", "look=sessions"] == 0
        assert not any(name.startswith("signalbus_queue") for name, _ in found)
        assert (await get(here.port, "/api/v1/topology")).status == 503
        assert (await get(here.port, "/api/v1/stats")).json["subscriptions"] is None


async def test_labels_are_bounded_and_escaped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = [f'"\\{HOSTILE}', *(f"sub-{number:05}" for number in range(2 * SUBSCRIPTIONS))]
    queue = QueueInfo(name="", patterns=("#",), durable=True, ready=1, unsettled=None, delayed=None, consumers=0)

    async def many(timeout: float) -> list[QueueInfo]:
        return [replace(queue, name=name) for name in names]

    letters = FakeLetters(letter(number, subscription=f"sub-{number:05}") for number in range(SUBSCRIPTIONS + 10))
    async with world(tmp_path, letters=letters) as here:
        monkeypatch.setattr(here.bus.broker, "queues", many)
        found = await scraped(here)
        assert sum(name == "signalbus_queue_ready" for name, _ in found) == SUBSCRIPTIONS
        assert found["signalbus_queue_ready", f"subscription={escape(names[0])}"] == 1
        assert found["signalbus_dead_letters", f"state=dead,subscription={OTHERS}"] == 10
        assert found["signalbus_subscriptions", ""] == len(names)


async def test_a_hundred_scrapes_cost_the_broker_one_look(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    looks = 0

    async def count(timeout: float) -> list[QueueInfo]:
        nonlocal looks
        looks += 1
        return []

    monkeypatch.setattr("signalbus.web.looks.SECONDS", 60.0)
    async with world(tmp_path) as here:
        monkeypatch.setattr(here.bus.broker, "queues", count)
        await asyncio.gather(*(get(here.port, "/metrics") for _ in range(100)))
    assert looks == 1


# What is there


async def test_subscribers_and_sessions_are_listed(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.bus.subscribe("order.*", name="billing", handler=_take)
        [subscription] = (await get(here.port, "/api/v1/subscribers")).list
        assert (subscription["name"], subscription["state"]) == ("billing", "up")
        [session] = (await get(here.port, "/api/v1/sessions")).list
        assert session["answering"] is True
        told = (await get(here.port, "/api/v1/stats")).json
        assert (told["subscriptions"], told["sessions"], told["broker"]) == (1, 1, "up")


async def test_where_a_type_would_go_is_explained(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.bus.subscribe("order.*", name="billing", handler=_take)
        told = (await get(here.port, "/api/v1/explain?type=order.placed")).json
        assert told["routable"] is True
        assert (await get(here.port, "/api/v1/explain?type=nobody.cares")).json["routable"] is False
        assert (await get(here.port, "/api/v1/explain?type=no%20type")).status == 422
        assert (await get(here.port, "/api/v1/explain")).status == 422


async def test_a_store_in_trouble_is_503_with_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with world(tmp_path) as here:

        async def full() -> StoreStats:
            raise StorageError("the disk is full")

        monkeypatch.setattr(here.inspection.traces, "stats", full)
        answer = await get(here.port, "/api/v1/store")
        assert answer.status == 503
        assert (answer.json["error"], answer.json["type"]) == ("the disk is full", "StorageError")
        assert answer.headers["retry-after"] == "1"


# Looks and rates


async def test_a_look_is_shared_by_all_who_come_meanwhile() -> None:
    asked = 0
    now = [0.0]

    async def ask() -> int:
        nonlocal asked
        asked += 1
        await asyncio.sleep(0)
        return asked

    look = Look(ask, 1.0, lambda: now[0])
    assert list(await asyncio.gather(look(), look(), look())) == [1, 1, 1]
    now[0] = 0.9
    assert await look() == 1
    now[0] = 1.1
    assert await look() == 2


async def test_a_look_that_takes_long_is_kept_longer() -> None:
    now = [0.0]
    asked = 0

    async def ask() -> int:
        nonlocal asked
        asked += 1
        now[0] += 2.0
        return asked

    look = Look(ask, 1.0, lambda: now[0])
    assert await look() == 1
    now[0] += 39.0
    assert await look() == 1
    now[0] += 2.0
    assert await look() == 2


async def test_a_look_that_fails_fails_for_all_and_is_tried_again_later() -> None:
    now = [0.0]
    asked = 0

    async def ask() -> int:
        nonlocal asked
        asked += 1
        if asked == 1:
            raise StorageError("full")
        return asked

    look = Look(ask, 1.0, lambda: now[0])
    for _ in range(3):
        with pytest.raises(StorageError, match="full"):
            await look()
    now[0] = 1.1
    assert await look() == 2


async def test_who_leaves_while_looking_leaves_the_others_their_answer() -> None:
    gate = asyncio.Event()

    async def ask() -> int:
        await gate.wait()
        return 1

    look = Look(ask, 1.0)
    first, second = asyncio.create_task(look()), asyncio.create_task(look())
    await asyncio.sleep(0)
    first.cancel()
    gate.set()
    assert await asyncio.wait_for(second, DEADLINE) == 1
    assert first.cancelled() or first.done()


def said(session: str, published: int, acked: int, *, answers: bool = True) -> SessionStatus:
    info = SessionInfo(id=session, name="shop", host="web-1", pid=1, version="1", started=utc_now())
    service = ServiceReport(name="billing", concurrency=1, in_flight=0, received=acked, acked=acked, failed=0)
    report = encode_report(SessionReport(subscriptions=(service,), published=published))
    return SessionStatus(info=info, report=report if answers else None)


def test_rates_are_what_sessions_did_between_two_looks() -> None:
    tally = Tally()
    tally.look([said("a", 1_000, 500)], 10.0)
    first = tally.rates
    tally.look([said("a", 1_020, 510), said("b", 4, 0)], 12.0)  # the second is new: all of it was done meanwhile
    assert first is None
    assert tally.rates == {"published": 12.0, "delivered": 5.0, "acked": 5.0, "failed": 0.0}
    assert tally.totals["acked", "billing"] == 10


def test_sums_never_shrink_when_sessions_end_fall_silent_or_begin_anew() -> None:
    tally = Tally()
    tally.look([said("a", 10, 10), said("b", 10, 10)], 0.0)
    tally.look([said("a", 15, 15, answers=False), said("b", 12, 12)], 1.0)
    tally.look([said("a", 20, 20)], 2.0)
    tally.look([said("a", 5, 5)], 3.0)  # counters that went back
    assert tally.totals["published", ""] == 2 + 10
    assert tally.rates is not None
    assert tally.rates["published"] == 0


def test_any_number_of_names_and_any_report_keep_sums_bounded_and_right() -> None:
    tally = Tally()
    info = said("a", 0, 0).info
    for number in range(0, 3 * SUBSCRIPTIONS, 100):
        services = tuple(
            ServiceReport(name=f"sub-{each}", concurrency=1, in_flight=0, acked=2)
            for each in range(number, number + 100)
        )
        report = encode_report(SessionReport(subscriptions=services))
        tally.look([SessionStatus(info=replace(info, id=str(number)), report=report)], number)
    assert len(tally.totals) < 3 * (SUBSCRIPTIONS + 2)
    assert sum(count for (name, _), count in tally.totals.items() if name == "acked") == 2 * (3 * SUBSCRIPTIONS - 100)
    strange = b'{"subscriptions": [{"name": 7, "concurrency": 1, "in_flight": 0, "acked": "many"}], "responders": []}'
    tally.look([SessionStatus(info=info, report=strange)], 1e9)
    assert tally.rates is not None

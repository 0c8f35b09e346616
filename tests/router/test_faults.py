"""Routers killed, stopped and cut off: no fact is lost or doubled, and nobody who lives is taken for dead."""

from __future__ import annotations

import asyncio
import json
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from signalbus import Bus
from signalbus.brokers.rabbitmq.collector import CollectorState
from signalbus.testing.proxy import FaultProxy
from signalbus.trace.model import SignalTrace, State
from signalbus.trace.reader import TraceReader
from signalbus.trace.store import SqliteStore
from tests.brokers.world import wait_until
from tests.cli.program import environment, signalbus
from tests.router.conftest import FAST, PER_SIGNAL, Ledger, Teller, router_process, routing, stored, wait_stored
from tests.support import eventually

pytestmark = pytest.mark.rabbitmq

WINDOW = 100  # signals under way
MOST = 3_000  # of them
KILLS = 4
BACKLOG = 100  # batches for each router: more than it can store before it is killed


@asynccontextmanager
async def shop(url: str) -> AsyncIterator[Bus]:
    """A bus that publishes orders and bills them itself."""
    bus = Bus(f"{url}?{FAST}", name="shop")

    async def bill(data: dict[str, object]) -> None: ...

    bus.subscribe("order.*", handler=bill, name="billing", concurrency=WINDOW)
    async with bus:
        yield bus


@asynccontextmanager
async def traces(path: Path) -> AsyncIterator[TraceReader]:
    async with TraceReader(await asyncio.to_thread(SqliteStore, path, read_only=True)) as reader:
        yield reader


def is_complete(root: SignalTrace) -> bool:
    """Whether everything was told: nothing is inferred."""
    [delivery] = root.deliveries
    attempt = delivery.last
    return root.published is not None and delivery.state is State.ACKED and attempt is not None and not attempt.inferred


@pytest.mark.timeout(300)
async def test_a_router_killed_at_full_rate_leaves_every_settled_signal_a_complete_trace(
    amqp_url: str, tmp_path: Path, ledger: Ledger
) -> None:
    path, teller = tmp_path / "ledger.db", Teller()
    published: list[str] = []

    async def publish(bus: Bus) -> None:
        while len(published) < MOST:
            receipts = await bus.publish_many([("order.placed", {"n": number}) for number in range(WINDOW)])
            published.extend(receipt.id for receipt in receipts)

    async with shop(amqp_url) as bus:
        publishing = asyncio.create_task(publish(bus))
        for number in range(KILLS):
            with router_process(amqp_url, tmp_path, f"router-{number}") as router:
                for _ in range(BACKLOG):
                    await ledger.put(teller.batch())
                before = await stored(path)
                await wait_until(lambda: _has_more(path, before + 1_000), 60)  # noqa: B023 - awaited here
                router.process.kill()
                await asyncio.to_thread(router.wait)
        await publishing
        await eventually(lambda: bus.subscriptions()[0].stats().acked >= len(published), 60)
    with router_process(amqp_url, tmp_path, "last") as router:
        await wait_until(ledger.is_empty, 60)
        router.send(signal.SIGTERM)
        assert await asyncio.to_thread(router.wait) == 0, router.err
    async with traces(path) as reader:
        roots = [(await reader.trace(each)).root for each in published]
    assert [root.id for root in roots if not is_complete(root)] == []
    assert await stored(path) == PER_SIGNAL * len(published) + teller.facts  # and none is there twice


async def _has_more(path: Path, count: int) -> bool:
    return await stored(path) >= count


async def test_row_45_a_killed_router_takes_nothing_of_the_living_along(amqp_url: str, tmp_path: Path) -> None:
    async with shop(amqp_url) as bus:
        before = await _seen(bus)
        for name in ("first", "second"):
            with router_process(amqp_url, tmp_path, name) as router:
                await asyncio.to_thread(router.wait_err, "keeps the ledger")
                await wait_until(lambda: _has_routers(bus, 1))
                router.process.kill()
                await asyncio.to_thread(router.wait)
            await wait_until(lambda: _has_routers(bus, 0))
            assert await _seen(bus) == before
            receipt = await bus.publish("order.placed", {}, until="acked", timeout=20)
            assert receipt.subscriptions is not None


async def _seen(bus: Bus) -> tuple[list[str], list[tuple[str, int]]]:
    sessions = [session.id for session in await bus.sessions() if "router" not in session.name]
    queues = await bus.broker.queues(10.0)
    return sessions, [(queue.name, queue.consumers) for queue in queues]


async def _has_routers(bus: Bus, count: int) -> bool:
    return sum(session.name == "signalbus-router" for session in await bus.sessions()) == count


async def _downs(path: Path) -> set[str]:
    """Return the sessions whose ends are stored."""

    def read() -> set[str]:
        store = SqliteStore(path, read_only=True)
        try:
            with store._snapshot() as connection:
                rows = connection.execute("SELECT session, fact FROM ledger_sessions").fetchall()
        finally:
            store.close()
        return {session for session, fact in rows if json.loads(fact)[0] == "session_down"}

    return await asyncio.to_thread(read)


async def suspend(amqp_url: str, tmp_path: Path, seconds: float) -> None:
    """Stop a router for a while: when it wakes, who lived all the time is alive, and who died is dead."""
    path = tmp_path / "ledger.db"
    with router_process(amqp_url, tmp_path) as router:
        await asyncio.to_thread(router.wait_err, "keeps the ledger")
        async with shop(amqp_url) as alive:
            async with shop(amqp_url) as leaving:
                gone = leaving.session.id
                router.send(signal.SIGSTOP)
            try:
                await asyncio.sleep(seconds)
                assert (await alive.publish("order.placed", {}, until="acked", timeout=20)).subscriptions is not None
            finally:
                router.send(signal.SIGCONT)
            await wait_until(lambda: _has_down(path, gone), 60)
            assert alive.session.id not in await _downs(path)
            assert [(queue.name, queue.consumers) for queue in await alive.broker.queues(10.0)] == [("billing", 1)]


async def _has_down(path: Path, session: str) -> bool:
    return session in await _downs(path)


async def test_row_88_a_router_that_was_stopped_declares_nobody_dead(amqp_url: str, tmp_path: Path) -> None:
    await suspend(amqp_url, tmp_path, 8.0)  # four heartbeats: the broker gave it up


@pytest.mark.slow
async def test_row_88_a_router_that_was_stopped_for_a_minute_declares_nobody_dead(
    amqp_url: str, tmp_path: Path
) -> None:
    await suspend(amqp_url, tmp_path, 60.0)


async def test_row_90_a_router_that_is_cut_off_is_replaced_and_harms_nobody(
    amqp_url: str, tmp_path: Path, ledger: Ledger
) -> None:
    path, teller = tmp_path / "ledger.db", Teller()
    async with FaultProxy(amqp_url) as proxy, routing(proxy.url_for(amqp_url), path) as cut_off:
        await eventually(lambda: cut_off.role is CollectorState.ACTIVE, 20)
        async with routing(amqp_url, path) as other, shop(amqp_url) as bus:
            await eventually(lambda: other.role is CollectorState.STANDBY, 20)
            before = await _seen(bus)
            proxy.black_hole()
            await eventually(lambda: other.role is CollectorState.ACTIVE, 30)
            assert (await bus.publish("order.placed", {}, until="acked", timeout=20)).subscriptions is not None
            await eventually(lambda: cut_off.role is CollectorState.AWAY, 30)
            await eventually(lambda: any("RabbitMQ" in trouble for trouble in cut_off.troubles()), 30)
            await proxy.heal()
            await eventually(lambda: cut_off.role is CollectorState.STANDBY, 30)
            assert other.role is CollectorState.ACTIVE
            assert await _seen(bus) == before
            assert bus.session.id not in await _downs(path)
            facts = await stored(path)
            await ledger.put(teller.batch())
            await wait_until(lambda: _has_more(path, facts + teller.facts))


# Ending


async def test_on_sigterm_what_was_taken_is_stored_and_acknowledged(
    amqp_url: str, tmp_path: Path, ledger: Ledger
) -> None:
    path, teller = tmp_path / "ledger.db", Teller()
    for _ in range(300):
        await ledger.put(teller.batch())
    with router_process(amqp_url, tmp_path) as router:
        await wait_until(lambda: _has_more(path, 1_000))
        router.send(signal.SIGTERM)
        assert await asyncio.to_thread(router.wait, 20.0) == 0, router.err
    left = await ledger.depth()
    assert await stored(path) == teller.facts - left * 240
    assert "Traceback" not in router.err
    with router_process(amqp_url, tmp_path, "next"):
        await wait_stored(path, teller.facts)


async def test_a_second_signal_ends_the_router_at_once(amqp_url: str, tmp_path: Path) -> None:
    with router_process(amqp_url, tmp_path) as router:
        await asyncio.to_thread(router.wait_err, "keeps the ledger")
        router.send(signal.SIGTERM)
        router.send(signal.SIGINT)
        code = await asyncio.to_thread(router.wait, 10.0)
        # It may have ended in good order before the second came; if both are pending, the lower number comes first.
        assert code in (0, 128 + signal.SIGINT, 128 + signal.SIGTERM)


def test_row_98_no_secret_is_in_what_a_router_prints(amqp_url: str, tmp_path: Path) -> None:
    secret = "canary-7f3a"
    url = amqp_url.replace("guest:guest@", f"nobody:{secret}@")
    (tmp_path / "router.toml").write_text(f'url = "{url}"\nstore = "ledger.db"\nconnect_timeout = 3\n')
    env = environment(SIGNALBUS_TOKEN=secret)
    said = ""
    for words, code in ((("--print-config",), 0), (("--check-config",), 0), (("-v",), 4), (("-v", "--json"), 4)):
        result = signalbus("router", "--config", "router.toml", *words, cwd=tmp_path, env=env, check=code)
        said += result.out + result.err
    assert "the configuration is good" in said
    assert "check user, password and vhost" in said
    assert "nobody:***@" in said
    assert 'token = "***"' in said
    assert secret not in said

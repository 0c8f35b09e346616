"""What keeps a session alive to others, and what happens when it is lost."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from functools import partial

import pytest
from aiormq.abc import AbstractChannel

from signalbus.brokers.base import BrokerState, PublishResult
from signalbus.brokers.rabbitmq import lease, membership
from signalbus.brokers.rabbitmq.membership import Stay
from signalbus.sessions import Down, DownReason
from signalbus.testing.proxy import FaultProxy
from signalbus.testing.rabbitmq import PrivateNode
from tests.brokers.rabbitmq.conftest import (
    FAST,
    TIMEOUT,
    Brokers,
    Member,
    Peers,
    broker_for,
    publish,
    session,
    signal,
    until,
    wait_up,
)
from tests.support import eventually


def stay_of(member: Member) -> Stay:
    """Return the present incarnation at the broker."""
    stay = member.broker._society.membership._stay  # pyright: ignore[reportPrivateUsage]
    assert stay is not None
    return stay


async def living(member: Member) -> list[str]:
    """Return the ids of the living sessions."""
    return [status.info.id for status in await member.broker.sessions(TIMEOUT)]


async def queues(node: PrivateNode, url: str) -> int:
    """Return how many queues one virtual host has for sessions."""
    vhost = url.rpartition("/")[2].partition("?")[0]
    own = ", ".join(f'<<"signalbus.{kind}.">>' for kind in ("s", "here", "lease"))
    names = f'[element(4, amqqueue:get_name(Q)) || Q <- rabbit_amqqueue:list(<<"{vhost}">>)]'
    return int(await node.eval(f"length([N || N <- {names}, binary:match(N, [{own}]) =/= nomatch])"))


async def test_a_session_is_alive_when_open_returns(brokers: Brokers) -> None:
    watcher = await brokers.join()
    for _ in range(5):
        other = await brokers.join()
        assert other.id in await living(watcher)
        future = await watcher.broker.watch(other.id, TIMEOUT)
        assert not future.done()


async def test_whoever_is_listed_can_be_watched(
    brokers: Brokers, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = lease.Lease.start

    async def start_slowly(self: lease.Lease) -> None:
        await asyncio.sleep(0.1)
        await start(self)

    monkeypatch.setattr(lease.Lease, "start", start_slowly)
    watcher, other = await brokers.join(), await brokers.join(proxy.url_for(brokers.url), f"{FAST}&backoff_cap=0.2")
    seen = {watcher.id, other.id}
    for _ in range(5):
        proxy.cut()
        new: set[str] = set()
        async with asyncio.timeout(TIMEOUT):
            while not new:
                new = set(await living(watcher)) - seen
        for session_id in new:
            future = await watcher.broker.watch(session_id, TIMEOUT)
            assert not future.done(), "listed while it enters, and not alive yet"
        seen |= new


async def test_a_deleted_lease_makes_a_new_incarnation_and_a_down(brokers: Brokers, raw: AbstractChannel) -> None:
    watcher, other = await brokers.join(), await brokers.join()
    first = other.id
    future = await watcher.broker.watch(first, TIMEOUT)
    await raw.queue_delete(f"signalbus.lease.{first}")
    async with asyncio.timeout(TIMEOUT):
        down = await future
    assert (down.session, down.reason) == (first, DownReason.CONNECTION_LOST)
    await eventually(lambda: other.id == f"{first}:2")
    await until(lambda: _lists(watcher, other.id))
    assert first not in await living(watcher)
    assert [info.incarnation for info in other.incarnations] == [1, 2]
    again = await watcher.broker.watch(other.id, TIMEOUT)
    await other.broker.aclose()
    async with asyncio.timeout(TIMEOUT):
        assert (await again).reason is DownReason.NORMAL


def _is(member: Member, session_id: str) -> bool:
    return member.id == session_id


async def _lists(watcher: Member, session_id: str) -> bool:
    return session_id in await living(watcher)


async def test_a_deleted_inbox_makes_a_new_incarnation(brokers: Brokers, rabbitmq_node: PrivateNode) -> None:
    watcher, other = await brokers.join(), await brokers.join()
    first = other.id
    future = await watcher.broker.watch(first, TIMEOUT)
    # Exclusive: only its own connection may delete it, as an operator's force would.
    await stay_of(other).channel.queue_delete(f"signalbus.s.{first}")
    async with asyncio.timeout(TIMEOUT):
        assert (await future).reason is DownReason.CONNECTION_LOST
    await until(lambda: _lists(watcher, f"{first}:2"))
    await watcher.broker.send(other.id, b"to the new one")
    await eventually(lambda: other.taken == [b"to the new one"])
    await watcher.broker.send(first, b"to nobody")


async def test_a_lost_connection_makes_a_new_incarnation(brokers: Brokers, proxy: FaultProxy) -> None:
    watcher, other = await brokers.join(), await brokers.join(proxy.url_for(brokers.url))
    first = other.id
    future = await watcher.broker.watch(first, TIMEOUT)
    for number in (2, 3):
        before = other.id
        proxy.cut()
        async with asyncio.timeout(TIMEOUT):
            down = await future
        assert (down.session, down.reason) == (before, DownReason.CONNECTION_LOST)
        await eventually(partial(_is, other, f"{first}:{number}"))
        await until(lambda: _lists(watcher, other.id))
        future = await watcher.broker.watch(other.id, TIMEOUT)
    assert not future.done()


async def test_a_token_held_too_long_for_the_broker_costs_the_incarnation_only(fault_node: PrivateNode) -> None:
    limits = "[application:set_env(rabbit, K, V) || {K, V} <- [{consumer_timeout, %d}, {channel_tick_interval, %d}]]"
    await fault_node.eval(limits % (6_000, 500))
    brokers = Brokers(await fault_node.vhost())
    try:
        member, watcher = await brokers.join(), await brokers.join(options=f"{FAST}&lease_renewal=1")
        first, second = member.id, watcher.id
        future = await watcher.broker.watch(first, TIMEOUT)
        async with asyncio.timeout(30):
            down = await future
        assert down.reason is DownReason.CONNECTION_LOST
        await eventually(lambda: member.id == f"{first}:2")
        assert member.broker.health().counters["reconnects"] == 0
        assert watcher.id == second, "a renewed lease is lost"
    finally:
        await brokers.aclose()
        await fault_node.eval(limits % (1_800_000, 60_000))


async def test_renewals_never_look_like_a_death(brokers: Brokers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "CHECK_SECONDS", 0.0)
    watcher, other = await brokers.join(), await brokers.join(options=f"{FAST}&lease_renewal=0")
    ended: list[Down] = []
    await watcher.broker.watch_all(ended.append, TIMEOUT)
    held = stay_of(other).lease
    await eventually(lambda: held._held > 300, 60)  # pyright: ignore[reportPrivateUsage]
    for _ in range(20):
        assert other.id in await living(watcher)
    assert not ended
    monkeypatch.setattr(membership, "CHECK_SECONDS", 2.0)


async def test_tokens_whose_fate_is_unknown_never_look_like_a_death(
    brokers: Brokers, proxy: FaultProxy, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(membership, "CHECK_SECONDS", 0.01)
    monkeypatch.setattr(membership, "TOKEN_SECONDS", 0.01)
    monkeypatch.setattr(lease, "ARRIVE_SECONDS", 0.01)
    watcher = await brokers.join()
    other = await brokers.join(proxy.url_for(brokers.url), f"{FAST}&lease_renewal=0")
    ended: list[Down] = []
    await watcher.broker.watch_all(ended.append, TIMEOUT)
    # Tokens are sent and their confirms come too late: some are underway while the next one is published.
    proxy.delay(0.05)
    await asyncio.sleep(2)
    await proxy.heal()
    assert not ended
    assert other.id in await living(watcher)


async def test_a_foreign_message_in_the_lease_is_thrown_away(brokers: Brokers, raw: AbstractChannel) -> None:
    watcher, other = await brokers.join(), await brokers.join()
    ended: list[Down] = []
    await watcher.broker.watch_all(ended.append, TIMEOUT)
    for _ in range(30):
        await raw.basic_publish(b"not a token", routing_key=f"signalbus.lease.{other.id}")
    counters = other.broker.health().counters
    await eventually(lambda: other.broker.health().counters.get("notes_refused", 0) == 30, message=str(counters))
    assert not ended


async def test_an_alarm_blocks_no_consumer_and_the_lease_is_held_after_it(fault_node: PrivateNode) -> None:
    brokers = Brokers(await fault_node.vhost())
    try:
        watcher = await brokers.join()
        await fault_node.eval("vm_memory_monitor:set_vm_memory_high_watermark(0.00001)")
        other = await brokers.join()  # cannot publish its token
        sink = brokers.sink(await brokers.serve(other.broker, durable=False))  # the registry needs a publish
        assert not stay_of(other).lease.held
        await fault_node.eval("vm_memory_monitor:set_vm_memory_high_watermark({absolute, 2000000000})")
        await eventually(lambda: stay_of(other).lease.held)
        future = await watcher.broker.watch(other.id, TIMEOUT)
        assert await publish(watcher.broker, signal(1)) == [PublishResult.CONFIRMED]
        await eventually(lambda: sink.numbers == [1])
        await other.broker.aclose()
        async with asyncio.timeout(TIMEOUT):
            assert (await future).reason is DownReason.NORMAL
    finally:
        await brokers.aclose()


async def test_a_lease_that_is_refused_is_said_at_once_and_taken_later(brokers: Brokers, raw: AbstractChannel) -> None:
    member = await brokers.join()
    first = member.id
    # The next incarnation finds a queue of its name with other settings.
    await raw.queue_declare(f"signalbus.lease.{first}:2", durable=True)
    await raw.queue_delete(f"signalbus.lease.{first}")
    await eventually(lambda: member.broker.health().state is BrokerState.DEGRADED)
    assert f"signalbus.lease.{first}:2" in member.broker.health().reason
    await raw.queue_delete(f"signalbus.lease.{first}:2")
    await wait_up(member.broker)
    watcher = await brokers.join()
    assert member.id in await living(watcher)


async def test_open_and_close_leave_nothing_at_the_broker(
    brokers: Brokers, peers: Peers, rabbitmq_node: PrivateNode
) -> None:
    for _ in range(20):
        broker = broker_for(brokers.url)
        await broker.open(session(), TIMEOUT)
        await broker.aclose()
    peer = await peers.start("live", 5)
    await peer.line("live")
    assert await queues(rabbitmq_node, brokers.url) == 15
    await peer.kill()

    async def none() -> bool:
        return not await queues(rabbitmq_node, brokers.url)

    await until(none)


async def test_a_session_with_long_names_is_told_all_the_same(brokers: Brokers) -> None:
    watcher = await brokers.join()
    info = replace(session(), name="näme " * 20, host="host" * 60, version="1.2.3")
    broker = broker_for(brokers.url, f"{FAST}&prefix={'p' * 60}")
    other = broker_for(brokers.url, f"{FAST}&prefix={'p' * 60}")
    await broker.open(info, TIMEOUT)
    await other.open(session(), TIMEOUT)
    try:
        (status,) = [status for status in await other.sessions(TIMEOUT) if status.info.id == info.id]
        assert status.info.pid == info.pid
        assert abs((status.info.started - info.started).total_seconds()) < 0.01
        assert info.name.startswith(status.info.name[:8])
        assert info.id not in await living(watcher), "another prefix is another world"
    finally:
        await broker.aclose()
        await other.aclose()

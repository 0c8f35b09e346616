"""Watching sessions: each end is told once, soon, and only if it is one."""

from __future__ import annotations

import asyncio
import signal as signals
import statistics
from collections import Counter
from functools import partial

import pytest
from aiormq.abc import AbstractChannel

from signalbus.brokers.rabbitmq import notes, observer
from signalbus.brokers.rabbitmq.lease import Lease
from signalbus.errors import BrokerUnavailable, BusClosed
from signalbus.sessions import Down, DownReason
from signalbus.testing.proxy import FaultProxy
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


async def _ended(future: asyncio.Future[Down], timeout: float = TIMEOUT) -> Down:
    async with asyncio.timeout(timeout):
        return await future


async def test_a_session_that_is_not_there_is_told_at_once(brokers: Brokers) -> None:
    broker = await brokers.open()
    down = await _ended(await broker.watch("nobody", TIMEOUT), 0.1)
    assert (down.session, down.reason) == ("nobody", DownReason.NOPROC)


@pytest.mark.parametrize("reason", [DownReason.NORMAL, DownReason.KILLED_BY_SUPERVISOR])
async def test_who_leaves_in_good_order_says_why(brokers: Brokers, reason: DownReason) -> None:
    watcher, other = await brokers.join(), await brokers.join()
    future = await watcher.broker.watch(other.id, TIMEOUT)
    await other.broker.aclose(reason)
    down = await _ended(future)
    assert (down.session, down.reason, down.name, down.unsettled) == (other.id, reason, "test", 0)
    gone = await _ended(await watcher.broker.watch(other.id, TIMEOUT), 0.1)
    assert gone.reason is DownReason.NOPROC


async def test_a_killed_process_is_told_within_50_ms(brokers: Brokers, peers: Peers) -> None:
    watcher = await brokers.join()
    clock = asyncio.get_running_loop().time
    told: dict[str, float] = {}
    await watcher.broker.watch_all(lambda down: told.update({down.session: clock()}), TIMEOUT)
    times: list[float] = []
    for _ in range(7):
        peer = await peers.start("live", 1)
        (id_,) = await peer.line("live")
        future = await watcher.broker.watch(id_, TIMEOUT)
        killed = await peer.kill()
        down = await _ended(future)
        times.append(told[id_] - killed)
        assert (down.session, down.reason, down.name) == (id_, DownReason.CONNECTION_LOST, "test")
    assert statistics.median(times) < 0.05, times


async def test_the_end_tells_how_much_was_held(brokers: Brokers, peers: Peers) -> None:

    watcher = await brokers.join()
    peer = await peers.start("hold", 3)
    (id_,) = await peer.line("serving")
    await publish(watcher.broker, *[signal(number) for number in range(3)])
    await peer.line("holding")
    future = await watcher.broker.watch(id_, TIMEOUT)
    await asyncio.sleep(3)  # the token tells what was so two seconds ago
    await peer.kill()
    assert (await _ended(future)).unsettled == 3


async def test_everybody_who_watches_is_told_once(brokers: Brokers) -> None:
    watcher, second, other = await brokers.join(), await brokers.join(), await brokers.join()
    ended: list[Down] = []
    again: list[Down] = []
    await watcher.broker.watch_all(ended.append, TIMEOUT)
    await watcher.broker.watch_all(again.append, TIMEOUT)
    futures = [await member.broker.watch(other.id, TIMEOUT) for member in (watcher, watcher, second)]
    await other.broker.aclose()
    downs = [await _ended(future) for future in futures]
    assert {down.reason for down in downs} == {DownReason.NORMAL}
    late = await brokers.join()
    await late.broker.aclose()
    await eventually(lambda: len(ended) == len(again) == 2)
    assert [down.session for down in ended] == [other.id, late.id]


async def test_an_end_between_goodbye_and_token_is_told_once(brokers: Brokers, raw: AbstractChannel) -> None:
    watcher, other = await brokers.join(), await brokers.join()
    ended: list[Down] = []
    await watcher.broker.watch_all(ended.append, TIMEOUT)
    # What a process leaves that is killed while it closes: its last word, and then its token.
    membership = other.broker._society.membership  # pyright: ignore[reportPrivateUsage]
    stay = membership._stay  # pyright: ignore[reportPrivateUsage]
    assert stay is not None

    goodbye = notes.write_goodbye(other.info, DownReason.NORMAL, unsettled=0)
    await other.broker._society.post.send(  # pyright: ignore[reportPrivateUsage]
        "signalbus.sessions", f"down.{other.id}", notes.Note.DOWN, goodbye, TIMEOUT
    )
    first = other.id
    await stay.channel.close()
    await eventually(lambda: other.id != first)
    await (await brokers.join()).broker.aclose()
    await eventually(lambda: len(ended) == 2)
    assert [down.session for down in ended].count(first) == 1


async def test_a_cancelled_watch_leaves_nothing(brokers: Brokers) -> None:
    watcher, other = await brokers.join(), await brokers.join()
    future = await watcher.broker.watch(other.id, TIMEOUT)
    future.cancel()
    observer = watcher.broker._society.observer  # pyright: ignore[reportPrivateUsage]
    await eventually(lambda: not observer._watched)  # pyright: ignore[reportPrivateUsage]
    kept = await watcher.broker.watch(other.id, TIMEOUT)
    await watcher.broker.aclose()
    assert kept.cancelled()
    with pytest.raises(BusClosed):
        await watcher.broker.watch(other.id, TIMEOUT)


async def test_a_watch_races_the_end_and_is_told_each_time(brokers: Brokers) -> None:
    watcher = await brokers.join()
    reasons: Counter[DownReason] = Counter()
    for number in range(60):
        other = broker_for(brokers.url, FAST)
        info = session()
        await other.open(info, TIMEOUT)
        closing = asyncio.create_task(other.aclose())
        await asyncio.sleep(number / 10_000)  # through all steps of closing
        for future in await asyncio.gather(*(watcher.broker.watch(info.id, TIMEOUT) for _ in range(50))):
            reasons[(await _ended(future, 5)).reason] += 1
        await closing
    assert reasons.keys() <= {DownReason.NORMAL, DownReason.NOPROC}
    assert len(reasons) == 2, f"they did not race: {reasons}"


async def test_who_is_watched_after_its_last_word_is_gone(brokers: Brokers, monkeypatch: pytest.MonkeyPatch) -> None:
    watcher, late, other = await brokers.join(), await brokers.join(), await brokers.join()
    told = await watcher.broker.watch(other.id, TIMEOUT)
    kept = asyncio.Event()

    async def keep(self: Lease, timeout: float) -> None:
        await kept.wait()

    monkeypatch.setattr(Lease, "release", keep)
    closing = asyncio.create_task(other.broker.aclose())
    assert (await _ended(told)).reason is DownReason.NORMAL
    # Its lease is still there; one has heard the last word, the other never will.
    for member in (watcher, late):
        future = await member.broker.watch(other.id, TIMEOUT)
        assert (await _ended(future, 0.5)).reason is DownReason.NOPROC
    kept.set()
    await closing


async def test_a_watch_races_a_lost_connection_and_is_told_each_time(brokers: Brokers, proxy: FaultProxy) -> None:
    watcher, other = await brokers.join(), await brokers.join(proxy.url_for(brokers.url), f"{FAST}&backoff_cap=0.2")
    reasons: Counter[DownReason] = Counter()
    for number in range(30):
        before = other.id
        watches = [asyncio.create_task(watcher.broker.watch(before, TIMEOUT)) for _ in range(25)]
        await asyncio.sleep(number / 3000)
        proxy.cut()
        watches += [asyncio.create_task(watcher.broker.watch(before, TIMEOUT)) for _ in range(25)]
        for watch in watches:
            reasons[(await _ended(await watch, 5)).reason] += 1
        await eventually(partial(_renewed, other, before))
        await wait_up(other.broker)
    assert reasons.keys() <= {DownReason.CONNECTION_LOST, DownReason.NOPROC}
    assert reasons[DownReason.CONNECTION_LOST], f"they did not race: {reasons}"


def _renewed(member: Member, before: str) -> bool:
    return member.id != before


async def test_a_lost_token_is_found_by_the_sweep(
    brokers: Brokers, peers: Peers, raw: AbstractChannel, monkeypatch: pytest.MonkeyPatch
) -> None:

    monkeypatch.setattr(observer, "SWEEP_SECONDS", 0.5)
    watcher = await brokers.join()
    peer = await peers.start("live", 1)
    (id_,) = await peer.line("live")
    ended: list[Down] = []
    await watcher.broker.watch_all(ended.append, TIMEOUT)
    future = await watcher.broker.watch(id_, TIMEOUT)
    # The exchange is away at that moment, so the token goes nowhere.
    await raw.exchange_delete("signalbus.sessions")
    await peer.kill()
    down = await _ended(future, 10)
    assert (down.session, down.reason) == (id_, DownReason.CONNECTION_LOST)
    await eventually(lambda: [down.session for down in ended] == [id_])


async def test_an_observer_that_was_cut_off_finds_who_ended_and_nobody_else(
    brokers: Brokers, peers: Peers, proxy: FaultProxy
) -> None:
    watcher = await brokers.join(proxy.url_for(brokers.url))
    living, left = await brokers.join(), await brokers.join()
    peer = await peers.start("live", 1)
    (killed,) = await peer.line("live")
    ended: list[Down] = []
    await watcher.broker.watch_all(ended.append, TIMEOUT)
    stays = await watcher.broker.watch(living.id, TIMEOUT)
    futures = [await watcher.broker.watch(id_, TIMEOUT) for id_ in (left.id, killed)]
    await proxy.refuse()
    proxy.cut()
    await peer.kill()
    await left.broker.aclose()
    await proxy.heal()
    downs = [await _ended(future) for future in futures]
    assert {down.reason for down in downs} == {DownReason.CONNECTION_LOST}
    await eventually(lambda: sorted(down.session for down in ended) == sorted([left.id, killed]))
    await wait_up(watcher.broker)
    assert not stays.done()
    await living.broker.aclose()
    assert (await _ended(stays)).reason is DownReason.NORMAL


async def test_a_stopped_session_is_told_within_three_heartbeats(brokers: Brokers, peers: Peers) -> None:
    watcher = await brokers.join()
    peer = await peers.start("live", 1)
    (id_,) = await peer.line("live")
    future = await watcher.broker.watch(id_, TIMEOUT)
    peer.send(signals.SIGSTOP)
    down = await _ended(future, 3 * 4 + 1)
    assert down.reason is DownReason.CONNECTION_LOST


async def test_an_observer_that_was_stopped_declares_nobody_dead(brokers: Brokers, peers: Peers) -> None:
    living, leaving = await brokers.join(), await brokers.join()
    peer = await peers.start("observe", 2, living.id, leaving.id)
    await peer.line("observing")
    peer.send(signals.SIGSTOP)
    await asyncio.sleep(8)  # the broker gives up on it after two to three heartbeats of 2 s
    await leaving.broker.aclose()
    peer.send(signals.SIGCONT)
    assert (await peer.line("down"))[0] == leaving.id
    states: list[str] = []

    async def back() -> bool:
        peer.tell("state")
        states[:] = await peer.line("state")
        return states[1] == "up" and int(states[0]) > 0

    await until(back)
    await living.broker.aclose()
    assert await peer.line("down") == [living.id, "normal"]


async def test_without_a_broker_a_watch_says_so_in_time(brokers: Brokers, proxy: FaultProxy) -> None:
    watcher = await brokers.join(proxy.url_for(brokers.url))
    await proxy.refuse()
    proxy.cut()
    clock = asyncio.get_running_loop().time
    started = clock()
    with pytest.raises(BrokerUnavailable):
        await watcher.broker.watch("anybody", 0.5)
    assert clock() - started < 1.5


@pytest.mark.slow
async def test_200_sessions_killed_together_are_all_told_within_two_seconds(
    brokers: Brokers, peers: Peers, raw: AbstractChannel
) -> None:
    watcher = await brokers.join()
    peer = await peers.start("live", 200)
    ids = await peer.line("live", 90)
    assert len(ids) == 200
    ended: list[Down] = []
    await watcher.broker.watch_all(ended.append, TIMEOUT)
    futures = [await watcher.broker.watch(id_, TIMEOUT) for id_ in ids]
    clock = asyncio.get_running_loop().time
    killed = await peer.kill()
    for future in futures:
        assert (await _ended(future, 10)).reason is DownReason.CONNECTION_LOST
    took = clock() - killed
    assert took < 2, took
    assert sorted(down.session for down in ended) == sorted(ids)

"""The end of sessions: told once, soon, with the reason, and only of those that have ended."""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import signal as signals_
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from signalbus.brokers.sqlite import SqliteBroker, census, watcher
from signalbus.brokers.sqlite.clock import Clock
from signalbus.brokers.sqlite.operations import Look
from signalbus.brokers.sqlite.store import Connection
from signalbus.errors import BrokerUnavailable, BusClosed
from signalbus.sessions import Down, DownReason
from tests.brokers.sqlite.support import (
    SECONDS,
    Peer,
    Place,
    Said,
    idle_share,
    look_only,
    receive,
    remove_sockets,
    settled,
    signals,
)
from tests.leaks import open_descriptors
from tests.support import eventually

_PIDFD_GETFD = 438  # the number of the system call


async def _ended(future: asyncio.Future[Down], timeout: float = SECONDS) -> Down:
    async with asyncio.timeout(timeout):
        return await future


async def _at_the_database(broker: SqliteBroker, act: Callable[[Connection], object]) -> None:
    """Do something to the database as another process may: outside any transaction of ours."""
    errands = broker._opened()
    await errands.ask(Look(errands.future(), time.monotonic() + SECONDS, act))


async def _sitting(place: Place, count: int = 1) -> tuple[Peer, list[str]]:
    peer = place.peer("sit", count)
    return peer, [await peer.line() for _ in range(count)]


async def test_a_killed_process_is_down_within_fifty_milliseconds(place: Place) -> None:
    """The median of ten, beyond what this disk takes to write it down; the reason is the lost connection."""
    broker, consumer = await place.serving()
    await consumer.stop()
    commits: list[float] = []
    for signal in signals(10):
        begun = time.monotonic()
        await broker.publish([signal], SECONDS)
        commits.append(time.monotonic() - begun)
    times: list[float] = []
    for _ in range(10):
        peer, (name,) = await _sitting(place)
        future = await broker.watch(name, SECONDS)
        begun = time.monotonic()
        peer.send(signals_.SIGKILL)
        down = await _ended(future)
        times.append(time.monotonic() - begun)
        assert (down.session, down.reason, down.name, down.unsettled) == (name, "connection_lost", "test", 0)
        peer.kill()
    assert statistics.median(times) < 0.05 + 2 * statistics.median(commits), (times, commits)


async def test_what_a_killed_process_held_is_counted(place: Place) -> None:
    broker, consumer = await place.serving()
    await consumer.stop()
    await broker.publish(signals(3), SECONDS)
    peer = place.peer("hold", 3)
    assert await peer.line() == "holding"
    (name,) = [status.info.id for status in await broker.sessions(SECONDS) if status.info.pid == peer.pid]
    future = await broker.watch(name, SECONDS)
    peer.kill()
    assert (await _ended(future)).unsettled == 3


@pytest.mark.parametrize("reason", [DownReason.NORMAL, DownReason.KILLED_BY_SUPERVISOR])
async def test_an_orderly_end_is_told_with_its_reason(
    place: Place, monkeypatch: pytest.MonkeyPatch, reason: DownReason
) -> None:
    look_only(monkeypatch)  # so it is by a hint
    broker = await place.open()
    peer, (name,) = await _sitting(place)
    future = await broker.watch(name, SECONDS)
    peer.tell(reason.value)
    assert await peer.line() == "closed"
    assert (await _ended(future)).reason is reason


async def test_a_session_that_is_gone_or_never_was_is_told_at_once(place: Place) -> None:
    broker = await place.open()
    other, info = await place.entered()
    await other.aclose()
    for name in (info.id, "never", "", "x" * 10_000, "'; DROP TABLE sessions"):
        future = await broker.watch(name, SECONDS)
        assert future.done()
        assert (future.result().session, future.result().reason) == (name, DownReason.NOPROC)


async def test_a_process_that_died_unseen_is_told_at_once(place: Place) -> None:
    broker = await place.open()
    peer, (name,) = await _sitting(place)
    peer.kill()
    assert (await broker.watch(name, SECONDS)).result().reason in (DownReason.NOPROC, DownReason.CONNECTION_LOST)


async def test_all_watchers_of_a_session_are_told_wherever_they_are(place: Place) -> None:
    first, second = await place.open(), await place.open()
    peer, (name,) = await _sitting(place)
    outside = place.peer("watch", name)
    assert await outside.line() == "watching"
    futures = [await broker.watch(name, SECONDS) for broker in (first, second, first)]
    peer.kill()
    for future in futures:
        assert (await _ended(future)).reason is DownReason.CONNECTION_LOST
    assert await outside.line() == f"{name} connection_lost"


async def test_two_hundred_sessions_killed_together_are_down_within_two_seconds(place: Place) -> None:
    broker = await place.open()
    crowds = [await _sitting(place, 25) for _ in range(8)]
    names = [name for _, sitting in crowds for name in sitting]
    futures = [await broker.watch(name, SECONDS) for name in names]
    begun = time.monotonic()
    for peer, _ in crowds:
        peer.send(signals_.SIGKILL)
    downs = [await _ended(future) for future in futures]
    assert time.monotonic() - begun < 2.0
    assert [down.session for down in downs] == names
    assert {down.reason for down in downs} == {DownReason.CONNECTION_LOST}


async def test_no_death_is_missed_however_it_falls_between_looking_and_watching(place: Place) -> None:
    """Four processes whose sessions end around the time that they are watched: each is told exactly once."""
    broker = await place.open()
    told: Counter[str] = Counter()
    reasons: Counter[str] = Counter()

    def note(future: asyncio.Future[Down]) -> None:
        told[future.result().session] += 1
        reasons[future.result().reason] += 1

    async def follow(peer: Peer, chance: random.Random) -> None:
        usual = 0.002  # what it takes to watch, on this machine at present
        while name := await peer.line():
            peer.tell(str(chance.uniform(0.0, 2 * usual)))
            begun = time.monotonic()
            future = await broker.watch(name, SECONDS)
            usual = 0.9 * usual + 0.1 * (time.monotonic() - begun)
            future.add_done_callback(note)

    count = 500
    peers = [place.peer("mayflies", count, seed) for seed in range(4)]
    async with asyncio.timeout(100.0):
        await asyncio.gather(*(follow(peer, random.Random(seed)) for seed, peer in enumerate(peers)))
    await eventually(lambda: len(told) == count * 4, message="the end of all mayflies")
    assert set(told.values()) == {1}
    assert set(reasons) == {DownReason.NORMAL, DownReason.NOPROC, DownReason.CONNECTION_LOST}, reasons
    assert reasons[DownReason.NOPROC] > 100, reasons
    assert reasons[DownReason.NORMAL] + reasons[DownReason.CONNECTION_LOST] > 100, reasons


async def test_everybody_who_watches_all_hears_of_each_end_once(place: Place) -> None:
    """Sessions that were there before and that came later; whoever buries them; not of our own."""
    broker, ours = await place.entered()
    other = await place.open()
    early, (first, second) = await _sitting(place, 2)
    heard: list[Down] = []
    heard_elsewhere: list[Down] = []
    await broker.watch_all(heard.append, SECONDS)
    await other.watch_all(heard_elsewhere.append, SECONDS)
    late, (third,) = await _sitting(place)
    early.kill()
    late.tell()
    expected = {first: "connection_lost", second: "connection_lost", third: "normal"}
    await eventually(lambda: len(heard) >= 3 and len(heard_elsewhere) >= 3)
    await broker.aclose()
    await eventually(lambda: len(heard_elsewhere) >= 4)
    assert {down.session: down.reason.value for down in heard} == expected
    assert {down.session: down.reason.value for down in heard_elsewhere} == {**expected, ours.id: "normal"}
    assert (len(heard), len(heard_elsewhere)) == (3, 4)


async def test_a_function_that_comes_later_hears_nothing_of_before(place: Place) -> None:
    broker = await place.open()
    early: list[str] = []
    late: list[str] = []
    await broker.watch_all(lambda down: early.append(down.session), SECONDS)
    peer, (first,) = await _sitting(place)
    peer.kill()
    await eventually(lambda: early == [first])
    await broker.watch_all(lambda down: late.append(down.session), SECONDS)
    peer, (second,) = await _sitting(place)
    peer.kill()
    await eventually(lambda: early == [first, second] and late == [second])


async def test_a_function_that_fails_keeps_nobody_from_hearing(place: Place, caplog: pytest.LogCaptureFixture) -> None:
    broker = await place.open()
    heard: list[Down] = []

    def fail(down: Down) -> None:
        raise RuntimeError(down.session)

    await broker.watch_all(fail, SECONDS)
    await broker.watch_all(heard.append, SECONDS)
    peer, (name,) = await _sitting(place)
    future = await broker.watch(name, SECONDS)
    peer.kill()
    await _ended(future)
    await eventually(lambda: len(heard) == 1)
    assert "failed over" in caplog.text


async def test_a_stopped_session_is_alive(place: Place) -> None:
    """SIGSTOP: its process still holds the lock."""
    broker = await place.open()
    peer, (name,) = await _sitting(place)
    future = await broker.watch(name, SECONDS)
    await peer.stop()
    done, _ = await asyncio.wait({future}, timeout=2.5)  # more than two sweeps
    assert not done
    peer.kill()
    assert (await _ended(future)).reason is DownReason.CONNECTION_LOST


async def test_a_watcher_that_was_stopped_declares_only_the_dead_dead(place: Place) -> None:
    """Row 88."""
    killed, (dead,) = await _sitting(place)
    left, (gone,) = await _sitting(place)
    _, (living,) = await _sitting(place)
    watcher = place.peer("watch", dead, gone, living)
    assert await watcher.line() == "watching"
    await watcher.stop()
    killed.kill()
    left.tell()
    assert await left.line() == "closed"
    broker = await place.open()  # buries the dead one meanwhile
    await asyncio.sleep(2.0)
    watcher.send(signals_.SIGCONT)
    assert {await watcher.line(), await watcher.line()} == {f"{dead} connection_lost", f"{gone} normal"}
    with pytest.raises(TimeoutError):
        await watcher.line(1.5)
    watcher.kill()
    assert living in [status.info.id for status in await broker.sessions(SECONDS)]


async def test_a_departure_that_was_removed_meanwhile_is_told_without_its_reason(place: Place) -> None:
    broker = await place.open()
    everyone: list[Down] = []
    await broker.watch_all(everyone.append, SECONDS)
    other, info = await place.entered()
    future = await broker.watch(info.id, SECONDS)
    assert other._desk is not None
    number = other._desk.session

    def vanish(connection: Connection) -> None:
        connection.execute("DELETE FROM sessions WHERE id = ?", (number,))
        connection.execute("UPDATE meta SET topology = topology + 1")

    await _at_the_database(broker, vanish)
    assert (await _ended(future)).reason is DownReason.NOPROC
    await eventually(lambda: [(down.session, down.reason) for down in everyone] == [(info.id, DownReason.NOPROC)])


async def test_departures_are_kept_within_bounds_whatever_the_clock_says(place: Place) -> None:
    """Row 77: an hour ahead, ten years back."""
    now = [time.time()]
    broker = await place.open(clock=Clock(wall=lambda: now[0]))

    def leave_often(connection: Connection) -> None:
        connection.execute("BEGIN IMMEDIATE")
        for number in range(2_000):
            row = (f"token-{number}", "", "", 0, f"session-{number}", "x", "here", 1, "0", "", 1)
            session = census.insert_session(connection, row)
            census.end_session(connection, session, "normal", now[0], crashed=False)
        connection.execute("COMMIT")

    def count(connection: Connection) -> None:
        counts.append(connection.execute("SELECT count(*) FROM departures").fetchone()[0])

    counts: list[int] = []
    peer, (name,) = await _sitting(place)
    future = await broker.watch(name, SECONDS)
    for jump in (0.0, 4_000.0, -10 * 365 * 86_400.0, 4_000.0):
        now[0] += jump
        await _at_the_database(broker, leave_often)
        await _at_the_database(broker, count)
    assert max(counts) <= 10_000
    assert counts[1] < 2_000 + 64 + 256, "those of an hour ago are gone"
    peer.kill()
    assert (await _ended(future)).reason is DownReason.CONNECTION_LOST


async def test_cancelled_watches_leave_nothing_behind(place: Place) -> None:
    broker = await place.open()
    peer, names = await _sitting(place, 10)
    before = open_descriptors()
    futures = [await broker.watch(name, SECONDS) for name in names for _ in range(2)]
    assert len(open_descriptors() - before) in (0, 10), "one descriptor a process and session"
    for future in futures:
        future.cancel()
    assert broker._watches is not None
    await eventually(lambda: not open_descriptors() - before)
    assert not broker._watches._futures
    desk = broker._desk
    assert desk is not None
    assert not desk.watches
    peer.kill()
    assert all(future.cancelled() for future in futures)


async def test_one_of_two_watches_is_cancelled_and_the_other_is_told(place: Place) -> None:
    broker = await place.open()
    peer, (name,) = await _sitting(place)
    first, second = await broker.watch(name, SECONDS), await broker.watch(name, SECONDS)
    first.cancel()
    await asyncio.sleep(0.1)  # for the writer to look
    peer.kill()
    assert (await _ended(second)).reason is DownReason.CONNECTION_LOST
    third = await broker.watch(name, SECONDS)
    assert third.done()


async def test_closing_cancels_watches(place: Place) -> None:
    broker = await place.open()
    _, (name,) = await _sitting(place)
    future = await broker.watch(name, SECONDS)
    await broker.aclose()
    assert future.cancelled()
    with pytest.raises(BusClosed):
        await broker.watch(name, SECONDS)
    with pytest.raises(BusClosed):
        await broker.watch_all(print, SECONDS)


async def test_a_watch_that_cannot_be_asked_for_in_time_raises_and_leaves_nothing(place: Place) -> None:
    broker = await place.open()
    peer = place.peer("lock")
    assert await peer.line() == "locked"
    with pytest.raises(BrokerUnavailable):
        await broker.watch("somebody", 0.3)
    assert broker._watches is not None
    watches = broker._watches
    await eventually(lambda: "somebody" not in watches)
    peer.tell()
    assert await peer.line() == "released"
    assert (await broker.watch("somebody", SECONDS)).done()


@pytest.mark.parametrize("missing", ["pidfd", "host", "hints"])
async def test_without_the_kernels_word_or_hints_an_end_is_found_all_the_same(
    place: Place, monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    """No pidfd: macOS; another host name: containers; lost hints: anywhere."""
    # Not by the writer's own sweep, which is rarer with many sessions.
    look_only(monkeypatch, *(["_LOOK_SECONDS"] if missing == "hints" else []))
    if missing == "pidfd":
        monkeypatch.delattr(os, "pidfd_open")
    broker = await place.open()
    peer, (killed, *_) = await _sitting(place, 3)
    other = place.peer("sit")
    left = await other.line()
    if missing == "host":
        await _at_the_database(broker, lambda connection: connection.execute("UPDATE sessions SET host = 'there'"))
    if missing == "hints":
        remove_sockets(await settled(broker))
    futures = [await broker.watch(name, SECONDS) for name in (killed, left)]
    peer.kill()
    assert (await _ended(futures[0])).reason is DownReason.CONNECTION_LOST
    other.tell()
    assert (await _ended(futures[1])).reason is DownReason.NORMAL


async def test_more_sessions_than_descriptors_are_watched_all_the_same(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 24: an application needs its files."""
    look_only(monkeypatch)
    monkeypatch.setattr(watcher, "_DESCRIPTORS", 2)
    broker = await place.open()
    peer, names = await _sitting(place, 6)
    before = open_descriptors()
    futures = [await broker.watch(name, SECONDS) for name in names]
    assert len(open_descriptors() - before) <= 2
    peer.kill()
    assert {(await _ended(future)).reason for future in futures} == {DownReason.CONNECTION_LOST}


async def test_a_session_taken_for_dead_is_another_incarnation(place: Place) -> None:
    host = Said()
    broker, info = await place.entered(host=host)
    watcher = await place.open()
    future = await watcher.watch(info.id, SECONDS)
    own: list[Down] = []
    await broker.watch_all(own.append, SECONDS)
    assert broker._desk is not None
    assert broker._desk.lock is not None
    (place.sessions / f"{broker._desk.lock.token}.lock").unlink()
    third = await place.open()  # opening looks after the dead
    assert (await _ended(future)).reason is DownReason.CONNECTION_LOST
    await eventually(lambda: [renewed.incarnation for renewed in host.incarnations] == [2])
    (renewed,) = host.incarnations
    assert renewed == info.next()
    assert renewed.id in [status.info.id for status in await third.sessions(SECONDS)]
    again = await watcher.watch(renewed.id, SECONDS)
    await third.aclose()
    await broker.aclose()
    assert (await _ended(again)).reason is DownReason.NORMAL
    assert info.id not in [down.session for down in own], "our own end is not told to us"


async def test_a_session_whose_lock_outlives_its_process_ends_with_its_lock(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody shares the lock's file, as a child does between fork and exec: the kernel's word comes too early."""
    look_only(monkeypatch)
    broker = await place.open()
    peer, (name,) = await _sitting(place)
    (token,) = [row[1] for row in await _rows(broker) if row[2] == name]
    future = await broker.watch(name, SECONDS)
    shared = _share(peer.pid, f"{token}.lock")
    try:
        peer.kill()
        done, _ = await asyncio.wait({future}, timeout=0.5)
        assert not done
    finally:
        os.close(shared)
    assert (await _ended(future)).reason is DownReason.CONNECTION_LOST


async def _rows(broker: SqliteBroker) -> Sequence[census.RollRow]:
    errands = broker._opened()
    return await errands.ask(Look(errands.future(), time.monotonic() + SECONDS, census.roll))


def _share(pid: int, name: str) -> int:
    """Share another process' open file, as pidfd_getfd(2) does."""
    if not hasattr(os, "pidfd_open"):
        pytest.skip("needs Linux")
    (number,) = [link.name for link in Path(f"/proc/{pid}/fd").iterdir() if str(link.readlink()).endswith(name)]
    process = os.pidfd_open(pid)
    shared = int(ctypes.CDLL(None, use_errno=True).syscall(_PIDFD_GETFD, process, int(number), 0))
    os.close(process)
    if shared < 0:
        pytest.skip(f"cannot share files: {os.strerror(ctypes.get_errno())}")
    return shared


async def test_watching_costs_next_to_nothing_while_nothing_happens(place: Place) -> None:
    broker = await place.open()
    _, names = await _sitting(place, 5)
    for name in names:
        await broker.watch(name, SECONDS)
    await broker.watch_all(lambda _: None, SECONDS)
    assert await idle_share() < 0.02


async def test_watching_and_consuming_go_on_side_by_side(place: Place) -> None:
    broker, consumer = await place.serving(prefetch=1_000)
    peer, (name,) = await _sitting(place)
    future = await broker.watch(name, SECONDS)
    publishing = asyncio.create_task(broker.publish(signals(1_000), SECONDS))
    peer.kill()
    assert (await _ended(future)).reason is DownReason.CONNECTION_LOST
    await publishing
    assert len(await receive(consumer, 1_000)) == 1_000

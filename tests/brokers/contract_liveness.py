"""What every broker must do for sessions, monitors and the list of subscribers. Part of the contract suite."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from contextlib import AsyncExitStack
from datetime import timedelta
from unittest import mock

import pytest

from signalbus import (
    Bus,
    BusClosed,
    Delivery,
    Down,
    DownReason,
    Escalated,
    Monitor,
    MonitorCancelled,
    SessionInfo,
    SubscriptionState,
    SubscriptionStatus,
    Unroutable,
)
from tests.brokers.contract import contract
from tests.brokers.world import DEADLINE, Inbox, World, wait_until
from tests.support import eventually

NOBODY = "01890000-0000-7000-8000-000000000000"


async def down_of(monitor: Monitor, timeout: float = DEADLINE) -> Down:
    """Wait for the end of a monitored session."""
    return await asyncio.wait_for(monitor.down, timeout)


async def lives(bus: Bus, session: SessionInfo) -> bool:
    """Whether a session is listed."""
    return session.id in {info.id for info in await bus.sessions()}


# Sessions


@contract
async def every_open_bus_has_a_session_that_others_see(world: World) -> None:
    async with world.bus(name="one") as one, world.bus(name="two") as two:
        assert one.session.id != two.session.id
        for bus in (one, two):
            infos = {info.id: info for info in await bus.sessions()}
            assert set(infos) == {one.session.id, two.session.id}
            assert infos[one.session.id] == one.session
            assert infos[two.session.id] == two.session
        info = two.session
        assert (info.name, info.pid, info.host, info.incarnation) == ("two", os.getpid(), socket.gethostname(), 1)
        assert info.version
    async with world.bus() as third:
        assert [info.id for info in await third.sessions()] == [third.session.id]


# Monitors


@contract
async def a_killed_session_gives_one_down(world: World) -> None:
    async with world.bus() as bus:
        worker = await world.worker(behaviour="hold", name="held", prefetch=1)
        await bus.publish("work.item", 1)
        await world.wait_steps("start", 1)
        monitor = await bus.monitor(worker.session)
        assert bus.monitors() == [monitor]
        assert monitor.age >= timedelta(0)
        await worker.kill()
        down = await down_of(monitor)
        assert (down.session, down.reason, down.name) == (worker.session, DownReason.CONNECTION_LOST, "worker")
        assert down.unsettled in (None, 0, 1)
        assert bus.monitors() == []
        assert await down_of(monitor) is down  # the same one, however often it is asked for
        assert worker.session not in {info.id for info in await bus.sessions()}


@contract
async def an_orderly_end_is_a_normal_down(world: World) -> None:
    async with world.bus() as bus:
        leaving = world.bus(name="leaving")
        async with leaving:
            monitor = await bus.monitor(leaving.session)
        down = await down_of(monitor)
        assert (down.session, down.reason, down.name) == (leaving.session.id, DownReason.NORMAL, "leaving")
        assert down.unsettled in (None, 0)


@contract
async def a_session_that_was_given_up_says_so(world: World) -> None:
    async with world.bus() as bus:
        failing = world.bus(name="failing")
        monitors: list[Monitor] = []

        async def fail() -> None:
            async with failing:
                monitors.append(await bus.monitor(failing.session))
                failing._escalate(RuntimeError("a part of it failed too often"))
                await asyncio.Event().wait()

        with pytest.raises(Escalated):
            await fail()
        assert (await down_of(monitors[0])).reason is DownReason.KILLED_BY_SUPERVISOR


@contract
async def a_session_that_is_gone_gives_noproc_at_once(world: World) -> None:
    async with world.bus() as bus:
        async with world.bus() as gone:
            pass
        killed = await world.worker()
        watched = await bus.monitor(killed.session)
        await killed.kill()
        await down_of(watched)
        for session in (gone.session.id, killed.session, NOBODY, "no such thing"):
            monitor = await bus.monitor(session)
            down = await down_of(monitor, 1.0)
            assert (down.session, down.reason) == (session, DownReason.NOPROC)
        assert bus.monitors() == []


@contract
async def several_monitors_on_one_session_fire_once_each(world: World) -> None:
    worker = await world.worker()
    async with world.bus() as one, world.bus() as two:
        monitors = [await bus.monitor(worker.session) for bus in (one, one, two, one, two)]
        assert len(one.monitors()) == 3
        await worker.kill()
        downs = [await down_of(monitor) for monitor in monitors]
        assert {down.session for down in downs} == {worker.session}
        assert {down.reason for down in downs} == {DownReason.CONNECTION_LOST}
        assert not one.monitors() + two.monitors()


@contract
async def a_monitor_can_watch_its_own_session(world: World) -> None:
    async with world.bus() as bus:
        monitor = await bus.monitor(bus.session)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(monitor.down, 0.05)
        assert await bus.leaked_monitors() == []


@contract
async def a_cancelled_monitor_yields_nothing(world: World) -> None:
    worker, control = await world.worker(), None
    async with world.bus() as bus:
        cancelled, control = await bus.monitor(worker.session), await bus.monitor(worker.session)
        fired = await bus.monitor(NOBODY)
        cancelled.cancel()
        assert bus.monitors() == [control]
        await worker.kill()
        await down_of(control)
        with pytest.raises(MonitorCancelled):
            await cancelled.down
        await down_of(fired)
        fired.cancel()  # flushes
        with pytest.raises(MonitorCancelled):
            await fired.down
        cancelled.cancel()


@contract
async def waiting_for_a_down_with_a_timeout_does_not_end_the_watch(world: World) -> None:
    worker = await world.worker()
    async with world.bus() as bus:
        monitor = await bus.monitor(worker.session)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(monitor.down, 0.05)
        await worker.kill()
        assert (await down_of(monitor)).reason is DownReason.CONNECTION_LOST


@contract
async def monitors_end_with_their_bus(world: World) -> None:
    async with world.bus() as living:
        async with world.bus() as watcher:
            monitor = await watcher.monitor(living.session)
        with pytest.raises(MonitorCancelled):
            await asyncio.wait_for(monitor.down, 1)
        assert watcher.monitors() == []
        with pytest.raises(BusClosed):
            await watcher.monitor(living.session)


@contract
async def sessions_of_a_name_are_reported_once_each(world: World) -> None:
    downs: list[Down] = []
    late: list[Down] = []
    bus = world.bus(name="watcher")

    @bus.on_down("worker")
    async def note(down: Down) -> None:
        downs.append(down)

    @bus.on_down("worker")
    def broken(down: Down) -> None:
        raise ValueError("foreign code")

    @bus.on_down("other")
    def never(down: Down) -> None:
        raise AssertionError("nobody of that name has ended")

    before = await world.worker()
    async with bus:
        after = [await world.worker(name=f"work-{number}") for number in range(2)]
        bus.on_down("worker")(late.append)
        async with world.bus(name="quiet"):
            pass
        await before.kill()
        await after[0].aclose()
        await eventually(lambda: len(downs) == 2)
        await after[1].kill()
        await eventually(lambda: len(downs) == 3 and len(late) == 3)
        assert {down.session for down in downs} == {before.session, *(worker.session for worker in after)}
        reasons = {down.session: down.reason for down in downs}
        assert reasons[before.session] is reasons[after[1].session] is DownReason.CONNECTION_LOST
        assert reasons[after[0].session] is DownReason.NORMAL
        # The other end that there was is not of this name; and each came once.
        assert len(downs) == 3


@contract
async def no_down_is_missed_between_looking_and_watching(world: World) -> None:
    """Sessions end while somebody begins to watch them: each watch yields one Down, whichever comes first."""
    rounds = 40
    async with world.bus() as watcher:

        async def race() -> Down:
            mortal = world.bus(name="mortal")
            async with mortal:
                session = mortal.session.id
                watching = asyncio.create_task(watcher.monitor(session))
            return await down_of(await watching)

        for _ in range(rounds // 4):
            downs = await asyncio.gather(*(race() for _ in range(4)))
            assert {down.reason for down in downs} <= {DownReason.NORMAL, DownReason.NOPROC}
        assert watcher.monitors() == []


@contract
async def sessions_killed_together_all_give_a_down(world: World) -> None:
    count = 8
    workers = await asyncio.gather(*(world.worker(durable=False, name=f"work-{n}") for n in range(count)))
    async with world.bus() as bus:
        monitors = [await bus.monitor(worker.session) for worker in workers]
        for worker in workers:
            worker.signal(signal.SIGKILL)
        downs = await asyncio.gather(*(down_of(monitor) for monitor in monitors))
        assert sorted(down.session for down in downs) == sorted(worker.session for worker in workers)
        assert bus.monitors() == await bus.leaked_monitors() == []

        async def nothing_left() -> bool:
            return not await bus.broker.queues(5.0) and len(await bus.sessions()) == 1

        await wait_until(nothing_left, message="the queues and sessions of the dead to be gone")


@contract
async def a_watcher_that_was_suspended_declares_nobody_dead(world: World) -> None:
    target, bystander = await world.worker(name="target"), await world.worker(name="bystander")
    watcher = await world.worker(role="watch", target=target.session)
    await world.suspend(watcher)
    async with world.bus() as bus:
        on_bystander = await bus.monitor(bystander.session)
        await bystander.kill()
        await down_of(on_bystander)  # time passes, and things happen meanwhile
        watcher.signal(signal.SIGCONT)
        on_target = await bus.monitor(target.session)
        with pytest.raises(TimeoutError):
            await down_of(on_target, 0.5)
        assert world.steps("down") == []
        await target.kill()
        await down_of(on_target)
    (down,) = await world.wait_steps("down", 1)
    assert (down["session"], down["reason"]) == (target.session, "connection_lost")


@contract
async def wall_clock_jumps_declare_nobody_dead(world: World) -> None:
    real = time.time

    async with world.bus() as bus, world.bus() as other:
        monitor = await bus.monitor(other.session)
        bus.respond("clock", _echo)
        for hours in (1, -1):
            with mock.patch("time.time", lambda shift=hours * 3600: real() + shift):
                assert await bus.request("clock", hours, timeout=5) == hours
                assert await lives(bus, other.session)
        with pytest.raises(TimeoutError):
            await down_of(monitor, 0.1)


async def _echo(data: int) -> int:
    return data


# Cleanup


@contract
async def what_a_dead_session_left_is_gone_and_durable_subscriptions_stay(world: World) -> None:
    worker = await world.worker(durable=False, name="temporary", patterns=["temporary.#"])
    kept = await world.worker(name="kept", patterns=["kept.#"])
    async with world.bus() as bus:
        await bus.publish("temporary.a", 1)
        await world.wait_steps("effect", 1)
        monitor = await bus.monitor(worker.session)
        await worker.kill()
        await down_of(monitor)

        async def unroutable() -> bool:
            try:
                await bus.publish("temporary.a", 2)
            except Unroutable:
                return True
            return False

        await wait_until(unroutable, message="the temporary subscription to be gone")
        assert [queue.name for queue in await bus.broker.queues(5.0)] == ["kept"]
        assert (await bus.publish("kept.a", 3)).routed
        await world.wait_steps("effect", 2)
        await kept.aclose()
        assert [queue.name for queue in await bus.broker.queues(5.0)] == ["kept"]


@contract
async def opening_and_closing_again_and_again_leaves_nothing_behind(world: World) -> None:
    async with world.bus() as bus:
        for number in range(20):
            other = world.bus()
            other.subscribe("a.#", handler=Inbox(), name=f"temporary-{number}", durable=False)
            other.respond("ask", _echo)
            async with other:
                await other.request("ask", 1)
        assert await bus.broker.queues(5.0) == []
        assert [info.id for info in await bus.sessions()] == [bus.session.id]
        assert bus.monitors() == await bus.leaked_monitors() == []


# The list of subscribers


async def _status(bus: Bus, name: str = "work") -> SubscriptionStatus:
    (found,) = [status for status in await bus.subscribers() if status.name == name]
    return found


async def _answered(bus: Bus, name: str = "work") -> SubscriptionStatus:
    """Return the status in which all its sessions answered: each has a moment to do so, and a machine may be busy."""
    found: list[SubscriptionStatus] = []

    async def complete() -> bool:
        found[:] = [await _status(bus, name)]
        return all(session.answering for session in found[0].sessions)

    await wait_until(complete, message=f"an answer of everybody who serves {name}")
    return found[0]


@contract
async def the_state_of_a_subscription_is_told(world: World) -> None:
    release = asyncio.Event()

    async def wait(data: object, delivery: Delivery) -> None:
        await release.wait()

    inbox = Inbox(wait)
    async with world.bus() as bus:
        async with world.serving("a", handler=inbox, concurrency=2, prefetch=2) as serving:
            status = await _answered(bus)
            assert (status.state, status.waiting, status.in_flight) == (SubscriptionState.UP, 0, 0)
            assert status.oldest_waiting is None
            (session,) = status.sessions
            assert (session.session, session.answering) == (serving.session, True)
            await bus.publish_many([("a", number) for number in range(5)])
            await inbox.wait(2)

            async def busy() -> bool:
                status = await _status(bus)
                return (status.state, status.in_flight, status.waiting) == (SubscriptionState.BUSY, 2, 3)

            await wait_until(busy)
            if not world.is_rabbitmq:
                oldest = (await _status(bus)).oldest_waiting
                assert oldest is not None
                assert timedelta(0) <= oldest < timedelta(seconds=30)
            release.set()
            await inbox.wait(5)

        status = await _status(bus)
        assert (status.state, status.sessions) == (SubscriptionState.GONE, ())
        await bus.publish("a", 6)
        status = await _status(bus)
        assert (status.state, status.waiting) == (SubscriptionState.GONE, 1)


@contract
async def handlers_that_settle_nothing_are_a_stall(world: World) -> None:
    async def hang(data: object, delivery: Delivery) -> None:
        await asyncio.Event().wait()

    inbox = Inbox(hang)
    async with world.serving("a", handler=inbox, prefetch=1) as bus:
        with mock.patch("signalbus.liveness.STALL_SECONDS", 0.2):
            await bus.publish_many([("a", 1), ("a", 2)])
            await inbox.wait(1)

            async def stalled() -> bool:
                return (await _status(bus)).state is SubscriptionState.STALLED

            await wait_until(stalled)
        assert (await _answered(bus)).state is SubscriptionState.BUSY  # by the usual measure it is not


@contract
async def a_blocked_event_loop_is_told_apart_from_a_dead_process(world: World) -> None:
    worker = await world.worker(name="work", behaviour="block", seconds=3.0, prefetch=1)
    async with world.bus() as bus:
        monitor = await bus.monitor(worker.session)
        await bus.publish_many([("a", 1), ("a", 2)])
        await world.wait_steps("start", 1)
        status = await _status(bus)
        assert status.state is SubscriptionState.STALLED
        (session,) = status.sessions
        assert (session.session.id, session.session.pid, session.answering) == (worker.session, worker.pid, False)
        assert session.in_flight is None
        await world.wait_steps("effect", 1)
        await worker.kill()
        await down_of(monitor)

        async def gone() -> bool:
            status = await _status(bus)
            return (status.state, status.sessions) == (SubscriptionState.GONE, ())

        await wait_until(gone)


@contract
async def subscribers_in_several_sessions_are_listed_together(world: World) -> None:
    async with AsyncExitStack() as stack:
        buses = [await stack.enter_async_context(world.serving("a", handler=Inbox())) for _ in range(3)]
        buses[0].subscribe("b", handler=Inbox(), name="other")
        await next(each for each in buses[0].subscriptions() if each.name == "other")
        status = await _answered(buses[1])
        assert {session.session.id for session in status.sessions} == {bus.session.id for bus in buses}
        other = await _answered(buses[2], "other")
        assert [session.session.id for session in other.sessions] == [buses[0].session.id]

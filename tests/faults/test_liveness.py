"""Fault rows about the living and the dead: 16, 45, 80-89. The figures of the long ones are printed."""

from __future__ import annotations

import asyncio
import random
import re
import signal
import statistics
import time
from urllib.parse import unquote, urlsplit

import pytest

from signalbus import (
    BrokerError,
    Down,
    DownReason,
    Monitor,
    NoResponder,
    ReplyLost,
    RequestError,
    RequestTimeout,
    ResponderDown,
    SessionInfo,
)
from tests.brokers.world import World, wait_until
from tests.faults.conftest import BROKERS
from tests.support import eventually

RABBITMQ = ["rabbitmq-quorum"]  # the type of durable queues plays no part here
BOTH = pytest.mark.parametrize("broker", ["sqlite", "rabbitmq-quorum"])
HEARTBEAT = 2  # as in the world's URL


async def down_of(monitor: Monitor, timeout: float = 30.0) -> Down:
    return await asyncio.wait_for(monitor.down, timeout)


async def names_at_the_broker(world: World) -> list[str]:
    """The queues of the world's virtual host that belong to sessions, not to subscriptions."""
    assert world.node is not None
    vhost = unquote(urlsplit(world.url).path[1:])
    listed = await world.node.ctl("list_queues", "-q", "-p", vhost, "name", "--no-table-headers")
    return [name for name in listed.split() if re.match(r"signalbus\.(lease|s|r|t)\.", name)]


# Many at a time


@pytest.mark.slow
@pytest.mark.timeout(300)
@BOTH
async def test_two_hundred_sessions_killed_together_leave_nothing_behind(broker: str, world: World) -> None:
    # So many connections on a busy machine miss a short heartbeat now and then, and begin anew.
    url = world.url.replace(f"heartbeat={HEARTBEAT}", "heartbeat=30")
    crowds = [await world.worker(role="crowd", name="crowd", count=50, ready=False, url=url) for _ in range(4)]
    await asyncio.gather(*(crowd.wait_ready(120) for crowd in crowds))
    async with world.bus(url) as bus:
        sessions: list[SessionInfo] = []

        async def all_there() -> bool:
            sessions[:] = [info for info in await bus.sessions() if info.id != bus.session.id]
            return len(sessions) == 200

        await wait_until(all_there, message="two hundred sessions")
        monitors = [await bus.monitor(session) for session in sessions]
        started = time.monotonic()
        for crowd in crowds:
            crowd.signal(signal.SIGKILL)
        downs = await asyncio.gather(*(down_of(monitor) for monitor in monitors))
        seconds = time.monotonic() - started
        print(f"{broker}: 200 Downs within {seconds:.3f} s")
        assert seconds < 2.0
        assert {down.session for down in downs} == {session.id for session in sessions}
        assert {down.reason for down in downs} == {DownReason.CONNECTION_LOST}
        assert bus.monitors() == await bus.leaked_monitors() == []
        assert [info.id for info in await bus.sessions()] == [bus.session.id]
        assert await bus.broker.queues(5.0) == []
        with pytest.raises(NoResponder):
            await bus.request("crowd", 1)
        if world.is_rabbitmq:

            async def only_ours() -> bool:
                names = await names_at_the_broker(world)
                return {name.split(".", 2)[2] for name in names} == {bus.session.id}

            await wait_until(only_ours, 30, message="leases and queues of the dead to be gone from the broker")
        else:
            sessions_directory = world.directory / "bus.db-sessions"
            left = {path.stem for path in sessions_directory.iterdir()}
            assert len(left) == 1, left


@pytest.mark.slow
@pytest.mark.timeout(300)
@BOTH
async def test_thousands_of_races_between_an_end_and_a_watch_miss_none(broker: str, world: World) -> None:
    """Sessions end at a random moment round the one in which somebody begins to watch them."""
    rounds = 2_000 if broker == "sqlite" else 600
    counts = dict.fromkeys(DownReason, 0)
    async with world.bus() as watcher:

        async def race() -> None:
            mortal = world.bus(name="mortal")
            async with mortal:
                session = mortal.session.id
                watching = asyncio.create_task(watcher.monitor(session))
                await asyncio.sleep(random.choice((0, 0, 0.0005, 0.002)))
            counts[(await down_of(await watching)).reason] += 1

        async def several(count: int) -> None:
            for _ in range(count):
                await race()

        await asyncio.gather(*(several(rounds // 8) for _ in range(8)))
        assert watcher.monitors() == []
    print(f"{broker}: {rounds} races, { ({reason.value: count for reason, count in counts.items() if count}) }")
    assert sum(counts.values()) == rounds
    assert {reason for reason, count in counts.items() if count} <= {DownReason.NORMAL, DownReason.NOPROC}


@pytest.mark.slow
@pytest.mark.timeout(300)
@BOTH
async def test_a_kill_is_noticed_within_milliseconds(broker: str, world: World) -> None:
    delays: list[float] = []
    async with world.bus() as bus:
        for number in range(12):
            worker = await world.worker(name=f"work-{number}", durable=False)
            monitor = await bus.monitor(worker.session)
            started = time.monotonic()
            worker.signal(signal.SIGKILL)
            assert (await down_of(monitor)).reason is DownReason.CONNECTION_LOST
            delays.append(1000 * (time.monotonic() - started))
    print(f"{broker}: Down after median {statistics.median(delays):.1f} ms, worst {max(delays):.1f} ms")
    assert statistics.median(delays) < (250 if broker == "sqlite" else 50)


# Row 87: gone by other ways


@pytest.mark.parametrize("broker", RABBITMQ)
async def test_row_87_a_stopped_session_is_down_within_three_heartbeats(broker: str, world: World) -> None:
    worker = await world.worker()
    async with world.bus() as bus:
        monitor = await bus.monitor(worker.session)
        started = time.monotonic()
        worker.signal(signal.SIGSTOP)
        down = await down_of(monitor)
        seconds = time.monotonic() - started
        print(f"stopped: Down after {seconds:.1f} s at heartbeat {HEARTBEAT}")
        assert HEARTBEAT < seconds < 3 * HEARTBEAT + 1.0
        assert down.reason is DownReason.CONNECTION_LOST
        worker.signal(signal.SIGCONT)

        async def back() -> bool:
            return any(info.pid == worker.pid and info.incarnation == 2 for info in await bus.sessions())

        # It comes back as another incarnation, which a monitor of the first cannot be mistaken about.
        await wait_until(back, 30, message="the second incarnation")
        assert (await down_of(await bus.monitor(worker.session), 2.0)).reason is DownReason.NOPROC


@pytest.mark.parametrize("broker", RABBITMQ)
async def test_a_monitored_session_that_reconnects_is_down_once_and_another_incarnation(
    broker: str, world: World
) -> None:
    assert world.node is not None
    downs: list[Down] = []
    async with world.bus(name="watcher") as watcher, world.bus(name="mortal") as mortal:
        watcher.on_down("mortal")(downs.append)
        first = mortal.session
        monitor = await watcher.monitor(first)
        # Only the mortal's own connections: their names say whose they are.
        await world.node.eval(
            '[rabbit_networking:close_connection(proplists:get_value(pid, C), <<"test">>) || '
            "C <- rabbit_networking:connection_info_all([pid, client_properties]), "
            f'string:find(io_lib:format("~p", [C]), "{first.id}") =/= nomatch]'
        )
        down = await down_of(monitor)
        assert (down.session, down.reason) == (first.id, DownReason.CONNECTION_LOST)
        await eventually(lambda: mortal.session.incarnation == 2, 30)
        assert mortal.session.id != first.id
        again = await watcher.monitor(mortal.session)
        with pytest.raises(TimeoutError):
            await down_of(again, 0.3)
        await mortal.aclose()
        assert (await down_of(again)).reason is DownReason.NORMAL
        await eventually(lambda: len(downs) == 2)
        assert [each.reason for each in downs] == [DownReason.CONNECTION_LOST, DownReason.NORMAL]


# Rows 16 and 88: the observer was the one


@pytest.mark.parametrize("broker", RABBITMQ)
async def test_row_88_an_observer_that_missed_its_heartbeats_declares_nobody_dead(broker: str, world: World) -> None:
    target = await world.worker(name="target", options={"name": "target"})
    watcher = await world.worker(role="watch", target=target.session)
    async with world.bus() as bus:
        monitor = await bus.monitor(watcher.session)
        watcher.signal(signal.SIGSTOP)
        await down_of(monitor)  # it was cut off
        watcher.signal(signal.SIGCONT)

        async def back() -> bool:
            return any(info.pid == watcher.pid and info.incarnation > 1 for info in await bus.sessions())

        await wait_until(back, 30, message="the watcher to come back")
        on_target = await bus.monitor(target.session)
        with pytest.raises(TimeoutError):
            await down_of(on_target, 1.0)
        assert world.steps("down") == []
        await target.kill()
        await down_of(on_target)
        (step,) = await world.wait_steps("down", 1)
        assert (step["session"], step["reason"]) == (target.session, "connection_lost")


@pytest.mark.parametrize("broker", RABBITMQ)
async def test_who_ended_while_the_observer_was_cut_off_is_found_afterwards(broker: str, world: World) -> None:
    target = await world.worker(name="target")
    watcher = await world.worker(role="watch", target=target.session)
    async with world.bus() as bus:
        monitor = await bus.monitor(watcher.session)
        watcher.signal(signal.SIGSTOP)
        await down_of(monitor)
        await target.kill()
        watcher.signal(signal.SIGCONT)
        (step,) = await world.wait_steps("down", 1, 30)
        assert step["session"] == target.session


# Row 84: the broker goes away


@pytest.mark.parametrize("broker", RABBITMQ)
async def test_row_84_a_restart_of_the_broker_ends_every_open_request(broker: str, world: World) -> None:
    assert world.node is not None
    holding = asyncio.Event()
    responding = world.bus()

    @responding.respond("ask")
    async def ask(data: int) -> int:
        if data >= 0:
            await holding.wait()
        return data

    async with responding, world.bus() as bus:
        requests = [asyncio.create_task(bus.request("ask", number, timeout=60)) for number in range(100)]
        await eventually(lambda: responding.stats().responders["ask"].in_flight == 100)
        started = time.monotonic()
        await world.node.restart(kill=True)
        outcomes = await asyncio.gather(*requests, return_exceptions=True)
        assert time.monotonic() - started < 60
        assert {type(outcome) for outcome in outcomes} <= {ReplyLost, ResponderDown, int}
        holding.set()

        async def answered() -> bool:
            try:
                return await bus.request("ask", -1, timeout=5) == -1
            except (RequestError, BrokerError):
                return False

        await wait_until(answered, 60, message="the next call to work")
        assert bus.stats().requests.open == 0


# Rows 82, 85: answers that nobody waits for, and questions that nobody answers


@pytest.mark.slow
@pytest.mark.timeout(300)
@BOTH
async def test_row_85_ten_thousand_calls_of_which_some_get_no_answer_leave_nothing(broker: str, world: World) -> None:
    async def ask(data: int) -> int:
        if data % 100 == 0:
            await asyncio.Event().wait()
        return data

    responding = world.bus()
    responding.respond("ask", ask)
    async with responding, world.bus() as bus:

        async def call(number: int) -> bool:
            try:
                return await bus.request("ask", number, timeout=1.0 if number % 100 == 0 else 60.0) == number
            except RequestTimeout:
                return False

        tickets = iter(range(10_000))

        async def caller() -> int:
            return sum([not await call(number) for number in tickets])

        assert sum(await asyncio.gather(*(caller() for _ in range(50)))) == 100
        stats = responding.stats().responders["ask"]
        await eventually(lambda: (stats.in_flight, stats.expired) == (0, 100))
        assert (bus.stats().requests.open, bus.stats().requests.failed) == (0, 100)


@BOTH
async def test_many_responders_killed_one_after_the_other_leave_no_caller_hanging(broker: str, world: World) -> None:
    """Callers go on while responders come and go: each call ends, with a reply or with the true reason."""
    outcomes: list[str] = []
    async with world.bus() as bus:
        done = asyncio.Event()

        async def caller() -> None:
            while not done.is_set():
                try:
                    await bus.request("ask", 1, timeout=10)
                    outcomes.append("reply")
                except (NoResponder, ResponderDown) as error:
                    outcomes.append(type(error).__name__)
                    await asyncio.sleep(0.01)

        callers = [asyncio.create_task(caller()) for _ in range(10)]
        for _ in range(3):
            worker = await world.worker(role="respond", name="ask", concurrency=100)
            seen = outcomes.count("reply")
            await eventually(lambda seen=seen: outcomes.count("reply") > seen + 50, 30)  # type: ignore[misc]
            await worker.kill()
        done.set()
        await asyncio.wait_for(asyncio.gather(*callers), 30)
        assert set(outcomes) <= {"reply", "NoResponder", "ResponderDown"}
        assert bus.stats().requests.open == 0


# Row 89: a subscriber that comes and goes


@pytest.mark.parametrize("broker", BROKERS)
async def test_row_89_a_session_that_comes_and_goes_leaves_one_down_each_time(broker: str, world: World) -> None:
    downs: list[Down] = []
    async with world.bus(name="watcher") as watcher:
        watcher.on_down("flapping")(downs.append)
        ids: list[str] = []
        for _ in range(10):
            bus = world.bus(name="flapping")
            bus.subscribe("a", handler=_ignore, name="work", durable=False)
            async with bus:
                ids.append(bus.session.id)
        await eventually(lambda: len(downs) == 10)
        assert [down.session for down in downs] == ids
        assert {down.reason for down in downs} == {DownReason.NORMAL}
        assert await watcher.broker.queues(5.0) == []


async def _ignore(data: object) -> None: ...

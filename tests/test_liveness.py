"""Monitors, reports and the state of subscriptions, without a broker."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta

import pytest

from signalbus import Down, DownReason, MonitorCancelled, SessionInfo, SubscriptionState
from signalbus.brokers.base import QueueInfo, SessionStatus
from signalbus.liveness import Watchers, subscription_statuses
from signalbus.sessions import ServiceReport, SessionReport, decode_report, encode_report
from tests.support import eventually

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def info(name: str = "a") -> SessionInfo:
    return SessionInfo(id=f"id-{name}", name=name, host="h", pid=1, version="0", started=NOW)


def down(name: str = "a") -> Down:
    return Down(session=f"id-{name}", reason=DownReason.CONNECTION_LOST, at=NOW, name=name)


def watching() -> tuple[Watchers, asyncio.Future[Down]]:
    return Watchers(), asyncio.get_running_loop().create_future()


# Sessions


def test_the_next_incarnation_has_another_id_and_the_rest_in_common() -> None:
    second = info().next()
    third = second.next()
    assert (second.id, second.incarnation) == ("id-a:2", 2)
    assert (third.id, third.incarnation) == ("id-a:3", 3)
    assert (third.name, third.pid, third.started) == ("a", 1, NOW)


# Monitors


async def test_a_monitor_waits_until_its_session_ends_and_is_forgotten() -> None:
    watchers, future = watching()
    monitor = watchers.add("id-a", future)
    assert watchers.monitors() == [monitor]
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(monitor.down, 0.01)
    assert "watching" in repr(monitor)
    future.set_result(down())
    assert await monitor.down == down()
    assert watchers.monitors() == []
    assert "down" in repr(monitor)


async def test_cancelling_a_monitor_cancels_the_watch() -> None:
    watchers, future = watching()
    monitor = watchers.add("id-a", future)
    waiting = asyncio.ensure_future(monitor.down)
    await asyncio.sleep(0)
    monitor.cancel()
    assert future.cancelled()
    assert watchers.monitors() == []
    with pytest.raises(MonitorCancelled):
        await waiting
    assert "cancelled" in repr(monitor)


async def test_cancelling_takes_back_a_down_that_nobody_has_seen() -> None:
    watchers, future = watching()
    monitor = watchers.add("id-a", future)
    future.set_result(down())
    monitor.cancel()
    with pytest.raises(MonitorCancelled):
        await monitor.down


async def test_cancelling_who_waits_leaves_the_monitor_alone() -> None:
    watchers, future = watching()
    monitor = watchers.add("id-a", future)
    waiting = asyncio.ensure_future(monitor.down)
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    assert not future.cancelled()
    future.set_result(down())
    assert await monitor.down == down()


async def test_a_monitor_of_the_dead_that_does_not_fire_is_a_leak(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signalbus.liveness.LEAK_SECONDS", 0.05)
    watchers = Watchers()
    loop = asyncio.get_running_loop()
    futures = [loop.create_future() for _ in range(3)]
    alive, leaked, late = (watchers.add(name, future) for name, future in zip("abc", futures, strict=True))
    loop.call_soon(futures[2].set_result, down("c"))  # just on its way
    assert await watchers.leaked(["a"]) == [leaked]
    assert watchers.monitors() == [alive, leaked]
    assert (await late.down).session == "id-c"


async def test_functions_are_called_for_the_sessions_of_their_name() -> None:
    watchers = Watchers()
    got: list[tuple[str, str]] = []

    async def asynchronous(end: Down) -> None:
        await asyncio.sleep(0)
        got.append(("async", end.session))

    def broken(end: Down) -> None:
        raise ValueError("foreign code")

    watchers.call("a", broken)
    watchers.call("a", asynchronous)
    watchers.call("b", lambda end: got.append(("sync", end.session)))
    watchers.ended(down("a"))
    watchers.ended(down("c"))
    await eventually(lambda: got == [("async", "id-a")], 5)
    watchers.ended(down("b"))
    await watchers.aclose(1)
    assert got == [("async", "id-a"), ("sync", "id-b")]


async def test_closing_does_not_wait_for_ever_for_a_function() -> None:
    watchers = Watchers()
    cancelled = asyncio.Event()

    async def hang(end: Down) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    watchers.call("a", hang)
    watchers.ended(down("a"))
    await asyncio.sleep(0)
    await watchers.aclose(0.05)
    assert cancelled.is_set()


# Reports


def test_a_report_comes_back_as_it_was() -> None:
    service = ServiceReport(
        name="work", concurrency=2, in_flight=1, waiting=3, stuck_seconds=0.5, usual_seconds=0.1, last_error="x"
    )
    report = SessionReport(subscriptions=(service,), responders=(ServiceReport(name="r", concurrency=1, in_flight=1),))
    assert decode_report(encode_report(report)) == report
    assert (report.in_flight, report.last_error) == (2, "x")


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b"{}", b'{"subscriptions": 1, "responders": []}', b"\xff"])
def test_a_report_that_cannot_be_read_is_empty(body: bytes) -> None:
    assert decode_report(body) == SessionReport()


def test_fields_of_a_newer_version_are_ignored() -> None:
    body = b'{"subscriptions":[{"name":"w","concurrency":1,"in_flight":0,"new":1}],"responders":[],"more":2}'
    assert decode_report(body).subscriptions[0].name == "w"


# States


def queue(**fields: object) -> QueueInfo:
    values = {"ready": 0, "unsettled": 0, "delayed": 0, "consumers": 1, **fields}
    return QueueInfo(name="work", patterns=("#",), durable=True, **values)  # type: ignore[arg-type]


def says(name: str = "a", **fields: object) -> SessionStatus:
    values = {"name": "work", "concurrency": 1, "in_flight": 0, **fields}
    service = ServiceReport(**values)  # type: ignore[arg-type]
    return SessionStatus(info=info(name), report=encode_report(SessionReport(subscriptions=(service,))))


SILENT = SessionStatus(info=info("silent"), report=None)
UP, BUSY, STALLED, GONE = SubscriptionState


@pytest.mark.parametrize(
    ("state", "queue_", "sessions"),
    [
        (GONE, queue(consumers=0), []),
        (GONE, queue(consumers=0, ready=3), [says(name="other-bus")]),
        (UP, queue(), [says()]),
        (UP, queue(unsettled=1), [says(in_flight=1, concurrency=2)]),
        (BUSY, queue(unsettled=1), [says(in_flight=1)]),
        (BUSY, queue(ready=5, unsettled=1), [says(in_flight=1, stuck_seconds=1.0)]),
        (BUSY, queue(unsettled=5), [says(in_flight=1, waiting=4, concurrency=2)]),
        (STALLED, queue(ready=5, unsettled=1), [says(in_flight=1, stuck_seconds=6.0)]),
        (STALLED, queue(unsettled=5), [says(in_flight=1, waiting=4, stuck_seconds=6.0)]),
        # A handler that usually takes long may.
        (BUSY, queue(ready=5, unsettled=1), [says(in_flight=1, stuck_seconds=6.0, usual_seconds=2.0)]),
        # One that gets on is enough.
        (BUSY, queue(ready=5, consumers=2), [says(in_flight=1, stuck_seconds=60.0), says("b", in_flight=1)]),
        (STALLED, queue(ready=1), [SILENT]),
        (STALLED, queue(unsettled=1), [SILENT]),
        (STALLED, queue(unsettled=None), [SILENT]),
        (UP, queue(), [SILENT]),
    ],
)
def test_the_state_of_a_subscription(
    state: SubscriptionState, queue_: QueueInfo, sessions: list[SessionStatus]
) -> None:
    (status,) = subscription_statuses([queue_], sessions, NOW)
    assert status.state is state


def test_who_does_not_answer_is_listed_where_the_broker_counts_more_than_answered() -> None:
    (status,) = subscription_statuses([queue(consumers=2)], [says(in_flight=1), SILENT], NOW)
    assert [(session.session.name, session.answering, session.in_flight) for session in status.sessions] == [
        ("a", True, 1),
        ("silent", False, None),
    ]
    (status,) = subscription_statuses([queue(consumers=1)], [says(), SILENT], NOW)
    assert [session.session.name for session in status.sessions] == ["a"]


def test_the_age_of_the_oldest_is_never_negative() -> None:
    ages = [
        subscription_statuses([queue(ready=ready, oldest=NOW + timedelta(seconds=shift))], [], NOW)[0].oldest_waiting
        for ready, shift in ((1, -5), (1, 5), (0, -5))
    ]
    assert ages == [timedelta(seconds=5), timedelta(0), None]

"""Who is there and what each says of itself, messages, who would get a signal, and since when one waits."""

from __future__ import annotations

import asyncio
import signal as signals_
import time
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import pytest

from signalbus.brokers.base import SessionStatus, SubscriptionSpec
from signalbus.brokers.sqlite import SqliteBroker, requester
from signalbus.codec import EncodedSignal
from signalbus.delivery import ACK
from signalbus.errors import BrokerUnavailable, BusClosed, InvalidSignal
from tests.brokers.sqlite.support import (
    SECONDS,
    WORK,
    Peer,
    Place,
    Said,
    receive,
    remove_sockets,
    session,
    settled,
    signal,
    wait_until,
)
from tests.support import eventually


async def _sitting(place: Place, count: int = 1) -> tuple[Peer, list[str]]:
    peer = place.peer("sit", count)
    return peer, [await peer.line() for _ in range(count)]


async def _with_reports(broker: SqliteBroker, *names: str) -> Sequence[SessionStatus]:
    """Call the roll until all have answered, or those named: a busy machine may take more than a quarter of a second.

    Return that roll.
    """
    found: list[SessionStatus] = []

    async def complete() -> bool:
        found[:] = await broker.sessions(SECONDS)
        return all(status.report is not None for status in found if not names or status.info.id in names)

    await wait_until(complete)
    return found


# The roll call


async def test_the_living_are_listed_oldest_first_with_what_they_say_of_themselves(place: Place) -> None:
    ours = session()
    broker = await place.open(info=ours, host=Said(ours.id))
    _, names = await _sitting(place, 3)
    mute, silent = await place.entered()
    found = await _with_reports(broker)
    assert [status.info.id for status in found] == [ours.id, *names, silent.id]
    assert [status.report for status in found] == [name.encode() for name in (ours.id, *names)] + [b""]
    assert found[0].info == ours
    assert [status.info for status in await mute.sessions(SECONDS)] == [status.info for status in found]


async def test_the_dead_are_not_listed_though_nobody_has_buried_them(place: Place) -> None:
    broker, info = await place.entered()
    peer, names = await _sitting(place, 2)
    assert len(await broker.sessions(SECONDS)) == 3
    peer.kill()
    assert [status.info.id for status in await broker.sessions(SECONDS)] == [info.id]
    assert names


async def test_a_stopped_process_is_listed_without_a_report_within_half_a_second(place: Place) -> None:
    broker = await place.open(host=Said("we"))
    peer, stopped = await _sitting(place, 20)
    _, (running,) = await _sitting(place)
    await broker.sessions(SECONDS)
    await peer.stop()
    begun = time.monotonic()
    found = {status.info.id: status.report for status in await broker.sessions(SECONDS)}
    assert time.monotonic() - begun < 2.5, "all are asked at once: one after the other would take five seconds"
    assert [found[name] for name in stopped] == [None] * 20
    found = {status.info.id: status.report for status in await _with_reports(broker, running)}
    assert [found[name] for name in (*stopped, running)] == [*[None] * 20, running.encode()]
    peer.send(signals_.SIGCONT)
    await _with_reports(broker)
    assert broker.health().counters.get("replies_late", 0) == 0, "late reports are no late replies"


async def test_a_blocked_event_loop_is_listed_without_a_report(place: Place) -> None:
    broker = await place.open()
    peer = place.peer("respond", "echo")
    name = await peer.line()
    await broker.sessions(SECONDS)
    peer.tell("block")
    assert await peer.line() == "blocked"
    found = {status.info.id: status.report for status in await broker.sessions(SECONDS)}
    assert found[name] is None


async def test_a_session_whose_socket_is_gone_is_listed_without_a_report(place: Place) -> None:
    broker, (other, info) = await place.open(), await place.entered()
    remove_sockets(await settled(other))
    found = {status.info.id: status.report for status in await broker.sessions(SECONDS)}
    assert found[info.id] is None


async def test_connections_to_many_sessions_are_not_kept_for_ever(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requester, "_PEERS_KEPT", 3)
    broker = await place.open(host=Said())
    _, names = await _sitting(place, 10)
    for _ in range(3):
        found = await _with_reports(broker)
        assert [status.report for status in found[1:]] == [name.encode() for name in names]
    peers = broker._connected()._requester._peers
    assert len(peers) == 3
    assert not any(peer.line.is_closed for peer in peers.values())


# Messages


async def test_messages_arrive_in_order_at_the_session_they_are_for(place: Place) -> None:
    broker, (other, info) = await place.open(), await place.entered()
    del other
    host = Said()
    _, listener = await place.entered(host=host)
    for number in range(100):
        await broker.send(listener.id, f"{number}".encode())
    await broker.send(info.id, b"to one without a bus")
    await eventually(lambda: len(host.taken) == 100)
    assert host.taken == [f"{number}".encode() for number in range(100)]


async def test_a_message_to_ourselves_arrives(place: Place) -> None:
    host = Said()
    broker, info = await place.entered(host=host)
    await broker.send(info.id, b"note")
    assert host.taken == [b"note"]


async def test_a_message_to_nobody_is_nothing_and_costs_one_question(place: Place) -> None:
    broker = await place.open()
    peer, (killed,) = await _sitting(place)
    other, left = await place.entered()
    await broker.send(killed, b"x")
    await other.aclose()
    peer.kill()
    for name in (killed, left.id, "never"):
        begun = time.monotonic()
        for _ in range(100):
            await broker.send(name, b"x")
        assert time.monotonic() - begun < 2.0


async def test_a_message_that_cannot_be_sent_is_said(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    broker, (other, info) = await place.open(), await place.entered()
    remove_sockets(await settled(other))
    with pytest.raises(BrokerUnavailable, match="cannot be reached"):
        await broker.send(info.id, b"x")
    monkeypatch.setattr(requester, "_TELL_SECONDS", 0.5)
    peer, (name,) = await _sitting(place)
    await broker.send(name, b"x")
    await peer.stop()
    sending = [broker.send(name, bytes(1024 * 1024)) for _ in range(10)]
    with pytest.raises(BrokerUnavailable, match="takes no messages"):
        await asyncio.gather(*sending)
    with pytest.raises(InvalidSignal):
        await broker.send(name, bytes(17 * 1024 * 1024))
    await broker.aclose()
    with pytest.raises(BusClosed):
        await broker.send(name, b"x")


# The audience


async def test_the_audience_is_named_as_soon_as_it_is_there_and_no_longer(place: Place) -> None:
    broker, other = await place.open(), await place.open()
    assert await broker.audience("work.item", SECONDS) == []
    await other.declare(WORK, SECONDS)
    await other.declare(SubscriptionSpec(name="all", patterns=("#",), durable=False), SECONDS)
    await other.declare(SubscriptionSpec(name="other", patterns=("play.*",)), SECONDS)
    assert await broker.audience("work.item", SECONDS) == ["all", "work"]
    assert await broker.audience("play.x", SECONDS) == ["all", "other"]
    await broker.declare(SubscriptionSpec(name="mine", patterns=("work.*",), durable=False), SECONDS)
    assert await broker.audience("work.item", SECONDS) == ["all", "mine", "work"]
    await other.aclose()
    assert await broker.audience("work.item", SECONDS) == ["mine", "work"]
    await broker.delete("work", SECONDS)
    assert await broker.audience("work.item", SECONDS) == ["mine"]


async def test_temporary_subscriptions_of_the_dead_are_no_audience(place: Place) -> None:
    broker = await place.open()
    peer = place.peer("linger")
    assert await peer.line() == "serving"
    assert await broker.audience("passing", SECONDS) == ["passing"]
    peer.kill()
    assert await broker.audience("passing", SECONDS) == []


# The age of what waits


async def test_the_oldest_ready_signal_tells_since_when_it_waits(place: Place) -> None:
    broker, consumer = await place.serving(prefetch=1)
    assert (await place.queue(broker)).oldest is None
    begun = datetime.now(UTC) - timedelta(milliseconds=1)
    await broker.publish([signal("held")], SECONDS)
    (held,) = await receive(consumer)
    assert (await place.queue(broker)).oldest is None, "it is in a subscriber's hands"
    middle = datetime.now(UTC) - timedelta(milliseconds=1)
    await broker.publish([signal("waiting")], SECONDS)
    ended = datetime.now(UTC)
    await broker.publish([signal("newer")], SECONDS)
    oldest = (await place.queue(broker)).oldest
    assert oldest is not None
    assert begun < middle <= oldest <= ended
    assert await consumer.settle(held, ACK)


async def test_signals_of_others_tell_by_their_time_or_not_at_all(place: Place) -> None:
    broker = await place.open()
    await broker.declare(WORK, SECONDS)
    await broker.declare(SubscriptionSpec(name="play", patterns=("play.#",)), SECONDS)
    dated = EncodedSignal("1", "work.x", {"cloudEvents_time": "2024-05-01T12:00:00Z"}, b"", None)
    await broker.publish([dated, EncodedSignal("2", "play.x", {}, b"", None)], SECONDS)
    assert (await place.queue(broker)).oldest == datetime(2024, 5, 1, 12, tzinfo=UTC)
    assert (await place.queue(broker, "play")).oldest is None

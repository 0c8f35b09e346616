"""Who is there, and who gets a signal: asked of everybody at once."""

from __future__ import annotations

import asyncio
import signal as signals
import statistics
from functools import partial

import pytest
from aiormq.abc import AbstractChannel
from pamqp import commands

from signalbus.brokers.base import SubscriptionSpec
from signalbus.brokers.rabbitmq import roll_call
from signalbus.errors import BrokerError, BrokerUnavailable
from signalbus.sessions import Down
from signalbus.testing.proxy import FaultProxy
from tests.brokers.rabbitmq.conftest import TIMEOUT, Brokers, Member, Peers, until, wait_up
from tests.support import eventually


def _counts(ended: list[Down], count: int) -> bool:
    return len(ended) == count


async def reports(member: Member) -> dict[str, bytes | None]:
    """Return what each living session says of itself."""
    return {status.info.id: status.report for status in await member.broker.sessions(TIMEOUT)}


@pytest.fixture
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Wait for answers that come late: a living process, or the node, may stand still for a moment."""
    monkeypatch.setattr(roll_call, "ANSWER_SECONDS", TIMEOUT)


@pytest.mark.usefixtures("patience")
async def test_sessions_are_listed_oldest_first_with_their_reports(brokers: Brokers) -> None:
    members = [await brokers.join() for _ in range(4)]
    for member in members:
        found = await member.broker.sessions(TIMEOUT)
        assert [status.info.id for status in found] == [each.id for each in members]
        assert [status.report for status in found] == [each.report() for each in members]
        (own,) = [status for status in found if status.info.id == member.id]
        assert own.info == member.info


async def test_nobody_waits_for_more_than_the_answers(brokers: Brokers) -> None:
    members = [await brokers.join() for _ in range(5)]
    await reports(members[0])
    clock = asyncio.get_running_loop().time
    times: list[float] = []
    for _ in range(9):
        started = clock()
        await reports(members[0])
        times.append(clock() - started)
    assert statistics.median(times) < 0.15, times  # not the 250 ms that one without an answer is given


async def test_who_lives_is_listed_however_late_the_broker_tells_of_it(
    brokers: Brokers, monkeypatch: pytest.MonkeyPatch
) -> None:
    members = [await brokers.join() for _ in range(3)]
    ids = {member.id for member in members}
    assert (await reports(members[0])).keys() == ids
    monkeypatch.setattr(roll_call, "ANSWER_SECONDS", 0.0)
    for _ in range(20):
        assert (await reports(members[0])).keys() == ids


async def test_who_closed_is_not_listed_any_more(brokers: Brokers) -> None:
    watcher = await brokers.join()
    for _ in range(10):
        other = await brokers.join()
        assert other.id in await reports(watcher)
        await other.broker.aclose()
        assert list(await reports(watcher)) == [watcher.id]


async def test_a_killed_session_is_not_listed_once_its_end_is_told(brokers: Brokers, peers: Peers) -> None:
    watcher = await brokers.join()
    ended: list[Down] = []
    await watcher.broker.watch_all(ended.append, TIMEOUT)
    for count in range(1, 4):
        peer = await peers.start("live", 1)
        (id_,) = await peer.line("live")
        assert id_ in await reports(watcher)
        await peer.kill()
        await eventually(partial(_counts, ended, count))
        assert list(await reports(watcher)) == [watcher.id]


async def test_a_stopped_session_is_listed_without_a_report(brokers: Brokers, peers: Peers) -> None:
    watcher = await brokers.join()
    peer = await peers.start("live", 2)
    ids = await peer.line("live")
    assert (await reports(watcher)).keys() == {watcher.id, *ids}
    peer.send(signals.SIGSTOP)
    clock = asyncio.get_running_loop().time
    times: list[float] = []
    found: dict[str, bytes | None] = {}

    async def own_answer() -> bool:
        started = clock()
        found.update(await reports(watcher))
        times.append(clock() - started)
        assert found.keys() == {watcher.id, *ids}
        return len(times) >= 5 and found[watcher.id] is not None  # ours is late when we stood still

    await until(own_answer)
    assert statistics.median(times) < 1, times
    assert found == {watcher.id: watcher.report(), ids[0]: None, ids[1]: None}
    # Also to one that has heard nothing of them before.
    (newcomer,) = [await brokers.join()]
    statuses = {status.info.id: status for status in await newcomer.broker.sessions(TIMEOUT)}
    assert statuses[ids[0]].report is None
    assert (statuses[ids[0]].info.name, statuses[ids[0]].info.host) == ("test", "here")
    peer.send(signals.SIGCONT)

    async def answers() -> bool:
        return None not in (await reports(watcher)).values()

    await until(answers)


async def test_roll_calls_at_the_same_time_share_their_answers(brokers: Brokers) -> None:
    members = [await brokers.join() for _ in range(3)]
    ids = {member.id for member in members}
    found = await asyncio.gather(*(reports(member) for member in members for _ in range(50)))
    assert all(each.keys() == ids for each in found)
    (first, *_) = members
    number = first.broker._society._roll_call._number  # pyright: ignore[reportPrivateUsage]
    assert number < 10


@pytest.mark.usefixtures("patience")
async def test_a_cancelled_roll_call_harms_no_other(brokers: Brokers) -> None:
    member = await brokers.join()
    for _ in range(20):
        tasks = [asyncio.create_task(reports(member)) for _ in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert isinstance(results[0], asyncio.CancelledError)
        assert results[1] == results[2] == {member.id: member.report()}


async def test_sessions_without_a_broker_are_an_error_in_time(brokers: Brokers, proxy: FaultProxy) -> None:
    member = await brokers.join(proxy.url_for(brokers.url))
    await proxy.refuse()
    proxy.cut()
    with pytest.raises(BrokerError):
        await member.broker.sessions(0.5)
    with pytest.raises(BrokerError):
        await member.broker.audience("order.placed", 0.5)
    await proxy.heal()
    await wait_up(member.broker)

    async def only_it() -> bool:
        return list(await reports(member)) == [member.id]

    await until(only_it)  # others see a new incarnation a moment before it is told of itself


async def test_forged_answers_are_refused(brokers: Brokers, raw: AbstractChannel) -> None:
    member = await brokers.join()
    await reports(member)
    for headers, body in (
        ({"signalbus-note": "roll", "signalbus-number": 1}, b""),  # asks to answer to nobody's inbox
        ({"signalbus-note": "roll", "x-first-death-queue": "somewhere", "signalbus-number": 1}, b""),
        ({"signalbus-note": "report"}, b"{}"),
        ({"signalbus-note": "bogus"}, b""),
        ({}, b""),
        ({"signalbus-note": "up"}, b"{"),
    ):
        properties = commands.Basic.Properties(headers=headers)  # type: ignore[arg-type]
        await raw.basic_publish(body, exchange="signalbus.roll", routing_key="work", properties=properties)
    await eventually(lambda: member.broker.health().counters.get("notes_refused", 0) == 6)
    assert list(await reports(member)) == [member.id]


# Audience


def _spec(name: str, *patterns: str, durable: bool = True) -> SubscriptionSpec:
    return SubscriptionSpec(name=name, patterns=patterns, durable=durable)


async def test_the_audience_is_whoever_would_get_the_signal(brokers: Brokers) -> None:
    asker, other = await brokers.join(), await brokers.join()
    assert await asker.broker.audience("order.placed", TIMEOUT) == []
    await other.broker.declare(_spec("billing", "order.*", "invoice.#"), TIMEOUT)
    await other.broker.declare(_spec("stock", "stock.#"), TIMEOUT)
    await other.broker.declare(_spec("watch", "#", durable=False), TIMEOUT)
    await asker.broker.declare(_spec("own", "order.placed", durable=False), TIMEOUT)
    assert await asker.broker.audience("order.placed", TIMEOUT) == ["billing", "own", "watch"]
    assert await other.broker.audience("stock.taken", TIMEOUT) == ["stock", "watch"]
    await other.broker.declare(_spec("billing", "invoice.#"), TIMEOUT)
    await other.broker.delete("stock", TIMEOUT)
    assert await asker.broker.audience("order.placed", TIMEOUT) == ["own", "watch"]
    assert await asker.broker.audience("stock.taken", TIMEOUT) == ["watch"]
    await other.broker.aclose()
    assert await asker.broker.audience("order.placed", TIMEOUT) == ["own"]
    assert await asker.broker.audience("invoice.paid", TIMEOUT) == ["billing"]


async def test_changes_by_others_are_in_the_audience_at_once(brokers: Brokers) -> None:
    asker, other = await brokers.join(), await brokers.join()
    await asker.broker.audience("order.placed", TIMEOUT)
    for number in range(5):
        await other.broker.declare(_spec(f"name-{number}", "order.*"), TIMEOUT)
        names = await asker.broker.audience("order.placed", TIMEOUT)
        assert names == [f"name-{n}" for n in range(number + 1)]


async def test_a_killed_process_takes_its_temporary_subscription_along(brokers: Brokers, peers: Peers) -> None:
    asker = await brokers.join()
    peer = await peers.start("watch", "order.*")
    await peer.line("watching")
    assert await asker.broker.audience("order.placed", TIMEOUT) == ["temporary"]
    peer.send(signals.SIGSTOP)  # its queue gets signals all the same
    assert await asker.broker.audience("order.placed", TIMEOUT) == ["temporary"]
    await peer.kill()

    async def nobody() -> bool:
        return await asker.broker.audience("order.placed", TIMEOUT) == []

    await until(nobody, 2)


# Messages


async def test_a_message_reaches_its_session_and_nobody_else(brokers: Brokers) -> None:
    members = [await brokers.join() for _ in range(3)]
    for number in range(20):
        await members[0].broker.send(members[1].id, b"%d" % number)
    await members[0].broker.send(members[0].id, b"to ourselves")
    await members[0].broker.send("nobody", b"lost")
    await eventually(lambda: len(members[1].taken) == 20)
    await eventually(lambda: members[0].taken == [b"to ourselves"])
    assert members[1].taken == [b"%d" % number for number in range(20)]
    assert members[2].taken == []


async def test_a_message_that_cannot_be_sent_is_an_error(brokers: Brokers, proxy: FaultProxy) -> None:
    member = await brokers.join(proxy.url_for(brokers.url))
    await proxy.refuse()
    proxy.cut()
    await eventually(lambda: member.broker.health().counters.get("connections_lost", 0) == 3)
    with pytest.raises(BrokerUnavailable):
        await member.broker.send("anybody", b"x")

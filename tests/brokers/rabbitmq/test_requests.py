"""Requests: each ends once, in time, and says truly how."""

from __future__ import annotations

import asyncio
import signal as signals
import statistics
import time
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime

import pytest
from aiormq.abc import AbstractChannel, DeliveredMessage
from pamqp import commands

from signalbus.brokers.base import Answer, AnswerKind, IncomingRequest, Responder
from signalbus.brokers.rabbitmq import RabbitBroker, dialogue
from signalbus.errors import Backpressure, BrokerError, BrokerUnavailable, ConfigError, InvalidSignal
from signalbus.testing.proxy import FaultProxy
from signalbus.testing.rabbitmq import PrivateNode
from tests.brokers.rabbitmq.conftest import (
    FAST,
    TIMEOUT,
    Brokers,
    Member,
    Peers,
    broker_for,
    session,
    signal,
    until,
    wait_up,
)
from tests.brokers.rabbitmq.peer import echo
from tests.support import eventually

QUOTE = "quote.get"
TOLD = 5.0  # seconds: before `TIMEOUT`, so not because a request has expired

Act = Callable[[Responder, IncomingRequest], Coroutine[None, None, None]]


async def echoes(responder: Responder, request: IncomingRequest) -> None:
    """Answer with the data of the request, again until it is sent."""
    async with asyncio.timeout(TIMEOUT):
        while True:
            try:
                await responder.answer(request, echo(request))
            except BrokerError:
                await asyncio.sleep(0.05)
            else:
                return


class Service:
    """Responds in the background, each request in a task of its own."""

    def __init__(self, responder: Responder, act: Act = echoes) -> None:
        self.responder = responder
        self.got: list[IncomingRequest] = []
        self._act = act
        self._tasks: set[asyncio.Task[None]] = set()
        self.running = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with asyncio.TaskGroup() as group:
            while batch := await self.responder.receive():
                for request in batch:
                    self.got.append(request)
                    group.create_task(self._act(self.responder, request))

    async def aclose(self) -> None:
        await self.responder.stop()
        async with asyncio.timeout(TIMEOUT):
            await self.running


async def serve(
    member: Member | RabbitBroker,
    act: Act = echoes,
    request_type: str = QUOTE,
    *,
    concurrency: int = 10,
    backlog: int = 100,
) -> Service:
    broker = member.broker if isinstance(member, Member) else member
    return Service(await broker.respond(request_type, concurrency, backlog, TIMEOUT), act)


def asking(member: Member, number: int = 1, timeout: float = TIMEOUT) -> asyncio.Task[Answer]:
    """Ask in the background."""
    return asyncio.create_task(member.broker.request(signal(number, QUOTE), timeout))


async def unanswered(service: Service, count: int = 1) -> list[IncomingRequest]:
    """Wait until so many requests have arrived."""
    await eventually(lambda: len(service.got) >= count)
    return service.got


async def queued(channel: AbstractChannel, count: int) -> None:
    """Wait until so many requests wait at the broker, in nobody's hands."""

    async def waiting() -> bool:
        answer = await channel.queue_declare(f"signalbus.r.{QUOTE}", passive=True)
        return answer.message_count == count

    await until(waiting)


async def never(responder: Responder, request: IncomingRequest) -> None:
    """Do not answer."""


def open_requests(member: Member) -> int:
    """Return how many requests wait for an answer."""
    return len(list(member.broker._requests._calls.open))  # pyright: ignore[reportPrivateUsage]


async def test_a_reply_carries_body_content_type_and_session(brokers: Brokers) -> None:
    asker, responder = await brokers.join(), await brokers.join()

    async def quote(service: Responder, request: IncomingRequest) -> None:
        assert request.signal.type == QUOTE
        assert not request.redelivered
        assert 4 < request.remaining <= 5
        assert await service.answer(request, Answer(AnswerKind.REPLY, b"42", "text/x-price", reason="asked"))

    service = await serve(responder, quote)
    answer = await asker.broker.request(signal(1, QUOTE), 5)
    assert answer == Answer(AnswerKind.REPLY, b"42", "text/x-price", responder.id, "asked")
    assert open_requests(asker) == 0
    await service.aclose()


@pytest.mark.parametrize("kind", [AnswerKind.FAILED, AnswerKind.MOVED, AnswerKind.RESPONDER_DOWN])
async def test_other_answers_arrive_as_they_are(brokers: Brokers, kind: AnswerKind) -> None:
    asker = await brokers.join()

    async def refuse(service: Responder, request: IncomingRequest) -> None:
        await service.answer(request, Answer(kind, b"{}", "application/json", reason="because"))

    service = await serve(asker, refuse)
    answer = await asker.broker.request(signal(1, QUOTE), TIMEOUT)
    assert (answer.kind, answer.body, answer.reason) == (kind, b"{}", "because")
    await service.aclose()


async def test_large_and_empty_bodies_and_long_content_types_pass(brokers: Brokers) -> None:
    asker = await brokers.join()
    bodies = [b"", b"x", b"y" * 131_064, b"z" * 131_065, b"w" * 1_000_000]

    async def same(service: Responder, request: IncomingRequest) -> None:
        await service.answer(request, Answer(AnswerKind.REPLY, request.signal.body, "a/" + "b" * 400))

    service = await serve(asker, same)
    for body in bodies:
        answer = await asker.broker.request(signal(type=QUOTE, body=body), TIMEOUT)
        assert answer.body == body
        assert answer.content_type == "a/" + "b" * 400
    await service.aclose()


async def test_nobody_responds_and_that_is_said_at_once(brokers: Brokers) -> None:
    asker = await brokers.join()
    clock = asyncio.get_running_loop().time
    await asker.broker.request(signal(1, "any.thing"), TIMEOUT)
    started = clock()
    answer = await asker.broker.request(signal(1, QUOTE), TIMEOUT)
    assert answer.kind is AnswerKind.NO_RESPONDER
    assert QUOTE in answer.reason
    assert clock() - started < 1.0


async def test_after_the_last_responder_left_nobody_responds(brokers: Brokers) -> None:
    asker, responder = await brokers.join(), await brokers.join()
    for _ in range(3):
        service = await serve(responder)
        assert (await asker.broker.request(signal(1, QUOTE), TIMEOUT)).kind is AnswerKind.REPLY
        await service.aclose()
        await service.responder.aclose()
        assert (await asker.broker.request(signal(1, QUOTE), TIMEOUT)).kind is AnswerKind.NO_RESPONDER


async def test_without_an_answer_a_request_expires_at_its_deadline(brokers: Brokers) -> None:
    asker, responder = await brokers.join(), await brokers.join()
    service = await serve(responder, never)
    clock = asyncio.get_running_loop().time
    started = clock()
    answer = await asker.broker.request(signal(1, QUOTE), 2.0)
    assert answer.kind is AnswerKind.EXPIRED
    assert 1.99 < clock() - started < 4.0
    (request,) = await unanswered(service)
    assert await service.responder.answer(request, echo(request))
    await eventually(lambda: asker.broker.health().counters.get("replies_late", 0) == 1)
    assert not await service.responder.answer(request, echo(request)), "answered twice"
    await service.aclose()


async def test_what_expires_in_the_queue_or_in_our_hands_is_not_handed_out(
    brokers: Brokers, raw: AbstractChannel
) -> None:
    asker, responder = await brokers.join(), await brokers.join()
    handle = await responder.broker.respond(QUOTE, 1, 10, TIMEOUT)
    # One waits here, as nobody receives; the other in the queue, as one is the limit.
    waiting = [asking(asker, number, 2.0) for number in range(2)]
    ready = handle._ready  # pyright: ignore[reportPrivateUsage]
    await eventually(lambda: len(ready) == 1)
    await queued(raw, 1)
    assert [(await task).kind for task in waiting] == [AnswerKind.EXPIRED] * 2
    await queued(raw, 0)  # later, as the broker counts from its arrival
    service = Service(handle)
    assert (await asker.broker.request(signal(7, QUOTE), TIMEOUT)).kind is AnswerKind.REPLY
    assert len(service.got) == 1
    assert responder.broker.health().counters["requests_expired"] == 1
    await service.aclose()


async def test_beyond_the_backlog_requests_are_refused_at_once(brokers: Brokers, raw: AbstractChannel) -> None:
    asker, responder = await brokers.join(), await brokers.join()
    service = await serve(responder, never, concurrency=2, backlog=3)
    waiting = [asking(asker, number) for number in range(2)]
    await unanswered(service, 2)
    beyond = [asking(asker, number, 2.0) for number in range(3)]
    await queued(raw, 3)
    clock = asyncio.get_running_loop().time
    started = clock()
    answer = await asker.broker.request(signal(9, QUOTE), TIMEOUT)
    assert answer.kind is AnswerKind.OVERLOADED
    assert clock() - started < 1.0
    assert len(service.got) == 2
    for request in list(service.got):
        await service.responder.answer(request, echo(request))
    assert [(await task).kind for task in waiting] == [AnswerKind.REPLY] * 2
    assert [(await task).kind for task in beyond] == [AnswerKind.EXPIRED] * 3
    await service.aclose()


async def test_responders_with_another_backlog_are_refused(brokers: Brokers) -> None:
    first, second = await brokers.join(), await brokers.join()
    service = await serve(first, backlog=10)
    with pytest.raises(ConfigError, match="backlog"):
        await second.broker.respond(QUOTE, 1, 11, TIMEOUT)
    same = await serve(second, backlog=10)
    await service.aclose()
    await same.aclose()


async def test_a_type_that_cannot_be_a_queue_is_refused_and_not_found(brokers: Brokers) -> None:
    member = await brokers.join()
    long = "x" * 128
    with pytest.raises(ConfigError, match="request type"):
        await member.broker.respond(long, 1, 1, TIMEOUT)
    answer = await member.broker.request(signal(1, long), TIMEOUT)
    assert answer.kind is AnswerKind.NO_RESPONDER


async def test_what_cannot_be_encoded_is_not_sent(brokers: Brokers) -> None:
    member = await brokers.join()
    encoded = signal(1, QUOTE)
    wrong = type(encoded)(encoded.id, encoded.type, {**encoded.headers, "cc": "x"}, b"", None)
    with pytest.raises(InvalidSignal):
        await member.broker.request(wrong, TIMEOUT)
    assert open_requests(member) == 0


async def test_responders_share_the_work(brokers: Brokers) -> None:
    asker = await brokers.join()
    services = [await serve(await brokers.join(), concurrency=1) for _ in range(3)]
    answers = await asyncio.gather(*(asker.broker.request(signal(n, QUOTE), TIMEOUT) for n in range(60)))
    assert {answer.kind for answer in answers} == {AnswerKind.REPLY}
    assert len({answer.session for answer in answers}) == 3
    for service in services:
        await service.aclose()


async def test_answers_find_their_requests_among_a_thousand(brokers: Brokers) -> None:
    asker, responder = await brokers.join(), await brokers.join()
    service = await serve(responder, concurrency=50, backlog=2000)
    requests = [signal(number, QUOTE) for number in range(1000)]
    answers = await asyncio.gather(*(asker.broker.request(request, TIMEOUT) for request in requests))
    assert [answer.body for answer in answers] == [request.body for request in requests]
    assert open_requests(asker) == 0
    await service.aclose()


async def test_a_cancelled_request_leaves_nothing(brokers: Brokers) -> None:
    asker, responder = await brokers.join(), await brokers.join()
    service = await serve(responder, never)
    tasks = [asking(asker, number) for number in range(10)]
    for request in list(await unanswered(service, 10)):
        if request is service.got[0]:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert open_requests(asker) == 0
        await service.responder.answer(request, echo(request))
    await eventually(lambda: asker.broker.health().counters.get("replies_late", 0) == 10)
    await service.aclose()


# Responders that go


async def test_a_killed_responder_is_told_within_100_ms(brokers: Brokers, peers: Peers) -> None:
    asker = await brokers.join()
    clock = asyncio.get_running_loop().time
    times: list[float] = []

    async def timed() -> tuple[Answer, float]:
        answer = await asker.broker.request(signal(1, QUOTE), TIMEOUT)
        return answer, clock()

    for _ in range(5):
        peer = await peers.start("respond", QUOTE, "hold")
        await peer.line("responding")
        task = asyncio.create_task(timed())
        await peer.line("request")
        killed = await peer.kill()
        async with asyncio.timeout(TIMEOUT):
            answer, at = await task
        times.append(at - killed)
        assert answer.kind is AnswerKind.RESPONDER_DOWN
    assert statistics.median(times) < 0.1, times


async def test_requests_in_the_queue_of_a_killed_responder_end_too(brokers: Brokers, peers: Peers) -> None:
    asker = await brokers.join()
    peer = await peers.start("respond", QUOTE, "hold")
    await peer.line("responding")
    tasks = [asking(asker, number) for number in range(150)]  # it takes 100 at once
    await eventually(lambda: open_requests(asker) == 150)
    for _ in range(100):
        await peer.line("request")
    await peer.kill()
    async with asyncio.timeout(TIMEOUT):
        answers = await asyncio.gather(*tasks)
    assert {answer.kind for answer in answers} == {AnswerKind.RESPONDER_DOWN}


async def test_a_request_of_a_killed_responder_goes_to_another_one_marked(brokers: Brokers, peers: Peers) -> None:
    asker, second = await brokers.join(), await brokers.join()
    peer = await peers.start("respond", QUOTE, "hold")
    await peer.line("responding")
    task = asking(asker)
    await peer.line("request")
    service = await serve(second, backlog=1000)
    await peer.kill()
    async with asyncio.timeout(TIMEOUT):
        answer = await task
    assert (answer.kind, answer.session) == (AnswerKind.REPLY, second.id)
    assert [request.redelivered for request in service.got] == [True]
    await service.aclose()


async def test_a_responder_killed_after_its_answer_has_answered(brokers: Brokers, peers: Peers) -> None:
    asker = await brokers.join()
    for _ in range(3):
        peer = await peers.start("respond", QUOTE, "echo")
        await peer.line("responding")
        answer = await asker.broker.request(signal(5, QUOTE), TIMEOUT)
        assert answer.kind is AnswerKind.REPLY
        await peer.kill()


async def test_a_stopped_responder_is_told_when_the_broker_gives_it_up(brokers: Brokers, peers: Peers) -> None:
    asker = await brokers.join()
    peer = await peers.start("respond", QUOTE, "hold")
    await peer.line("responding")
    task = asking(asker, timeout=30)
    await peer.line("request")
    peer.send(signals.SIGSTOP)
    async with asyncio.timeout(3 * 4 + 2):
        assert (await task).kind is AnswerKind.RESPONDER_DOWN


async def test_a_responder_that_stops_answers_what_it_runs(brokers: Brokers) -> None:
    asker, responder = await brokers.join(), await brokers.join()
    go_on = asyncio.Event()

    async def wait(service: Responder, request: IncomingRequest) -> None:
        await go_on.wait()
        await echoes(service, request)

    service = await serve(responder, wait)
    tasks = [asking(asker, number) for number in range(5)]
    await unanswered(service, 5)
    await service.responder.stop()
    assert (await asker.broker.request(signal(9, QUOTE), TIMEOUT)).kind is AnswerKind.NO_RESPONDER
    await asyncio.sleep(1.2)  # longer than any look at the queue, which is gone
    assert not any(task.done() for task in tasks)
    go_on.set()
    answers = await asyncio.gather(*tasks)
    assert {(answer.kind, answer.session) for answer in answers} == {(AnswerKind.REPLY, responder.id)}
    await service.aclose()


async def test_a_responder_that_stops_moves_what_it_has_not_begun(brokers: Brokers) -> None:
    asker, responder = await brokers.join(), await brokers.join()
    handle = await responder.broker.respond(QUOTE, 10, 100, TIMEOUT)
    tasks = [asking(asker, number) for number in range(10)]
    ready = handle._ready  # pyright: ignore[reportPrivateUsage]
    await eventually(lambda: len(ready) == 10)
    await handle.stop()
    async with asyncio.timeout(TOLD):
        answers = await asyncio.gather(*tasks)
    assert {answer.kind for answer in answers} == {AnswerKind.MOVED}
    assert await handle.receive() == ()


async def test_the_last_responder_that_stops_moves_what_waits_in_the_queue(
    brokers: Brokers, raw: AbstractChannel
) -> None:
    asker, responder = await brokers.join(), await brokers.join()
    service = await serve(responder, never, concurrency=1)
    tasks = [asking(asker, number) for number in range(20)]
    (request,) = await unanswered(service)
    await queued(raw, 19)
    await service.responder.stop()
    await service.responder.answer(request, echo(request))
    async with asyncio.timeout(TOLD):
        kinds = [answer.kind for answer in await asyncio.gather(*tasks)]
    assert sorted(kinds) == sorted([AnswerKind.REPLY] + [AnswerKind.MOVED] * 19)
    await service.aclose()


async def test_a_responder_that_closes_before_it_answers_is_down(brokers: Brokers) -> None:
    asker, responder = await brokers.join(), await brokers.join()
    service = await serve(responder, never)
    task = asking(asker)
    await unanswered(service)
    await service.responder.stop()
    await service.responder.aclose()
    async with asyncio.timeout(TOLD):
        assert (await task).kind is AnswerKind.RESPONDER_DOWN


async def test_a_responder_that_closes_leaves_its_requests_to_others(brokers: Brokers) -> None:
    asker, first, second = await brokers.join(), await brokers.join(), await brokers.join()
    service = await serve(first, never)
    task = asking(asker)
    await unanswered(service)
    other = await serve(second)
    await service.responder.aclose()
    async with asyncio.timeout(TIMEOUT):
        answer = await task
    assert (answer.kind, answer.session) == (AnswerKind.REPLY, second.id)
    assert other.got[0].redelivered
    await other.aclose()


async def test_a_responder_killed_while_it_stops_is_told(brokers: Brokers, peers: Peers) -> None:
    asker = await brokers.join()
    peer = await peers.start("respond", QUOTE, "hold")
    await peer.line("responding")
    task = asking(asker)
    await peer.line("request")
    second = await brokers.join()
    service = await serve(second, backlog=1000)  # so the queue stays
    peer.tell()  # stops, and goes on to close
    async with asyncio.timeout(TIMEOUT):
        assert (await task).kind in (AnswerKind.REPLY, AnswerKind.RESPONDER_DOWN)
    await service.aclose()


# Requesters that go


async def test_a_killed_requester_leaves_the_responder_as_it_is(brokers: Brokers, peers: Peers) -> None:
    responder = await brokers.join()
    service = await serve(responder, never)
    peer = await peers.start("ask", QUOTE)
    await peer.line("asking")
    (request,) = await unanswered(service)
    await peer.kill()
    await asyncio.sleep(0.1)
    assert await service.responder.answer(request, echo(request)), "the broker does not tell that nobody is there"
    answer = await responder.broker.request(signal(1, QUOTE), 0.2)
    assert answer.kind is AnswerKind.EXPIRED
    await service.aclose()


# Connections that go


async def test_a_hundred_open_requests_end_at_once_when_our_connection_does(
    brokers: Brokers, proxy: FaultProxy
) -> None:
    asker, responder = await brokers.join(proxy.url_for(brokers.url)), await brokers.join()
    service = await serve(responder, never, concurrency=100, backlog=1000)
    tasks = [asking(asker, number, 60) for number in range(100)]
    await unanswered(service, 100)
    proxy.cut()
    async with asyncio.timeout(2):
        answers = await asyncio.gather(*tasks)
    assert {answer.kind for answer in answers} == {AnswerKind.LOST}
    requests, service.got[:] = list(service.got), []
    for request in requests:
        assert await service.responder.answer(request, echo(request))
    task = asking(asker)
    (request,) = await unanswered(service)
    await service.responder.answer(request, echo(request))
    async with asyncio.timeout(TIMEOUT):
        assert (await task).kind is AnswerKind.REPLY
    await service.aclose()


async def test_a_responder_outlives_the_loss_of_its_connection(brokers: Brokers, proxy: FaultProxy) -> None:
    asker, responder = await brokers.join(), await brokers.join(proxy.url_for(brokers.url))
    service = await serve(responder)
    for _ in range(3):
        assert (await asker.broker.request(signal(1, QUOTE), TIMEOUT)).kind is AnswerKind.REPLY
        proxy.cut()
        deadline = asyncio.get_running_loop().time() + TIMEOUT
        while (await asker.broker.request(signal(1, QUOTE), 2)).kind is not AnswerKind.REPLY:
            assert asyncio.get_running_loop().time() < deadline
            await asyncio.sleep(0.02)
        await wait_up(responder.broker)
    await service.aclose()


async def test_an_answer_to_a_request_of_a_lost_channel_is_sent_all_the_same(
    brokers: Brokers, proxy: FaultProxy
) -> None:
    asker, first, second = await brokers.join(), await brokers.join(proxy.url_for(brokers.url)), await brokers.join()
    service = await serve(first, never)
    task = asking(asker, timeout=30)
    (request,) = await unanswered(service)
    other = await serve(second, never)
    proxy.cut()
    (again,) = await unanswered(other)
    assert again.redelivered
    await eventually(lambda: len(first.incarnations) == 2)
    await wait_up(first.broker)
    assert await service.responder.answer(request, echo(request))
    async with asyncio.timeout(TIMEOUT):
        assert (await task).session == first.id
    await other.responder.answer(again, echo(again))
    await eventually(lambda: asker.broker.health().counters.get("replies_late", 0) == 1)
    await service.aclose()
    await other.aclose()


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True])
async def test_a_restarted_node_ends_open_requests_and_serves_new_ones(fault_node: PrivateNode, kill: bool) -> None:
    brokers = Brokers(await fault_node.vhost())
    try:
        asker, responder = await brokers.join(), await brokers.join()
        service = await serve(responder, never)
        tasks = [asking(asker, number, 90) for number in range(10)]
        await unanswered(service, 10)
        await fault_node.restart(kill=kill)
        async with asyncio.timeout(5):
            answers = await asyncio.gather(*tasks)
        assert {answer.kind for answer in answers} == {AnswerKind.LOST}
        await wait_up(asker.broker)
        await wait_up(responder.broker)
        service.got.clear()
        answered = False
        deadline = asyncio.get_running_loop().time() + 30
        while not answered and asyncio.get_running_loop().time() < deadline:
            task = asking(asker, timeout=2)
            await asyncio.wait([task], timeout=1)
            for request in list(service.got):
                await service.responder.answer(request, echo(request))
            service.got.clear()
            answered = (await task).kind is AnswerKind.REPLY
        assert answered
        await service.aclose()
    finally:
        await brokers.aclose()


async def test_an_alarm_is_backpressure_and_not_a_lost_request(fault_node: PrivateNode) -> None:
    brokers = Brokers(await fault_node.vhost())
    try:
        asker = await brokers.join()
        service = await serve(asker)
        assert (await asker.broker.request(signal(1, QUOTE), TIMEOUT)).kind is AnswerKind.REPLY
        await fault_node.eval("vm_memory_monitor:set_vm_memory_high_watermark(0.00001)")
        # Connections hear of it a moment later, and one request is on its way before we are told.
        async with asyncio.timeout(TIMEOUT):
            while (await asker.broker.request(signal(2, QUOTE), 1.0)).kind is not AnswerKind.EXPIRED:
                pass
        with pytest.raises(Backpressure):
            await asker.broker.request(signal(3, QUOTE), 0.5)
        await fault_node.eval("vm_memory_monitor:set_vm_memory_high_watermark({absolute, 2000000000})")
        assert (await asker.broker.request(signal(4, QUOTE), TIMEOUT)).kind is AnswerKind.REPLY
        await service.aclose()
    finally:
        await brokers.aclose()


async def test_without_a_broker_a_request_is_not_sent_and_says_so(brokers: Brokers, proxy: FaultProxy) -> None:
    asker = await brokers.join(proxy.url_for(brokers.url))
    await proxy.refuse()
    proxy.cut()
    await eventually(lambda: asker.broker.health().counters.get("connections_lost", 0) > 0)
    with pytest.raises(BrokerUnavailable):
        await asker.broker.request(signal(1, QUOTE), 0.5)


async def test_closing_ends_open_requests(brokers: Brokers) -> None:
    asker, responder = await brokers.join(), await brokers.join()
    service = await serve(responder, never)
    task = asking(asker)
    await unanswered(service)
    await asker.broker.aclose()
    assert (await task).kind is AnswerKind.LOST
    await service.aclose()


# Strangers


def _ask(reply_to: str | None, correlation: str | None = "1", **extra: object) -> commands.Basic.Properties:
    return commands.Basic.Properties(reply_to=reply_to, correlation_id=correlation, headers=dict(extra))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("reply_to", "correlation"),
    [(None, "1"), ("signalbus.dead", "1"), ("", "1"), ("amq.rabbitmq.reply-to.forged", None)],
)
async def test_a_request_that_cannot_be_answered_is_refused(
    brokers: Brokers, raw: AbstractChannel, reply_to: str | None, correlation: str | None
) -> None:
    responder = await brokers.join()
    service = await serve(responder)
    properties = _ask(reply_to, correlation)
    await raw.basic_publish(b"{}", routing_key=f"signalbus.r.{QUOTE}", properties=properties)
    await eventually(lambda: responder.broker.health().counters.get("requests_refused", 0) == 1)
    assert not service.got
    dead = await raw.queue_declare("signalbus.dead", passive=True)
    assert dead.message_count == 0
    assert (await responder.broker.request(signal(1, QUOTE), TIMEOUT)).kind is AnswerKind.REPLY
    await service.aclose()


async def test_a_stranger_is_answered_at_its_direct_address(brokers: Brokers, raw: AbstractChannel) -> None:
    service = await serve(await brokers.join())
    got: asyncio.Queue[DeliveredMessage] = asyncio.Queue()

    async def take(message: DeliveredMessage) -> None:
        got.put_nowait(message)

    await raw.basic_consume("amq.rabbitmq.reply-to", take, no_ack=True)
    properties = commands.Basic.Properties(reply_to="amq.rabbitmq.reply-to", correlation_id="7")
    await raw.basic_publish(b"hello", routing_key=f"signalbus.r.{QUOTE}", properties=properties)
    async with asyncio.timeout(TIMEOUT):
        message = await got.get()
    assert (message.body, message.header.properties.correlation_id) == (b"hello", "7")
    (request,) = service.got
    assert request.remaining > 3600
    await service.aclose()


async def test_foreign_and_malformed_replies_are_counted_and_the_true_one_counts(
    brokers: Brokers, raw: AbstractChannel
) -> None:
    asker, responder = await brokers.join(), await brokers.join()
    service = await serve(responder, never)
    task = asking(asker)
    (request,) = await unanswered(service)
    held = request.handle
    reply_to, correlation = held.reply_to, held.correlation  # type: ignore[attr-defined]
    for properties in (
        _ask(None, None),
        _ask(None, "somebody-else"),
        _ask(None, correlation),
        _ask(None, correlation, **{dialogue.ANSWER: "nonsense", dialogue.SESSION: "x"}),
        _ask(None, correlation, **{dialogue.ANSWER: 7, dialogue.SESSION: "x"}),
    ):
        await raw.basic_publish(b"forged", routing_key=reply_to, properties=properties)
    counters = asker.broker.health
    await eventually(lambda: counters().counters.get("replies_late", 0) == 2)
    await eventually(lambda: counters().counters.get("replies_refused", 0) == 3)
    assert not task.done()
    await service.responder.answer(request, echo(request))
    assert (await task).session == responder.id
    await service.aclose()


async def test_clocks_that_differ_do_not_shorten_or_stretch_a_deadline(
    brokers: Brokers, monkeypatch: pytest.MonkeyPatch
) -> None:
    member = await brokers.join()
    service = await serve(member)
    for offset in (0.0, 3600.0, -3600.0, 10 * 365 * 86400.0):
        real = time.time
        monkeypatch.setattr("signalbus.brokers.rabbitmq.calls.time.time", lambda real=real, by=offset: real() + by)
        answer = await member.broker.request(signal(1, QUOTE), 5)
        monkeypatch.undo()
        assert answer.kind is AnswerKind.REPLY
        assert 4 < service.got[-1].remaining <= 5
    await service.aclose()


async def test_many_unanswered_requests_leave_nothing(brokers: Brokers) -> None:
    asker, responder = await brokers.join(), await brokers.join()

    async def mostly(service: Responder, request: IncomingRequest) -> None:
        if not request.signal.body.endswith(b"99"):
            await echoes(service, request)

    service = await serve(responder, mostly, concurrency=100, backlog=5000)
    kinds: dict[AnswerKind, int] = {}
    for start in range(0, 1500, 500):
        requests = [asker.broker.request(signal(number, QUOTE), 4.0) for number in range(start, start + 500)]
        for answer in await asyncio.gather(*requests):
            kinds[answer.kind] = kinds.get(answer.kind, 0) + 1
        for request in service.got:
            await service.responder.answer(request, echo(request))
        service.got.clear()
    assert kinds == {AnswerKind.REPLY: 1485, AnswerKind.EXPIRED: 15}
    assert open_requests(asker) == 0
    await service.aclose()


async def test_a_broker_that_closes_while_asked_ends_everything(brokers: Brokers) -> None:
    broker = broker_for(brokers.url, FAST)
    await broker.open(session(), TIMEOUT)
    service = await serve(broker, never)
    task = asyncio.create_task(broker.request(signal(1, QUOTE), TIMEOUT))
    await unanswered(service)
    await broker.aclose()
    assert (await task).kind in (AnswerKind.LOST, AnswerKind.RESPONDER_DOWN)
    async with asyncio.timeout(TIMEOUT):
        await service.running


def test_a_remaining_time_is_believed_only_where_the_clock_agrees() -> None:
    now = datetime.now(UTC).timestamp()
    properties = dialogue.request(signal(1, QUOTE), "id", 5.0, now)
    headers = properties.headers
    assert headers is not None
    assert headers[dialogue.REMAINING] == 5000
    assert properties.expiration == "5000"


async def test_errors_of_the_broker_are_the_only_ones(brokers: Brokers, proxy: FaultProxy) -> None:
    asker, responder = await brokers.join(proxy.url_for(brokers.url)), await brokers.join()
    service = await serve(responder)
    stop = asyncio.get_running_loop().time() + 3

    async def ask() -> int:
        answered = 0
        while asyncio.get_running_loop().time() < stop:
            try:
                answer = await asker.broker.request(signal(1, QUOTE), 1.0)
            except BrokerError:
                await asyncio.sleep(0.01)
            else:
                answered += answer.kind is AnswerKind.REPLY
        return answered

    tasks = [asyncio.create_task(ask()) for _ in range(10)]
    for _ in range(4):
        await asyncio.sleep(0.6)
        proxy.cut()
    assert sum(await asyncio.gather(*tasks)) > 50
    assert open_requests(asker) == 0
    await service.aclose()

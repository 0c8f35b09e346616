"""Requests between processes: one answer each, and an honest one when there is no reply."""

from __future__ import annotations

import asyncio
import errno
import os
import signal as signals_
import socket
import statistics
import struct
import time
from collections import Counter
from collections.abc import Awaitable

import pytest

from signalbus.brokers.base import Answer, AnswerKind, IncomingRequest, Responder
from signalbus.brokers.sqlite import SqliteBroker, lines, requester
from signalbus.brokers.sqlite.frames import HELLO, Kind, frame, numbered, pack_request, write_answer, write_request
from signalbus.brokers.sqlite.peers import Peer as Asked
from signalbus.codec import EncodedSignal
from signalbus.errors import Backpressure, BrokerUnavailable, BusClosed, ConfigError, InvalidSignal, StorageError
from tests.brokers.sqlite.support import SECONDS, Peer, Place, Said, remove_sockets, reply, settled, signal, wait_until
from tests.leaks import open_descriptors
from tests.support import eventually

SOON = 1.0  # for what is answered at once; who waits for something waits ten times as long
SHORT = 0.5  # for a request that nobody answers, of a broker that knows who responds


def ask(data: object = "q") -> EncodedSignal:
    return signal(data, "ask")


async def _responding(place: Place, behaviour: str, *bounds: int) -> Peer:
    peer = place.peer("respond", behaviour, *bounds)
    assert await peer.line()
    return peer


async def _echo(responder: Responder) -> None:
    while received := await responder.receive():
        for request in received:
            await responder.answer(request, reply(request))


async def _next(responder: Responder) -> IncomingRequest:
    async with asyncio.timeout(SECONDS):
        (request,) = await responder.receive()
    return request


async def _timed(answering: Awaitable[Answer]) -> tuple[Answer, float]:
    begun = time.monotonic()
    return await answering, time.monotonic() - begun


async def _know(broker: SqliteBroker) -> None:
    """Have a broker learn who responds, as the first message does: a short request has no time for a slow disk."""
    await broker.send("nobody", b"")


def _address(broker: SqliteBroker) -> str:
    assert broker._desk is not None
    return broker._desk.address


# Replies


async def test_a_request_gets_the_reply_of_another_process_in_less_than_two_milliseconds(place: Place) -> None:
    """The median; nearer to 0.2 ms when nothing else runs."""
    broker = await place.open()
    await _responding(place, "echo")
    times: list[float] = []
    for number in range(300):
        request = ask(number)
        answer, seconds = await _timed(broker.request(request, SECONDS))
        assert (answer.kind, answer.body, answer.content_type) == ("reply", request.body, request.content_type)
        times.append(seconds)
    assert statistics.median(times) < 0.002, statistics.median(times)


async def test_an_answer_carries_kind_body_content_type_reason_and_who_gave_it(place: Place) -> None:
    broker, info = await place.entered()
    responder = await broker.respond("ask", 1, 0, SECONDS)
    for given in (
        Answer(AnswerKind.REPLY, b"\x00\xff", None),
        Answer(AnswerKind.FAILED, b"{}", "application/json", "", "it was Tuesday: \N{SNOWMAN}"),
        Answer(AnswerKind.RESPONDER_DOWN, b"", None, "", "not twice"),
    ):
        asking = asyncio.create_task(broker.request(ask(), SECONDS))
        request = await _next(responder)
        assert await responder.answer(request, given)
        answer = await asking
        assert answer == Answer(given.kind, given.body, given.content_type, info.id, given.reason)


async def test_the_whole_signal_arrives_with_the_time_that_is_left(place: Place) -> None:
    broker = await place.open()
    other = await place.open()
    responder = await other.respond("ask", 1, 10, SECONDS)
    sent = ask({"deep": [1, None, "\N{SNOWMAN}"]})
    asking = [asyncio.create_task(broker.request(sent, 5.0)) for _ in range(2)]
    first = await _next(responder)
    assert (first.signal, first.redelivered) == (sent, False)
    assert 4.0 < first.remaining <= 5.0
    await asyncio.sleep(0.5)
    await responder.answer(first, reply(first))
    second = await _next(responder)
    assert 3.5 < second.remaining <= 4.5, "what it has waited here is over"
    await responder.answer(second, reply(second))
    assert {answer.kind for answer in await asyncio.gather(*asking)} == {AnswerKind.REPLY}


async def test_a_thousand_requests_at_once_get_each_its_own_reply(place: Place) -> None:
    broker = await place.open()
    await _responding(place, "echo", 100, 2_000)
    requests = [ask(number) for number in range(1_000)]
    answers = await asyncio.gather(*(broker.request(request, 30.0) for request in requests))
    assert [answer.body for answer in answers] == [request.body for request in requests]


async def test_large_requests_and_replies_travel_whole_and_larger_ones_are_refused(place: Place) -> None:
    broker = await place.open()
    await _responding(place, "echo")
    large = EncodedSignal("id", "ask", {}, os.urandom(16 * 1024 * 1024), None)
    answers = await asyncio.gather(*(broker.request(large, 30.0) for _ in range(3)), broker.request(ask(), 30.0))
    assert [answer.body for answer in answers] == [large.body] * 3 + [ask().body]
    larger = EncodedSignal("id", "ask", {}, bytes(17 * 1024 * 1024), None)
    with pytest.raises(InvalidSignal, match="more than"):
        await broker.request(larger, SECONDS)


async def test_an_answer_that_is_too_large_can_be_given_again(place: Place) -> None:
    broker = await place.open()
    responder = await broker.respond("ask", 1, 0, SECONDS)
    asking = asyncio.create_task(broker.request(ask(), SECONDS))
    request = await _next(responder)
    with pytest.raises(InvalidSignal):
        await responder.answer(request, Answer(AnswerKind.REPLY, bytes(17 * 1024 * 1024)))
    assert await responder.answer(request, Answer(AnswerKind.FAILED, reason="too large"))
    assert (await asking).reason == "too large"


async def test_each_request_is_answered_once(place: Place) -> None:
    broker = await place.open()
    responder = await broker.respond("ask", 1, 0, SECONDS)
    asking = asyncio.create_task(broker.request(ask(), SECONDS))
    request = await _next(responder)
    assert await responder.answer(request, reply(request))
    assert not await responder.answer(request, reply(request))
    assert (await asking).kind is AnswerKind.REPLY


# Which responder


async def test_requests_are_spread_over_the_responders(place: Place) -> None:
    broker = await place.open()
    others = [await place.entered() for _ in range(3)]
    serving = [asyncio.create_task(_echo(await other.respond("ask", 10, 10, SECONDS))) for other, _ in others]
    counts = Counter([(await broker.request(ask(), SECONDS)).session for _ in range(30)])
    assert counts == {info.id: 10 for _, info in others}
    for other, _ in others:
        await other.aclose()
    await asyncio.gather(*serving)


async def test_the_responder_with_the_fewest_requests_of_ours_is_chosen(place: Place) -> None:
    broker = await place.open()
    await _responding(place, "hold")
    slow = asyncio.create_task(broker.request(ask("slow"), SECONDS))
    await eventually(lambda: broker._connected()._requester._outstanding == 1)
    other, info = await place.entered()
    serving = asyncio.create_task(_echo(await other.respond("ask", 10, 10, SECONDS)))
    await asyncio.sleep(1.1)  # what is known of responders is read again once it is a second old
    answers = [await broker.request(ask(), SECONDS) for _ in range(11)]
    assert Counter(answer.session for answer in answers)[info.id] >= 10
    slow.cancel()
    await other.aclose()
    await serving


async def test_a_second_responder_in_the_same_session_shares_the_work(place: Place) -> None:
    broker = await place.open()
    first = await broker.respond("ask", 1, 0, SECONDS)
    second = await broker.respond("ask", 1, 0, SECONDS)
    asking = [asyncio.create_task(broker.request(ask(number), SECONDS)) for number in range(2)]
    requests = [(first, await _next(first)), (second, await _next(second))]
    for responder, request in requests:
        await responder.answer(request, reply(request))
    assert {(await each).kind for each in asking} == {AnswerKind.REPLY}
    await first.aclose()
    asking = [asyncio.create_task(broker.request(ask(), SECONDS))]
    request = await _next(second)
    await second.answer(request, reply(request))
    assert (await asking[0]).kind is AnswerKind.REPLY


async def test_without_a_responder_that_is_said_at_once(place: Place) -> None:
    """Row 80."""
    broker = await place.open()
    times: list[float] = []
    for _ in range(20):
        answer, seconds = await _timed(broker.request(ask(), SECONDS))
        assert answer.kind is AnswerKind.NO_RESPONDER
        times.append(seconds)
    assert statistics.median(times) < 0.02


async def test_the_only_responder_was_just_killed_and_that_is_said_at_once(place: Place) -> None:
    broker = await place.open()
    times: list[float] = []
    for _ in range(5):
        peer = await _responding(place, "echo")
        assert (await broker.request(ask(), SECONDS)).kind is AnswerKind.REPLY
        peer.kill()
        answer, seconds = await _timed(broker.request(ask(), SECONDS))
        assert answer.kind in (AnswerKind.NO_RESPONDER, AnswerKind.RESPONDER_DOWN)
        times.append(seconds)
    assert statistics.median(times) < 0.02, times


async def test_a_responder_that_was_killed_is_replaced_by_the_next_one(place: Place) -> None:
    broker = await place.open()
    for number in range(3):
        peer = await _responding(place, "echo")
        assert (await broker.request(ask(number), SECONDS)).kind is AnswerKind.REPLY
        peer.kill()


# Deaths of responders


@pytest.mark.parametrize("behaviour", ["die", "hold"])
async def test_a_responder_killed_at_work_is_told_at_once(place: Place, behaviour: str) -> None:
    """Row 81: it received the request, and nobody else is there. The median of five: a busy machine has moments."""
    broker = await place.open()
    times: list[float] = []
    for _ in range(5):
        peer = await _responding(place, behaviour)
        asking = asyncio.create_task(broker.request(ask(), SECONDS))
        assert await peer.line() == 'got "q" False'
        begun = time.monotonic()
        if behaviour == "hold":
            peer.send(signals_.SIGKILL)
        assert (await asking).kind is AnswerKind.RESPONDER_DOWN
        times.append(time.monotonic() - begun)
        assert await peer.wait() != 0
    assert statistics.median(times) < 0.1, times
    assert broker._connected()._requester._outstanding == 0


async def test_what_a_killed_responder_had_is_sent_to_another_one_and_marked(place: Place) -> None:
    """Row 81."""
    broker = await place.open()
    first = await _responding(place, "hold")
    asking = [asyncio.create_task(broker.request(ask(), SECONDS)) for _ in range(5)]
    for _ in asking:
        assert await first.line() == 'got "q" False'
    second = await place.open()
    responder = await second.respond("ask", 10, 10, SECONDS)
    first.kill()
    received: list[IncomingRequest] = []
    async with asyncio.timeout(SECONDS):
        while len(received) < 5:
            received.extend(await responder.receive())
    assert all(request.redelivered for request in received)
    for request in received:
        await responder.answer(request, reply(request))
    assert {(await each).kind for each in asking} == {AnswerKind.REPLY}


async def test_a_responder_killed_after_its_answer_has_answered(place: Place) -> None:
    broker = await place.open()
    peer = await _responding(place, "answer_and_die")
    assert (await broker.request(ask(), SECONDS)).kind is AnswerKind.REPLY
    assert await peer.wait() != 0
    assert (await broker.request(ask(), SECONDS)).kind is AnswerKind.NO_RESPONDER


async def test_a_request_that_kills_every_responder_ends(place: Place) -> None:
    broker = await place.open()
    peers = [await _responding(place, "die") for _ in range(3)]
    assert (await broker.request(ask(), SECONDS)).kind is AnswerKind.RESPONDER_DOWN
    for peer in peers:
        assert await peer.wait() != 0  # a process that is just ending may still be connected to
    assert (await broker.request(ask(), SECONDS)).kind is AnswerKind.NO_RESPONDER


async def test_a_child_of_a_responder_keeps_no_requester_waiting(place: Place) -> None:
    """Row 75: it inherited the connection and the socket, and lives on."""
    broker = await place.open()
    peer = place.peer("fork_and_respond")
    assert await peer.line() == "ready"
    asking = asyncio.create_task(broker.request(ask(), SECONDS))
    assert await peer.line() == 'got "q" False'
    peer.tell()
    child = int(await peer.line())
    try:
        begun = time.monotonic()
        peer.kill()
        assert (await asking).kind is AnswerKind.RESPONDER_DOWN
        answer, _ = await _timed(broker.request(ask(), SECONDS))
        assert answer.kind is AnswerKind.NO_RESPONDER
        assert time.monotonic() - begun < SECONDS / 2, "nobody waits for the child"
    finally:
        os.kill(child, signals_.SIGKILL)


# Orderly ends


async def test_stopping_moves_what_nobody_has_begun_and_lets_the_rest_end(place: Place) -> None:
    broker = await place.open()
    other = await place.open()
    responder = await other.respond("ask", 1, 10, SECONDS)
    asking = [asyncio.create_task(broker.request(ask(number), SECONDS)) for number in range(3)]
    request = await _next(responder)
    await responder.stop()
    await responder.stop()
    assert await responder.receive() == ()
    done, running = await asyncio.wait(asking, return_when=asyncio.ALL_COMPLETED, timeout=0.5)
    assert [task.result().kind for task in done] == [AnswerKind.MOVED] * 2
    assert (await broker.request(ask(), SECONDS)).kind is AnswerKind.NO_RESPONDER
    assert await responder.answer(request, reply(request))
    (last,) = running
    assert (await last).kind is AnswerKind.REPLY


async def test_moved_requests_find_the_other_responder_at_the_next_try(place: Place) -> None:
    broker = await place.open()
    leaving = await place.open()
    responder = await leaving.respond("ask", 1, 10, SECONDS)
    asking = [asyncio.create_task(broker.request(ask(), SECONDS)) for _ in range(2)]
    held = await _next(responder)
    await _responding(place, "echo")
    await responder.stop()
    done, _ = await asyncio.wait(asking, return_when=asyncio.FIRST_COMPLETED)
    assert [task.result().kind for task in done] == [AnswerKind.MOVED]
    assert (await broker.request(ask(), SECONDS)).kind is AnswerKind.REPLY
    await responder.answer(held, reply(held))


@pytest.mark.parametrize("whole", [False, True])
async def test_closing_leaves_what_is_unanswered_to_others(place: Place, whole: bool) -> None:
    """Only the responder is closed, or the whole bus."""
    broker = await place.open()
    other = await place.open()
    responder = await other.respond("ask", 1, 10, SECONDS)
    asking = asyncio.create_task(broker.request(ask(), SECONDS))
    request = await _next(responder)
    await _responding(place, "echo")
    await (other.aclose() if whole else responder.aclose())
    assert (await asking).kind is AnswerKind.REPLY
    assert not await responder.answer(request, reply(request))
    await responder.aclose()


async def test_closing_the_requester_ends_its_requests(place: Place) -> None:
    broker = await place.open()
    await _responding(place, "hold")
    asking = [asyncio.create_task(broker.request(ask(), SECONDS)) for _ in range(10)]
    await eventually(lambda: broker._connected()._requester._outstanding == 10)
    await asyncio.sleep(0.1)
    begun = time.monotonic()
    await broker.aclose()
    assert [(await each).kind for each in asking] == [AnswerKind.LOST] * 10
    assert time.monotonic() - begun < 2.0
    with pytest.raises(BusClosed):
        await broker.request(ask(), SECONDS)
    with pytest.raises(BusClosed):
        await broker.respond("ask", 1, 1, SECONDS)


# Deadlines and bounds


async def test_no_answer_before_the_deadline_is_said_and_a_late_one_counted(place: Place) -> None:
    """Row 82."""
    broker = await place.open()
    peer = await _responding(place, "hold")
    await _know(broker)
    asking = asyncio.create_task(_timed(broker.request(ask(), 2.0)))
    assert await peer.line() == 'got "q" False'
    answer, seconds = await asking
    assert answer.kind is AnswerKind.EXPIRED
    assert 1.99 < seconds < 4.0
    peer.tell("answer")
    assert await peer.line() == "answered True"
    await eventually(lambda: broker.health().counters.get("replies_late") == 1)
    assert (await broker.request(ask(), SHORT)).kind is AnswerKind.EXPIRED


async def test_an_answer_that_came_while_our_own_event_loop_was_away_counts() -> None:
    """It finds both at once, the answer and that the time is over."""
    here, there = socket.socketpair()
    here.setblocking(False)
    counters: Counter[str] = Counter()
    peer = Asked(here, counters)
    await peer.line.call()
    there.sendall(frame(Kind.HELLO, HELLO))
    loop = asyncio.get_running_loop()
    assert await peer.line.drain(loop.time() + SECONDS)
    answered = asyncio.create_task(peer.request(pack_request(ask()), loop.time() + SHORT, redelivered=False))
    reported = asyncio.create_task(peer.ask(SHORT))
    silent = asyncio.create_task(peer.ask(SHORT))
    await asyncio.sleep(0)
    there.sendall(write_answer(1, Answer(AnswerKind.REPLY, b"yes")) + numbered(Kind.REPORT, 2, b"well"))
    time.sleep(2 * SHORT)  # noqa: ASYNC251 - what a bad handler does
    assert await answered == Answer(AnswerKind.REPLY, b"yes")
    assert await reported == b"well"
    assert await silent is None
    assert peer.idle
    assert not counters["replies_late"]
    there.close()
    await peer.line.wait_closed(SECONDS)


async def test_what_has_expired_is_not_handed_out(place: Place) -> None:
    broker = await place.open()
    other = await place.open()
    responder = await other.respond("ask", 1, 10, SECONDS)
    await _know(broker)
    assert (await broker.request(ask("late"), SHORT)).kind is AnswerKind.EXPIRED
    asking = asyncio.create_task(broker.request(ask("in time"), SECONDS))
    request = await _next(responder)
    assert request.signal.body == b'"in time"'
    await responder.answer(request, reply(request))
    await asking


async def test_what_expired_while_the_responder_was_stopped_is_not_handed_out(place: Place) -> None:
    broker = await place.open()
    peer = await _responding(place, "hold")
    first = asyncio.create_task(broker.request(ask("first"), SECONDS))
    assert await peer.line() == 'got "first" False'
    first.cancel()
    await peer.stop()
    assert (await broker.request(ask("stopped"), SHORT)).kind is AnswerKind.EXPIRED
    peer.send(signals_.SIGCONT)
    asking = asyncio.create_task(broker.request(ask("last"), SECONDS))
    assert await peer.line() == 'got "last" False'
    asking.cancel()


async def test_more_than_the_backlog_is_refused_at_once_and_others_are_tried(place: Place) -> None:
    broker = await place.open()
    other = await place.open()
    responder = await other.respond("ask", 2, 3, SECONDS)
    asking = [asyncio.create_task(broker.request(ask(), SECONDS)) for _ in range(5)]
    held = list(await responder.receive())
    if len(held) < 2:
        held.extend(await responder.receive())
    assert len(held) == 2, "as many as are run at a time"
    await eventually(lambda: len(responder._waiting) == 3)
    answer, seconds = await _timed(broker.request(ask(), SECONDS))
    assert answer.kind is AnswerKind.OVERLOADED
    assert seconds < SOON
    await _responding(place, "echo")
    assert (await broker.request(ask(), SECONDS)).kind is AnswerKind.REPLY
    for request in held:
        await responder.answer(request, reply(request))
    serving = asyncio.create_task(_echo(responder))
    assert {(await each).kind for each in asking} == {AnswerKind.REPLY}
    await other.aclose()
    await serving


async def test_expired_requests_take_no_room(place: Place) -> None:
    broker = await place.open()
    responder = await broker.respond("ask", 1, 1, SECONDS)
    await _know(broker)
    for _ in range(2):
        assert (await broker.request(ask(), SHORT)).kind is AnswerKind.EXPIRED
    asking = asyncio.create_task(broker.request(ask(), SECONDS))
    request = await _next(responder)
    await responder.answer(request, reply(request))
    assert (await asking).kind is AnswerKind.REPLY


async def test_a_stopped_responder_blocks_nobody_and_fills_no_memory(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIGSTOP: what it does not read waits at its senders, within a bound, until their deadlines."""
    monkeypatch.setattr(lines, "_BUFFER_BYTES", 256 * 1024)
    broker = await place.open()
    stopped = await _responding(place, "echo")
    assert (await broker.request(ask(), SECONDS)).kind is AnswerKind.REPLY
    await stopped.stop()
    large = EncodedSignal("id", "ask", {}, bytes(512 * 1024), None)
    asking = [asyncio.create_task(broker.request(large, 1.0)) for _ in range(50)]
    await asyncio.sleep(0.2)
    (peer,) = broker._connected()._requester._peers.values()
    assert peer.line._transport is not None
    assert peer.line._transport.get_write_buffer_size() < 1024 * 1024
    answering, begun = await _responding(place, "echo"), time.monotonic()
    assert {(await each).kind for each in asking} == {AnswerKind.EXPIRED}
    answer, seconds = await _timed(broker.request(ask(), SECONDS))
    assert answer.kind is AnswerKind.REPLY
    assert seconds < SOON
    assert time.monotonic() - begun < 5.0
    answering.kill()
    begun = time.monotonic()
    await broker.aclose()
    assert time.monotonic() - begun < 3.0, "the stopped one does not keep us from closing"


async def test_a_stopped_requester_blocks_no_other_one(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes no answers: they wait until they are worth nothing, and nothing more of it is read."""
    broker = await place.open()
    responder = await broker.respond("ask", 100, 100, SECONDS)
    foreign = _connect(broker)
    packed = pack_request(ask())
    for number in range(3):
        foreign.sendall(write_request(number, 1_000, time.monotonic_ns() // 1_000_000, False, packed))
    requests: list[IncomingRequest] = []
    while len(requests) < 3:
        requests.extend(await responder.receive())
    huge = Answer(AnswerKind.REPLY, bytes(4 * 1024 * 1024))
    assert await responder.answer(requests[0], huge)
    late = asyncio.create_task(responder.answer(requests[1], huge))
    serving = asyncio.create_task(_echo(responder))
    for _ in range(10):
        answer, seconds = await _timed(broker.request(ask(), SECONDS))
        assert (answer.kind, seconds < SOON) == (AnswerKind.REPLY, True)
    assert await late is False
    foreign.close()
    assert await responder.answer(requests[2], huge) is False
    await broker.aclose()
    await serving


async def test_more_requests_than_can_be_kept_are_refused(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requester, "_OUTSTANDING", 3)
    broker = await place.open()
    await _responding(place, "hold")
    await _know(broker)
    asking = [asyncio.create_task(broker.request(ask(), SHORT)) for _ in range(3)]
    await asyncio.sleep(0)
    with pytest.raises(Backpressure):
        await broker.request(ask(), SECONDS)
    assert {(await each).kind for each in asking} == {AnswerKind.EXPIRED}


async def test_cancelled_requests_leave_nothing_behind(place: Place) -> None:
    """Row 85."""
    broker = await place.open()
    await _responding(place, "hold")
    asking = [asyncio.create_task(broker.request(ask(), SECONDS)) for _ in range(100)]
    await eventually(lambda: broker._connected()._requester._outstanding == 100)
    await asyncio.sleep(0.1)
    for each in asking:
        each.cancel()
    await asyncio.wait(asking)
    assert broker._connected()._requester._outstanding == 0
    assert all(peer.idle for peer in broker._connected()._requester._peers.values())


async def test_settings_that_cannot_work_are_refused(place: Place) -> None:
    broker = await place.open()
    for concurrency, backlog in ((0, 1), (1, -1)):
        with pytest.raises(ConfigError):
            await broker.respond("ask", concurrency, backlog, SECONDS)


async def test_responding_while_the_database_is_held_gives_up_and_leaves_nothing(place: Place) -> None:
    broker = await place.open()
    peer = place.peer("lock")
    assert await peer.line() == "locked"
    with pytest.raises(BrokerUnavailable):
        await broker.respond("ask", 1, 1, 0.3)
    peer.tell()
    assert await peer.line() == "released"
    await eventually(lambda: not broker._connected()._reception._responders)
    assert (await broker.request(ask(), SECONDS)).kind is AnswerKind.NO_RESPONDER


async def test_requests_go_on_while_the_database_is_held(place: Place) -> None:
    """Row 67: they do not need it once it is known who responds."""
    broker = await place.open()
    await _responding(place, "echo")
    assert (await broker.request(ask(), SECONDS)).kind is AnswerKind.REPLY
    peer = place.peer("lock")
    assert await peer.line() == "locked"
    begun = time.monotonic()
    while time.monotonic() - begun < 1.5:  # until what is known is old
        answer, seconds = await _timed(broker.request(ask(), SECONDS))
        assert (answer.kind, seconds < SOON) == (AnswerKind.REPLY, True)
    peer.tell()


# Deaths of requesters


async def test_a_requester_killed_while_it_waits_leaves_nothing_behind(place: Place) -> None:
    """Row 83."""
    broker = await place.open()
    responder = await broker.respond("ask", 1, 10, SECONDS)
    peers = [place.peer("ask", 30) for _ in range(2)]
    for peer in peers:
        assert await peer.line() == "asking"
    request = await _next(responder)
    await eventually(lambda: len(responder._waiting) == 1)
    for peer in peers:
        peer.kill()
    await eventually(lambda: not responder._waiting, message="the one that nobody waits for to be dropped")
    assert await responder.answer(request, reply(request)) is False
    asking = asyncio.create_task(broker.request(ask(), SECONDS))
    request = await _next(responder)
    assert await responder.answer(request, reply(request))
    assert (await asking).kind is AnswerKind.REPLY


async def test_requesters_and_responders_killed_again_and_again_lose_no_answer(place: Place) -> None:
    """Everybody who is not killed gets an answer to each request, though responders come and go."""
    broker = await place.open()
    kinds: Counter[AnswerKind] = Counter()
    ending = asyncio.Event()

    async def keep_asking(number: int) -> None:
        while not ending.is_set():
            answer = await broker.request(ask(number), SECONDS)
            kinds[answer.kind] += 1
            await asyncio.sleep(0)

    responders = [await _responding(place, "echo") for _ in range(2)]
    asking = [asyncio.create_task(keep_asking(number)) for number in range(20)]
    for _ in range(4):
        other = place.peer("flood", 30)
        assert await other.line() == "ready"
        other.tell()
        fresh = await _responding(place, "echo")
        responders.pop(0).kill()
        responders.append(fresh)
        other.kill()
    ending.set()
    async with asyncio.timeout(SECONDS):
        await asyncio.gather(*asking)
    assert kinds[AnswerKind.REPLY] > 100
    assert set(kinds) <= {AnswerKind.REPLY, AnswerKind.RESPONDER_DOWN}, kinds
    assert kinds[AnswerKind.RESPONDER_DOWN] == 0, "there was always another one"


# Foreign clients and missing sockets


def _connect(broker: SqliteBroker, *, greet: bool = True) -> socket.socket:
    foreign = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    foreign.settimeout(SECONDS)
    foreign.connect(_address(broker))
    if greet:
        foreign.sendall(frame(Kind.HELLO, HELLO))
    return foreign


_PACKED = pack_request(ask())
_REQUEST = write_request(1, 1_000, 0, False, _PACKED)
_MALFORMED = {
    "no greeting": (False, _REQUEST),
    "another greeting": (False, frame(Kind.HELLO, b"signalbus 0")),
    "a web browser": (False, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n" * 10),
    "a long greeting": (False, struct.pack(">IB", 1_000, 0) + bytes(999)),
    "an empty frame": (True, struct.pack(">I", 0) + b"\0"),
    "four gigabytes": (True, struct.pack(">IB", 0xFFFFFFFF, 1)),
    "an unknown kind": (True, frame(Kind.HELLO, HELLO).replace(b"\x00\x00signal", b"\x00\x63signal")),
    "an answer": (True, write_answer(1, Answer(AnswerKind.REPLY))),
    "a report": (True, numbered(Kind.REPORT, 1)),
    "a request cut off": (True, frame(Kind.REQUEST, b"1234")),
    "a head beyond the end": (True, frame(Kind.REQUEST, struct.pack(">QQQBI", 1, 1, 1, 0, 9_999), b"[]")),
    "a head that is no JSON": (True, write_request(1, 1, 1, False, (b"{nope", b""))),
    "a head of another shape": (True, write_request(1, 1, 1, False, (b'["id", "ask", null, {}, 1]', b""))),
    "headers of another type": (True, write_request(1, 1, 1, False, (b'["id", "ask", null, {"a": []}]', b""))),
    "a question without its number": (True, frame(Kind.ASK, b"1")),
}


@pytest.mark.parametrize("what", _MALFORMED)
async def test_malformed_frames_close_that_connection_only_and_are_counted(place: Place, what: str) -> None:
    """Row 58."""
    greet, content = _MALFORMED[what]
    broker = await place.open()
    responder = await broker.respond("ask", 10, 10, SECONDS)
    serving = asyncio.create_task(_echo(responder))
    assert (await broker.request(ask(), SECONDS)).kind is AnswerKind.REPLY
    foreign = _connect(broker, greet=greet)
    foreign.sendall(content)
    await asyncio.to_thread(_read_to_the_end, foreign)
    foreign.close()
    await eventually(lambda: broker.health().counters.get("frames_malformed") == 1)
    assert (await broker.request(ask(), SECONDS)).kind is AnswerKind.REPLY
    await responder.aclose()
    await serving


def _read_to_the_end(foreign: socket.socket) -> None:
    try:
        while foreign.recv(1_000):
            pass
    except ConnectionResetError:
        pass


async def test_a_connection_that_nobody_greets_carries_no_request(place: Place) -> None:
    """A process that ends, or is stopped, may still be connected to: then it is certain that nothing has run."""
    broker, other = await place.open(), await place.open()
    await other.respond("ask", 10, 10, SECONDS)
    listener = other._connected()._listener
    assert listener is not None
    asyncio.get_running_loop().remove_reader(listener._end)
    await _know(broker)
    answer, seconds = await _timed(broker.request(ask(), SHORT))
    assert (answer.kind, seconds < SHORT + 2.0) == (AnswerKind.EXPIRED, True)
    assert "not sent" in answer.reason
    asking = asyncio.create_task(broker.request(ask(), SECONDS))
    await eventually(lambda: broker._connected()._requester._outstanding == 1)
    listener._stop()  # with the connection that it has not accepted
    answer, seconds = await _timed(asking)
    assert (answer.kind, seconds < SECONDS / 2) == (AnswerKind.NO_RESPONDER, True)


async def test_frames_may_be_cut_anywhere(place: Place) -> None:
    broker = await place.open()
    serving = asyncio.create_task(_echo(await broker.respond("ask", 10, 10, SECONDS)))
    foreign = _connect(broker, greet=False)
    now = time.monotonic_ns() // 1_000_000
    for byte in frame(Kind.HELLO, HELLO) + write_request(7, 5_000, now, False, pack_request(ask())):
        foreign.sendall(bytes([byte]))
        await asyncio.sleep(0)
    greeting = frame(Kind.HELLO, HELLO)
    answer = b""
    while not answer.endswith(ask().body):
        answer += await asyncio.to_thread(foreign.recv, 10_000)
    assert answer.startswith(greeting)
    assert answer[len(greeting) + 4] == Kind.ANSWER
    foreign.close()
    await broker.aclose()
    await serving


async def test_malformed_and_unknown_answers_harm_no_other_request(place: Place) -> None:
    """Row 82: a responder that answers twice, what was never asked, and then nonsense."""
    broker = await place.open()
    imposter = await place.open()
    await imposter.respond("ask", 10, 10, SECONDS)
    await _know(broker)
    assert (await broker.request(ask(), SHORT)).kind is AnswerKind.EXPIRED
    exchange = imposter._connected()
    assert exchange._listener is not None
    lines_of_imposter = exchange._listener._lines
    await eventually(lambda: len(lines_of_imposter) == 1)
    (line,) = lines_of_imposter
    for number in (77, 78, 1):
        line.write(write_answer(number, Answer(AnswerKind.REPLY)))
    await eventually(lambda: broker.health().counters.get("replies_late") == 3)
    asking = asyncio.create_task(broker.request(ask(), SECONDS))
    await eventually(lambda: broker._connected()._requester._outstanding == 1)
    line.write(frame(Kind.ANSWER, struct.pack(">QI", 2, 4), b"nope"))
    assert (await asking).kind is AnswerKind.RESPONDER_DOWN
    assert broker.health().counters["frames_malformed"] == 1
    serving = await _responding(place, "echo")
    await imposter.aclose()
    assert (await broker.request(ask(), SECONDS)).kind is AnswerKind.REPLY
    serving.kill()


async def test_a_removed_socket_is_said_honestly_and_made_again(place: Place) -> None:
    broker = await place.open()
    other = await place.open()
    serving = asyncio.create_task(_echo(await other.respond("ask", 10, 10, SECONDS)))
    remove_sockets(await settled(other))
    answer, seconds = await _timed(broker.request(ask(), SECONDS))
    assert answer.kind is AnswerKind.NO_RESPONDER
    assert seconds < SOON

    async def reached() -> bool:
        return (await broker.request(ask(), SECONDS)).kind is AnswerKind.REPLY

    await wait_until(reached, 5.0)
    await other.aclose()
    await serving


async def test_a_removed_socket_does_not_end_the_connections_there_are(place: Place) -> None:
    broker, other = await place.open(), await place.open()
    serving = asyncio.create_task(_echo(await other.respond("ask", 10, 10, SECONDS)))
    assert (await broker.request(ask(), SECONDS)).kind is AnswerKind.REPLY
    remove_sockets(await settled(other))
    assert (await broker.request(ask(), SECONDS)).kind is AnswerKind.REPLY
    await other.aclose()
    await serving


async def test_without_sockets_nobody_can_respond_and_that_is_said(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signalbus.brokers.sqlite.writer.bind", lambda *_: None)
    broker = await place.open()
    with pytest.raises(StorageError, match="no socket"):
        await broker.respond("ask", 1, 1, SECONDS)
    assert (await broker.request(ask(), SECONDS)).kind is AnswerKind.NO_RESPONDER
    assert len(await broker.sessions(SECONDS)) == 1


async def test_a_responder_taken_for_dead_responds_on(place: Place) -> None:
    """Fenced and registered again, with its duties and at the same address."""
    host = Said()
    broker, _ = await place.entered(host=host)
    serving = asyncio.create_task(_echo(await broker.respond("ask", 10, 10, SECONDS)))
    assert broker._desk is not None
    assert broker._desk.lock is not None
    (place.sessions / f"{broker._desk.lock.token}.lock").unlink()
    other = await place.open()  # opening looks after the dead

    async def reached() -> bool:
        return (await other.request(ask(), SECONDS)).kind is AnswerKind.REPLY

    await wait_until(reached, 5.0)
    answer = await other.request(ask(), SECONDS)
    assert [renewed.id for renewed in host.incarnations] == [answer.session]
    await broker.aclose()
    await serving


async def test_a_process_out_of_files_accepts_connections_once_it_has_some_again(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row 24."""
    monkeypatch.setattr(lines, "_ACCEPT_AGAIN_SECONDS", 0.2)
    broker, other = await place.open(), await place.open()
    serving = asyncio.create_task(_echo(await other.respond("ask", 10, 10, SECONDS)))
    listener = other._connected()._listener
    assert listener is not None
    accept, refused = listener._accept_one, 0

    def refuse_twice() -> socket.socket:
        nonlocal refused
        refused += 1
        if refused <= 2:
            raise OSError(errno.EMFILE, "Too many open files")
        return accept()

    monkeypatch.setattr(listener, "_accept_one", refuse_twice)
    answer, seconds = await _timed(broker.request(ask(), SECONDS))
    assert answer.kind is AnswerKind.REPLY
    assert 0.3 < seconds < 3.0
    assert refused > 2
    await other.aclose()
    await serving


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")  # Python 3.12: we have threads
async def test_a_forked_child_neither_uses_nor_ends_its_parents_connections(place: Place) -> None:
    """Row 75."""
    broker = await place.open()
    peer = await _responding(place, "hold")
    responder = await broker.respond("tell", 1, 1, SECONDS)
    asking = asyncio.create_task(broker.request(ask(), SECONDS))
    assert await peer.line() == 'got "q" False'
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if _is_refused(broker) else 2
        finally:
            os._exit(code)
    _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
    peer.tell("answer")
    assert (await asking).kind is AnswerKind.REPLY
    telling = asyncio.create_task(broker.request(signal("x", "tell"), SECONDS))
    request = await _next(responder)
    await responder.answer(request, reply(request))
    assert (await telling).kind is AnswerKind.REPLY


def _is_refused(broker: SqliteBroker) -> bool:
    async def refused() -> bool:
        calls = (
            broker.request(ask(), SECONDS),
            broker.watch("x", SECONDS),
            broker.sessions(SECONDS),
            broker.send("x", b"x"),
            broker.respond("ask", 1, 1, SECONDS),
        )
        errors = await asyncio.gather(*calls, return_exceptions=True)
        await broker.aclose()
        return all(isinstance(error, ConfigError) for error in errors)

    return asyncio.new_event_loop().run_until_complete(refused())


# Leaks


async def test_three_hundred_cycles_leave_no_files_rows_descriptors_or_tasks(place: Place) -> None:
    keeper = await place.open(durability="normal")
    before, files = open_descriptors(), set(place.sessions.iterdir())
    for number in range(300):
        broker, info = await place.entered(durability="normal")
        future = await keeper.watch(info.id, SECONDS)
        responder = await broker.respond("ask", 1, 1, SECONDS)
        asking = asyncio.create_task(keeper.request(ask(number), SECONDS))
        request = await _next(responder)
        await responder.answer(request, reply(request))
        assert (await asking).kind is AnswerKind.REPLY
        await broker.aclose()
        async with asyncio.timeout(SECONDS):
            assert (await future).reason == "normal"
    await eventually(lambda: set(place.sessions.iterdir()) == files, message="only the keeper's files")
    # SQLite itself keeps a file open for as long as another connection of the process has it locked.
    left = {target for _, target in open_descriptors() - before if not target.startswith(str(place.path))}
    assert not left
    assert len(await keeper.sessions(SECONDS)) == 1
    assert keeper._connected()._requester._outstanding == 0
    await keeper.aclose()
    with place.raw() as connection:
        for table in ("sessions", "responders", "consumers", "claimed"):
            assert connection.execute(f"SELECT count(*) FROM {table}").fetchone() == (0,), table

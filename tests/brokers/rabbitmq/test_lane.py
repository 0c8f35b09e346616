"""The fast lane against pamqp, which is the oracle: the same bytes, the same messages, the same for the driver."""

from __future__ import annotations

import asyncio
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from itertools import pairwise
from types import SimpleNamespace
from typing import Any

import pytest
from aiormq.abc import AbstractChannel
from aiormq.channel import Channel
from aiormq.exceptions import InvalidFrameError
from hypothesis import given, settings
from hypothesis import strategies as st
from pamqp import commands, frame
from pamqp.body import ContentBody
from pamqp.frame import FrameTypes
from pamqp.header import ContentHeader
from pamqp.heartbeat import Heartbeat

from signalbus.brokers.base import CONFIRMED, RETURNED, PublishResult
from signalbus.brokers.rabbitmq import tolerant, wire
from signalbus.brokers.rabbitmq.confirms import REFUSED, Confirmation, LaneConfirms, Lost
from signalbus.brokers.rabbitmq.deadlines import LATE
from signalbus.brokers.rabbitmq.driver import BURST_BYTES, DriverFailure, FrameWriter
from signalbus.brokers.rabbitmq.lane import LaneReader, Persistent, Received, Track, publication
from signalbus.brokers.rabbitmq.lane.decoding import of_header, read_header
from signalbus.codec import decode, encode
from signalbus.signals import Signal
from tests.brokers.rabbitmq.conftest import FAST, TIMEOUT, Brokers, publish, receive, signal
from tests.support import eventually

MINE, OTHER = 7, 9  # a marked channel, and one that is left to the driver
CONSUMER = "signalbus-1"
FAIL = "a routing key that makes a consumer fail"
HEARTBEAT = frame.marshal(Heartbeat(), 0)
LIMIT = 50  # bytes of a body in one frame: a few make a message of several

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
values = st.recursive(
    st.none()
    | texts
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(width=32)
    | st.binary(max_size=9).map(bytearray)
    | st.datetimes(datetime(1970, 1, 2), datetime(2105, 1, 1)).map(lambda time: time.replace(tzinfo=UTC)),  # noqa: DTZ001
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=6,
)
# Sorted as pamqp writes them, so that bytes can be compared.
tables = st.dictionaries(texts, values, max_size=6).map(lambda table: dict(sorted(table.items())))
times = st.datetimes(datetime(1970, 1, 2), datetime(2200, 1, 1))  # noqa: DTZ001 - some without a zone
properties = st.builds(
    commands.Basic.Properties,
    **{
        name: st.none() | texts
        for name in (
            "content_type",
            "content_encoding",
            "correlation_id",
            "reply_to",
            "expiration",
            "message_id",
            "message_type",
            "user_id",
            "app_id",
        )
    },
    headers=st.none() | tables,
    delivery_mode=st.sampled_from([None, 1, 2]),
    priority=st.none() | st.integers(0, 255),
    timestamp=st.none() | times | times.map(lambda time: time.replace(tzinfo=UTC)),
)
ours = st.builds(
    commands.Basic.Properties,
    content_type=st.none() | texts,
    headers=st.dictionaries(texts, texts | st.booleans() | st.integers(-(2**63), 2**63 - 1), max_size=6),
    delivery_mode=st.just(2),
    correlation_id=st.none() | texts,
    reply_to=st.none() | texts,
    expiration=st.none() | texts,
    message_id=st.none() | texts,
    message_type=st.none() | texts,
    timestamp=times,
)
bodies = st.binary(max_size=3 * LIMIT)


def content(found: commands.Basic.Properties, body: bytes) -> list[FrameTypes]:
    """Return header and bodies of a message."""
    parts = [body[start : start + LIMIT] for start in range(0, len(body), LIMIT)]
    return [ContentHeader(body_size=len(body), properties=found), *map(ContentBody, parts)]


def encoded(frames: Sequence[FrameTypes], channel: int = MINE) -> bytes:
    return b"".join(frame.marshal(each, channel) for each in frames)


# Encoding


@given(properties | ours, bodies, texts.filter(lambda key: len(key.encode()) < 100), st.booleans())
def test_a_publish_has_the_bytes_of_the_generic_encoder(
    found: commands.Basic.Properties, body: bytes, key: str, mandatory: bool
) -> None:
    if found.headers is not None:
        found.headers = dict(sorted(found.headers.items()))
    method = commands.Basic.Publish(exchange="signals", routing_key=key, mandatory=mandatory)
    assert publication(MINE, LIMIT, "signals", key, mandatory, found, body) == encoded([method, *content(found, body)])


persistent = st.builds(
    Persistent,
    headers=st.dictionaries(texts, texts | st.booleans() | st.integers(-(2**63), 2**63 - 1), max_size=6),
    content_type=st.none() | texts,
    message_id=texts,
    seconds=st.integers(0, 2**32 - 1),
    message_type=texts,
)


@given(persistent, bodies)
def test_a_persistent_message_has_the_bytes_of_the_generic_encoder(found: Persistent, body: bytes) -> None:
    found = found._replace(headers=dict(sorted(found.headers.items())))
    method = commands.Basic.Publish(exchange="signals", routing_key="a.b", mandatory=True)
    frames = publication(MINE, LIMIT, "signals", "a.b", True, found, body)
    assert frames == encoded([method, *content(found.generic(), body)])


@pytest.mark.parametrize(
    "bad",
    [
        {"message_id": "x" * 256},
        {"content_type": "é" * 128},
        {"message_type": "x" * 256},
        {"headers": {"n": 2**63}},
        {"headers": {"o": object()}},
        {"headers": {"s": "\ud800"}},
        {"headers": {"\ud800": "s"}},
        {"message_id": "\ud800"},
    ],
)
def test_what_cannot_be_encoded_is_an_error_that_publishing_expects(bad: dict[str, Any]) -> None:
    with pytest.raises((TypeError, ValueError, OverflowError)):
        publication(MINE, LIMIT, "signals", "a.b", True, commands.Basic.Properties(**bad), b"")


def test_a_header_name_beyond_128_bytes_is_cut_as_the_generic_encoder_cuts_it() -> None:
    found = commands.Basic.Properties(headers={"é" * 100: "1"})
    expected = encoded([commands.Basic.Publish(exchange="x", routing_key="k", mandatory=True), *content(found, b"")])
    assert publication(MINE, LIMIT, "x", "k", True, found, b"") == expected


# Decoding


def by_pamqp(payload: bytes) -> object:
    header = ContentHeader()
    header.unmarshal(payload)
    return of_header(header)


@given(properties | ours)
def test_properties_are_read_as_the_generic_decoder_reads_them(found: commands.Basic.Properties) -> None:
    payload = ContentHeader(properties=found).marshal()
    # By representation, since NaN equals nothing.
    assert repr(read_header(payload)) == repr(by_pamqp(payload))


@given(ours | properties, st.data())
def test_broken_properties_are_read_as_the_tolerant_decoder_reads_them(
    found: commands.Basic.Properties, data: st.DataObject
) -> None:
    tolerant.install()
    payload = bytearray(ContentHeader(properties=found).marshal())
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(12, len(payload) - 1))] = data.draw(st.integers(0, 255))
    broken = bytes(payload[: data.draw(st.integers(14, len(payload)))])
    assert repr(read_header(broken)) == repr(by_pamqp(broken))


# The stream


@dataclass
class Endpoint:
    """A reader with one marked channel, and what came out of it."""

    reader: LaneReader
    delivered: list[tuple[Any, ...]] = field(default_factory=list[tuple[Any, ...]])
    confirmed: list[tuple[int, bool, bool]] = field(default_factory=list[tuple[int, bool, bool]])
    returned: list[str | None] = field(default_factory=list[str | None])
    ended: int = 0

    def mark(self, channel: int = MINE) -> None:
        track = Track(
            confirm=lambda tag, multiple, stored: self.confirmed.append((tag, multiple, stored)),
            returned=lambda message: self.returned.append(message.properties.message_id),
            ended=self._end,
        )
        track.listen(CONSUMER, self._deliver)
        self.reader.mark(channel, track)

    def _deliver(self, message: Received) -> None:
        if message.routing_key == FAIL:
            raise RuntimeError("as told")
        self.delivered.append((message.tag, message.redelivered, message.routing_key, message.properties, message.body))

    def _end(self) -> None:
        self.ended += 1

    def feed(self, data: bytes, cuts: Sequence[int] = ()) -> None:
        """Feed the stream in pieces that end at ``cuts``."""
        edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
        for start, end in pairwise(edges):
            self.reader.feed_data(data[start:end])

    async def for_driver(self) -> bytes:
        """Return what was left to the driver, at the end of the stream."""
        self.reader.feed_eof()
        return await self.reader.read()


def endpoint(*, marked: bool = True, beat: float = math.inf) -> Endpoint:
    made = Endpoint(LaneReader(asyncio.get_event_loop(), beat))
    if marked:
        made.mark()
    return made


def run(check: Callable[[], Any]) -> None:
    """Run a coroutine function within a synchronous property."""
    asyncio.run(check())


@dataclass
class Step:
    """Some frames, and what is to become of them."""

    data: bytes
    for_driver: bytes = b""
    delivered: tuple[Any, ...] | None = None
    confirmed: tuple[int, bool, bool] | None = None
    returned: tuple[str | None] | None = None


def left_alone(data: bytes) -> Step:
    return Step(data, for_driver=data)


def delivery(tag: int, redelivered: bool, key: str, found: commands.Basic.Properties, body: bytes) -> Step:
    method = commands.Basic.Deliver(CONSUMER, tag, redelivered, "signals", key)
    payload = ContentHeader(properties=found).marshal()
    data = encoded([method, *content(found, body)])
    return Step(data, delivered=(tag, redelivered, key, repr(by_pamqp(payload)), body))


def interleaved(tag: int, found: commands.Basic.Properties, body: bytes, between: bytes) -> Step:
    """A delivery with other channels' frames between its own."""
    whole = delivery(tag, False, "a.b", found, body)
    frames = [commands.Basic.Deliver(CONSUMER, tag, False, "signals", "a.b"), *content(found, body)]
    data = between.join(encoded([each]) for each in frames)
    return Step(data, for_driver=between * (len(frames) - 1), delivered=whole.delivered)


def confirm(tag: int, multiple: bool, stored: bool) -> Step:
    kind = commands.Basic.Ack if stored else commands.Basic.Nack
    return Step(encoded([kind(delivery_tag=tag, multiple=multiple)]), confirmed=(tag, multiple, stored))


def returning(found: commands.Basic.Properties, body: bytes) -> Step:
    method = commands.Basic.Return(312, "NO_ROUTE", "signals", "a.b")
    return Step(encoded([method, *content(found, body)]), returned=(found.message_id or None,))


tags = st.integers(1, 2**63 - 1)
steps = st.one_of(
    st.builds(delivery, tags, st.booleans(), texts, ours | properties, bodies),
    st.builds(
        interleaved,
        tags,
        ours | properties,
        bodies,
        st.sampled_from(
            [HEARTBEAT, encoded([ContentHeader(body_size=3)], OTHER), encoded([ContentBody(b"abc")], OTHER)]
        ),
    ),
    st.builds(confirm, tags, st.booleans(), st.booleans()),
    st.builds(returning, ours, bodies),
    # What the driver does: other consumers, answers, other channels, and the connection's own frames.
    st.builds(
        lambda begin, found, body: left_alone(encoded([begin[0], *content(found, body)], begin[1])),
        st.sampled_from(
            [
                (commands.Basic.Deliver("ctag1.1", 3, False, "x", "k"), MINE),
                (commands.Basic.Deliver(CONSUMER, 3, False, "x", "k"), OTHER),
                (commands.Basic.GetOk(3, False, "x", "k", 0), MINE),
                (commands.Basic.Return(312, "NO_ROUTE", "x", "k"), OTHER),
            ]
        ),
        properties,
        bodies,
    ),
    st.sampled_from(
        [
            left_alone(HEARTBEAT),
            left_alone(encoded([commands.Basic.Ack(3, True)], OTHER)),
            left_alone(encoded([commands.Basic.ConsumeOk(CONSUMER)])),
            left_alone(encoded([commands.Basic.Cancel(CONSUMER, True)])),
            left_alone(encoded([commands.Connection.Blocked("low on memory")], 0)),
            left_alone(encoded([commands.Channel.Close(404, "gone", 60, 40)], OTHER)),
            left_alone(b"\x01" + struct.pack(">HI", MINE, 4) + b"\x00\x99\x00\x99\xce"),  # a method that nobody knows
        ]
    ),
)


@settings(deadline=None)
@given(st.lists(steps, max_size=8), st.lists(st.integers(0, 5_000), max_size=12))
def test_any_frames_cut_anywhere_go_where_they_belong(script: list[Step], cuts: list[int]) -> None:
    async def check() -> None:
        end = endpoint()
        end.feed(b"".join(step.data for step in script), cuts)
        assert await end.for_driver() == b"".join(step.for_driver for step in script)
        delivered = [(*message[:3], repr(message[3]), message[4]) for message in end.delivered]
        assert delivered == [step.delivered for step in script if step.delivered is not None]
        assert end.confirmed == [step.confirmed for step in script if step.confirmed is not None]
        assert [(each,) for each in end.returned] == [step.returned for step in script if step.returned is not None]
        assert end.ended == 0

    run(check)


def test_a_stream_that_comes_byte_by_byte_is_the_same() -> None:
    async def check() -> None:
        end = endpoint()
        found = commands.Basic.Properties(headers={"a": "b"}, message_id="m")
        parts = [delivery(5, True, "a.b", found, b"x" * 120), left_alone(HEARTBEAT), confirm(9, True, False)]
        data = b"".join(part.data for part in parts)
        end.feed(data, range(len(data)))
        assert [message[4] for message in end.delivered] == [b"x" * 120]
        assert end.confirmed == [(9, True, False)]
        assert await end.for_driver() == HEARTBEAT

    run(check)


async def test_before_anything_is_marked_the_driver_gets_everything() -> None:
    end = endpoint(marked=False)
    data = delivery(1, False, "a", commands.Basic.Properties(), b"1").data + HEARTBEAT
    end.feed(data, [3, 30])
    assert await end.for_driver() == data


async def test_a_channel_that_is_closed_is_not_marked_any_more() -> None:
    end = endpoint()
    close = encoded([commands.Channel.Close(404, "gone", 60, 40)])
    again = delivery(1, False, "a", commands.Basic.Properties(), b"of the next channel with this number").data
    end.feed(confirm(1, False, True).data + close + again)
    assert (end.confirmed, end.ended, end.delivered) == ([(1, False, True)], 1, [])
    assert await end.for_driver() == close + again


async def test_our_own_close_ends_it_as_well() -> None:
    end = endpoint()
    closed = encoded([commands.Channel.CloseOk()])
    end.feed(closed)
    assert end.ended == 1
    assert await end.for_driver() == closed


@pytest.mark.parametrize(
    "garbage",
    [
        b"AMQP\x00\x00\x09\x01",
        b"\x01" + struct.pack(">HI", MINE, 2**32 - 1) + b"x" * 40,
        b"\x05" + struct.pack(">HI", MINE, 4) + b"1234\xce",
    ],
    ids=["protocol header", "4 GB", "unknown kind"],
)
async def test_row_58_what_is_no_frame_goes_to_the_driver_with_all_that_follows(garbage: bytes) -> None:
    end = endpoint()
    hot = confirm(1, False, True).data
    end.feed(hot + garbage + hot, [len(hot) + 8])
    end.feed(hot)
    assert end.confirmed == [(1, False, True)]
    assert await end.for_driver() == garbage + hot + hot


async def test_row_58_a_hot_frame_with_a_wrong_end_goes_to_the_driver() -> None:
    end = endpoint()
    wrong = confirm(1, False, True).data[:-1] + b"\x00"
    end.feed(wrong)
    assert end.confirmed == []
    assert await end.for_driver() == wrong


async def test_a_message_within_another_is_an_error_that_ends_the_connection() -> None:
    end = endpoint()
    whole = delivery(1, False, "a", commands.Basic.Properties(), b"x" * (2 * LIMIT)).data
    end.feed(whole[: -LIMIT - 8])  # without the last frame
    with pytest.raises(InvalidFrameError, match="delivery 1"):
        end.feed(encoded([commands.Basic.Deliver(CONSUMER, 2, False, "x", "k")]))
    assert end.delivered == []


async def test_an_error_in_our_own_code_is_seen_and_costs_no_connection(caplog: pytest.LogCaptureFixture) -> None:
    end = endpoint()
    nothing = commands.Basic.Properties()
    end.feed(delivery(1, False, FAIL, nothing, b"x").data + delivery(2, False, "a", nothing, b"y").data)
    assert [message[0] for message in end.delivered] == [2]
    assert [record.levelname for record in caplog.records] == ["CRITICAL"]


async def test_a_channel_that_listens_to_nobody_leaves_deliveries_to_the_driver() -> None:
    end = endpoint(marked=False)
    end.reader.mark(MINE, Track(ended=lambda: None))
    data = delivery(1, False, "a", commands.Basic.Properties(), b"1").data
    end.feed(data)
    assert await end.for_driver() == data


async def test_a_frame_that_the_end_of_the_stream_cuts_goes_to_the_driver() -> None:
    end = endpoint()
    half = confirm(1, False, True).data[:12]
    end.feed(half)
    assert await end.for_driver() == half


async def test_the_driver_sees_a_heartbeat_while_only_hot_frames_arrive() -> None:
    end = endpoint(beat=0.0)
    end.feed(confirm(1, False, True).data)
    end.feed(confirm(2, False, True).data[:5])  # not a frame yet
    assert await end.for_driver() == HEARTBEAT + confirm(2, False, True).data[:5]


async def test_the_driver_sees_no_second_heartbeat_within_the_beat() -> None:
    end = endpoint(beat=0.0)
    end.feed(confirm(1, False, True).data)
    end.reader.beat = 3600.0
    end.feed(confirm(2, False, True).data)
    assert await end.for_driver() == HEARTBEAT


async def test_a_blocked_connection_is_known_at_once() -> None:
    end = endpoint()
    end.feed(encoded([commands.Connection.Blocked("low on memory")], 0))
    assert end.reader.blocked
    end.feed(encoded([commands.Connection.Unblocked()], 0))
    assert not end.reader.blocked


class Socket(asyncio.Transport):
    """Keeps what is written."""

    def __init__(self) -> None:
        super().__init__()
        self.written = b""
        self.closing = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written += bytes(data)

    def is_closing(self) -> bool:
        return self.closing


async def test_nothing_is_written_while_the_socket_is_full() -> None:
    reader, socket, resumed = endpoint().reader, Socket(), list[int]()
    reader.set_transport(socket)

    def again() -> None:
        resumed.append(reader.write(b"2"))

    assert reader.write(b"1")
    reader.pause_writing()
    assert not reader.write(b"2")
    reader.when_writable(again)
    reader.when_writable(again)
    assert socket.written == b"1"
    reader.resume_writing()
    assert (socket.written, resumed) == (b"12", [True])
    reader.resume_writing()
    assert resumed == [True]


async def test_what_is_written_to_a_closing_socket_is_dropped() -> None:
    reader, socket = endpoint().reader, Socket()
    reader.set_transport(socket)
    socket.closing = True
    assert reader.write(b"1")
    assert socket.written == b""


# Writing for one channel


class Desk:
    """A writer of frames on a lane, and what has gone to the socket."""

    def __init__(self, *, with_lane: bool = True, last: Callable[[], bytes] | None = None) -> None:
        self.reader, self.socket = endpoint().reader, Socket()
        self.reader.set_transport(self.socket)
        self.queue: asyncio.Queue[object] = asyncio.Queue()
        channel = Channel.__new__(Channel)  # of which a writer uses no more than this
        connection = SimpleNamespace(signalbus_lane=self.reader if with_lane else None)
        vars(channel).update(connection=connection, write_queue=self.queue)
        self.writer = FrameWriter(channel, last)

    def take(self) -> bytes:
        """Return what was written since the last look."""
        written, self.socket.written = self.socket.written, b""
        return written


PIECE = 1024
BURST = BURST_BYTES // PIECE


def pieces(first: int, count: int) -> list[bytes]:
    return [bytes([number % 256]) * PIECE for number in range(first, first + count)]


async def test_little_is_written_at_the_end_of_the_turn_in_one_piece() -> None:
    desk = Desk()
    for piece in pieces(0, BURST - 1):
        desk.writer.write(piece)
    assert desk.take() == b""
    await asyncio.sleep(0)
    assert desk.take() == b"".join(pieces(0, BURST - 1))


async def test_much_is_written_while_the_turn_goes_on_and_the_rest_at_its_end() -> None:
    desk = Desk()
    for piece in pieces(0, 2 * BURST + 3):
        desk.writer.write(piece)
    assert desk.take() == b"".join(pieces(0, 2 * BURST))
    await asyncio.sleep(0)
    assert desk.take() == b"".join(pieces(2 * BURST, 3))
    await asyncio.sleep(0)
    assert desk.take() == b""


async def test_what_is_only_known_at_the_end_of_a_turn_comes_last() -> None:
    desk = Desk(last=lambda: b"acks")
    for piece in pieces(0, BURST + 1):
        desk.writer.write(piece)
    assert desk.take() == b"".join(pieces(0, BURST))
    await asyncio.sleep(0)
    assert desk.take() == b"".join(pieces(BURST, 1)) + b"acks"


async def test_a_socket_that_is_full_in_the_middle_gets_the_rest_once_in_order() -> None:
    desk = Desk()
    for number, piece in enumerate(pieces(0, 5 * BURST)):
        if number == 2 * BURST + 5:
            desk.reader.pause_writing()
        desk.writer.write(piece)
    assert desk.take() == b"".join(pieces(0, 2 * BURST))
    await asyncio.sleep(0)
    desk.writer.write(b"more")
    await asyncio.sleep(0)
    assert desk.take() == b""
    desk.reader.resume_writing()
    assert desk.take() == b"".join(pieces(2 * BURST, 3 * BURST)) + b"more"
    desk.writer.write(b"again")
    await asyncio.sleep(0)
    assert desk.take() == b"again"


async def test_nothing_follows_the_end_of_a_channel() -> None:
    desk = Desk()
    for piece in pieces(0, BURST + 1):
        desk.writer.write(piece)
    desk.writer.kill()
    desk.writer.write(b"more")
    await asyncio.sleep(0)
    assert desk.take() == b"".join(pieces(0, BURST))


async def test_without_a_lane_the_driver_gets_all_of_a_turn_at_its_end() -> None:
    desk = Desk(with_lane=False)
    for piece in pieces(0, 3 * BURST):
        desk.writer.write(piece)
    assert desk.queue.empty()
    await asyncio.sleep(0)
    assert desk.queue.qsize() == 1
    assert desk.take() == b""


# Confirms


@dataclass
class Publishes:
    """Messages under way on a lane, and the broker's answers to them."""

    reader: LaneReader
    answered: list[tuple[int, int]] = field(default_factory=list[tuple[int, int]])  # messages, and their size
    sent: list[Confirmation] = field(default_factory=list[Confirmation])

    def __post_init__(self) -> None:
        self.confirms = LaneConfirms(MINE, self.reader, lambda *found: self.answered.append(found), lambda: None)

    def send(self, count: int) -> None:
        for _ in range(count):
            number = len(self.sent) + 1
            self.sent.append(self.confirms.expect(f"m-{number}", number))

    def answer(self, *steps: Step) -> None:
        for step in steps:
            self.reader.feed_data(step.data)

    @property
    def results(self) -> list[object]:
        return [each.result() if each.done() else None for each in self.sent]


def publishes(count: int) -> Publishes:
    made = Publishes(LaneReader(asyncio.get_event_loop()))
    made.send(count)
    return made


def unwanted(number: int) -> Step:
    return returning(commands.Basic.Properties(message_id=f"m-{number}"), b"x" * 120)


async def test_a_confirm_for_many_answers_all_that_are_open_up_to_it() -> None:
    under_way = publishes(5)
    under_way.answer(confirm(2, False, False), confirm(4, True, True))
    assert under_way.results == [CONFIRMED, REFUSED, CONFIRMED, CONFIRMED, None]
    assert under_way.answered == [(1, 2), (3, 1 + 3 + 4)]


async def test_a_refusal_of_many_refuses_all_of_them() -> None:
    under_way = publishes(3)
    under_way.answer(confirm(2, True, False), confirm(3, False, True))
    assert under_way.results == [REFUSED, REFUSED, CONFIRMED]


async def test_row_39_returned_messages_are_told_from_stored_ones() -> None:
    under_way = publishes(4)
    under_way.answer(unwanted(2), unwanted(4), confirm(4, True, True))
    assert under_way.results == [CONFIRMED, RETURNED, CONFIRMED, RETURNED]
    assert under_way.answered == [(4, 1 + 2 + 3 + 4)]


async def test_answers_that_nobody_waits_for_change_nothing(caplog: pytest.LogCaptureFixture) -> None:
    under_way = publishes(1)
    under_way.answer(confirm(9, False, True), unwanted(9), confirm(1, False, True), confirm(1, False, True))
    assert under_way.results == [CONFIRMED]
    assert under_way.answered == [(1, 1)]
    assert len(caplog.records) == 3


async def test_a_lost_channel_answers_all_that_is_open() -> None:
    under_way = publishes(3)
    under_way.answer(confirm(1, False, True))
    under_way.confirms.lose(DriverFailure("gone"))
    assert under_way.results[0] is CONFIRMED
    assert all(isinstance(result, Lost) for result in under_way.results[1:])


async def test_an_answer_after_the_wait_was_cancelled_is_still_counted() -> None:
    under_way = publishes(1)
    loop = asyncio.get_running_loop()
    waiting = asyncio.ensure_future(under_way.confirms.wait(under_way.sent[0], loop.time() + 10))
    await asyncio.sleep(0)
    waiting.cancel()
    await asyncio.wait([waiting])
    under_way.answer(confirm(1, False, True))
    assert waiting.cancelled()
    assert under_way.answered == [(1, 1)]


async def test_each_wait_ends_at_its_own_deadline() -> None:
    under_way = publishes(3)
    clock = asyncio.get_running_loop().time
    began, ends = clock(), dict[int, float]()

    async def wait(index: int, seconds: float) -> None:
        await under_way.confirms.wait(under_way.sent[index], began + seconds)
        ends[index] = clock() - began

    async with asyncio.timeout(10), asyncio.TaskGroup() as group:
        waits = [group.create_task(wait(index, seconds)) for index, seconds in enumerate((0.2, 0.05, 100.0))]
        await asyncio.wait(waits[:2])
        under_way.answer(confirm(3, False, True))
    assert list(ends) == [1, 0, 2]
    assert ends[1] >= 0.05
    assert ends[0] >= 0.2
    assert under_way.results == [LATE, LATE, CONFIRMED]
    under_way.answer(confirm(2, True, True))
    assert under_way.answered == [(1, 3), (2, 1 + 2)]  # the window counts messages, not who waits for them


# Acknowledgements


@given(st.data())
def test_acknowledgements_settle_exactly_what_was_acked(data: st.DataObject) -> None:
    """The broker's view: an ack for many settles all that is older, so what we still hold must not be older."""
    count = data.draw(st.integers(1, 30))
    held, at_broker = list(range(1, count + 1)), set(range(1, count + 1))
    for _ in range(data.draw(st.integers(1, 5))):
        acked = [tag for tag in held if data.draw(st.booleans())]
        held = [tag for tag in held if tag not in acked]
        written = wire.acks(MINE, data.draw(st.permutations(acked)), oldest_held=held[0] if held else None)
        frames = [written[start : start + 21] for start in range(0, len(written), 21)]
        for each in frames:
            _, channel, method = frame.unmarshal(each)
            assert isinstance(method, commands.Basic.Ack)
            assert channel == MINE
            assert method.delivery_tag in at_broker  # or the broker closes the channel
            at_broker -= (
                {t for t in at_broker if t <= method.delivery_tag} if method.multiple else {method.delivery_tag}
            )
        assert at_broker == set(held)
        assert len(frames) <= len([tag for tag in acked if held and tag > held[0]]) + 1


# On a broker


@pytest.mark.rabbitmq
@pytest.mark.parametrize(("publishing", "consuming"), [("on", "off"), ("off", "on"), ("on", "on")])
async def test_messages_arrive_whole_whichever_side_has_a_lane(
    brokers: Brokers, publishing: str, consuming: str
) -> None:
    publisher = await brokers.open(options=f"{FAST}&lane={publishing}")
    consumer = await brokers.serve(await brokers.open(options=f"{FAST}&lane={consuming}"))
    sent = [
        encode(Signal(type="order.placed", source="test", data=bytes(size), subject="é" * 40, extensions={"n": size}))
        for size in (0, 256, 131_064, 131_065, 1_000_000)
    ]
    assert await publish(publisher, *sent) == [PublishResult.CONFIRMED] * len(sent)
    got = [incoming.signal for incoming in await receive(consumer, len(sent))]
    assert [decode(each) for each in got] == [decode(each) for each in sent]


@pytest.mark.rabbitmq
async def test_a_channel_that_the_broker_closes_takes_no_connection_along(
    brokers: Brokers, raw: AbstractChannel
) -> None:
    """A publish behind the driver's Close-Ok would cost the whole connection (504); the lane stops before it."""
    broker = await brokers.open(options=f"{FAST}&lane=on")
    sink = brokers.sink(await brokers.serve(broker))
    stop = asyncio.Event()

    async def keep_publishing() -> None:
        while not stop.is_set():
            await broker.publish([signal(1)], TIMEOUT)

    async with asyncio.TaskGroup() as group:
        for _ in range(50):
            group.create_task(keep_publishing())
        for _ in range(5):
            got = len(sink.got)
            await raw.exchange_delete("signalbus.signals")
            await eventually(lambda got=got: len(sink.got) > got + 500, TIMEOUT)  # type: ignore[misc]
        stop.set()
    assert broker.health().counters.get("connections_lost", 0) == 0


@pytest.mark.rabbitmq
@pytest.mark.slow
async def test_messages_alone_keep_a_connection_alive(brokers: Brokers) -> None:
    """A server that sends something sends no heartbeats; the driver sees no frame of ours, and must not give up."""
    broker = await brokers.open(options="heartbeat=1")
    sink = brokers.sink(await brokers.serve(broker))
    clock = asyncio.get_running_loop().time
    began = clock()
    while clock() < began + 10:  # the driver's patience is (1 + 1) * 3 seconds
        await publish(broker, *map(signal, range(20)))
    await eventually(lambda: len(sink.got) > 200, TIMEOUT)
    assert broker.health().counters.get("connections_lost", 0) == 0

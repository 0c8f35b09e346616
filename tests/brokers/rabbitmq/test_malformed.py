"""Row 57: what foreign clients write must not stop a subscriber.

The driver's own decoder loses the connection on each of these, gets the message again, and loses it again.
"""

from __future__ import annotations

import struct

import pytest
from aiormq.abc import AbstractChannel, ChannelFrame
from aiormq.channel import Channel
from pamqp import commands, frame
from pamqp.body import ContentBody

from signalbus.brokers.base import PublishResult
from signalbus.delivery import ACK, DeadLetter, DeadReason
from tests.brokers.rabbitmq.conftest import FAST, TIMEOUT, Brokers, number_of, publish, receive, signal

CONTENT_TYPE, ENCODING, HEADERS, DELIVERY_MODE = 1 << 15, 1 << 14, 1 << 13, 1 << 12
PRIORITY, CORRELATION, REPLY_TO, EXPIRATION, MESSAGE_ID = 1 << 11, 1 << 10, 1 << 9, 1 << 8, 1 << 7
TIMESTAMP, TYPE, USER_ID, APP_ID = 1 << 6, 1 << 5, 1 << 4, 1 << 3


def short(data: bytes) -> bytes:
    return bytes([len(data)]) + data


def table(*entries: tuple[bytes, bytes]) -> bytes:
    data = b"".join(short(key) + value for key, value in entries)
    return struct.pack(">I", len(data)) + data


def nested(depth: int) -> bytes:
    value = b"V"
    for _ in range(depth):
        value = b"F" + table((b"a", value))
    return table((b"a", value))


def array(depth: int) -> bytes:
    value = b"V"
    for _ in range(depth):
        value = b"A" + struct.pack(">I", len(value)) + value
    return table((b"a", value))


POISON: dict[str, tuple[int, bytes]] = {
    "timestamp in microseconds": (TIMESTAMP, struct.pack(">Q", 1_700_000_000_000_000)),
    "timestamp in nanoseconds": (TIMESTAMP, struct.pack(">Q", 1_700_000_000_000_000_000)),
    "timestamp of 2^63": (TIMESTAMP, struct.pack(">Q", 2**63)),
    "timestamp of 2^64-1": (TIMESTAMP, struct.pack(">Q", 2**64 - 1)),
    "message id in latin-1": (MESSAGE_ID, short(b"\xe9\xff")),
    "correlation id in latin-1": (CORRELATION, short(b"\xff")),
    "content type in latin-1": (CONTENT_TYPE, short(b"\xff")),
    "content encoding in latin-1": (ENCODING, short(b"\xff")),
    "type in latin-1": (TYPE, short(b"\xff")),
    "reply to in latin-1": (REPLY_TO, short(b"\xff")),
    "app id in latin-1": (APP_ID, short(b"\xff")),
    "header name in latin-1": (HEADERS, table((b"\xff", b"V"))),
    "header time of 2^63": (HEADERS, table((b"a", b"T" + struct.pack(">Q", 2**63)))),
    "header time in microseconds": (HEADERS, table((b"a", b"T" + struct.pack(">Q", 1_700_000_000_000_000)))),
    "tables 3000 deep": (HEADERS, nested(3000)),
    "arrays 3000 deep": (HEADERS, array(3000)),
    "attribute is a table": (HEADERS, table((b"cloudEvents_id", b"F" + table()))),
    "attribute is bytes": (HEADERS, table((b"cloudEvents_id", b"x" + struct.pack(">I", 1) + b"\xff"))),
    "attribute is not UTF-8": (HEADERS, table((b"cloudEvents_id", b"S" + struct.pack(">I", 1) + b"\xff"))),
    "attributes of 120 kB": (
        HEADERS,
        table(*[(b"cloudEvents_a%d" % n, b"S" + struct.pack(">I", 12_000) + b"x" * 12_000) for n in range(10)]),
    ),
    "2000 attributes": (HEADERS, table(*[(b"cloudEvents_" + b"k" * 80 + b"%d" % n, b"V") for n in range(1300)])),
    "attribute is a float": (HEADERS, table((b"cloudEvents_id", b"d" + struct.pack(">d", 1.5)))),
}

HARMLESS: dict[str, tuple[int, bytes]] = {
    "no properties": (0, b""),
    "foreign table": (HEADERS, table((b"a", b"F" + table((b"b", b"V"))))),
    "foreign bytes": (HEADERS, table((b"a", b"S" + struct.pack(">I", 2) + b"\xff\xfe"))),
    "foreign negative decimal": (HEADERS, table((b"a", b"D" + struct.pack(">Bi", 2, -5)))),
}


async def write(channel: AbstractChannel, flags: int, properties: bytes, body: bytes, key: bytes = b"order.x") -> None:
    """Publish a message with properties as given."""
    assert isinstance(channel, Channel)
    method = struct.pack(">IH", 0x003C0028, 0) + short(b"signalbus.signals") + short(key) + b"\x00"
    header = struct.pack(">HHQH", 60, 0, len(body), flags) + properties
    payload = b""
    for kind, data in ((1, method), (2, header)):
        payload += struct.pack(">BHI", kind, channel.number, len(data)) + data + b"\xce"
    payload += frame.marshal(ContentBody(body), channel.number)
    channel.delivery_tag += 1
    await channel.write_queue.put(ChannelFrame(payload, should_close=False))


@pytest.mark.parametrize("name", POISON)
async def test_row_57_a_malformed_message_becomes_a_dead_letter_and_its_neighbours_arrive(
    brokers: Brokers, raw: AbstractChannel, name: str
) -> None:
    flags, properties = POISON[name]
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    await publish(broker, signal(1))
    await write(raw, flags, properties, b"poison")
    await raw.queue_declare("barrier", exclusive=True)  # answered after the message was taken
    await publish(broker, signal(2))
    first, poison, second = await receive(consumer, 3, timeout=5)
    assert (number_of(first), number_of(second)) == (1, 2)
    assert poison.malformed
    assert poison.signal.body == b"poison"
    settled = DeadLetter(DeadReason.UNDECODABLE, poison.malformed, ())
    assert await consumer.settle(poison, settled)
    (letter,) = await broker.dead_letters(10, TIMEOUT)
    assert (letter.signal.body, letter.reason, letter.detail) == (b"poison", settled.reason, poison.malformed)
    assert await consumer.settle(first, ACK)
    assert broker.health().counters["reconnects"] == 0


@pytest.mark.parametrize("name", HARMLESS)
async def test_foreign_properties_without_harm_are_no_obstacle(
    brokers: Brokers, raw: AbstractChannel, name: str
) -> None:
    flags, properties = HARMLESS[name]
    broker = await brokers.open()
    consumer = await brokers.serve(broker)
    await write(raw, flags, properties, b"foreign")
    (incoming,) = await receive(consumer, timeout=5)
    assert incoming.malformed is None
    assert incoming.signal.type == "order.x"
    assert broker.health().counters["reconnects"] == 0


async def test_row_57_a_routing_key_that_is_not_text_is_delivered(brokers: Brokers, raw: AbstractChannel) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker, "all", "#")
    await write(raw, 0, b"", b"odd", key=b"\xff.\xfe")
    await raw.queue_declare("barrier", exclusive=True)
    assert await publish(broker, signal(1)) == [PublishResult.CONFIRMED]
    odd, healthy = await receive(consumer, 2, timeout=5)
    assert odd.signal.body == b"odd"
    assert number_of(healthy) == 1
    assert broker.health().counters["reconnects"] == 0


async def test_a_malformed_message_with_the_longest_routing_key_becomes_a_dead_letter(
    brokers: Brokers, raw: AbstractChannel
) -> None:
    broker = await brokers.open()
    consumer = await brokers.serve(broker, "all", "#")
    flags, properties = POISON["timestamp of 2^63"]
    await write(raw, flags, properties, b"poison", key=b"\xff" * 255)
    (poison,) = await receive(consumer, timeout=5)
    assert await consumer.settle(poison, DeadLetter(DeadReason.UNDECODABLE, poison.malformed or "", ()))
    (letter,) = await broker.dead_letters(10, TIMEOUT)
    assert letter.signal.body == b"poison"


async def test_row_60_a_forged_death_or_count_changes_nothing(brokers: Brokers, raw: AbstractChannel) -> None:
    broker = await brokers.open(options=FAST)
    consumer = await brokers.serve(broker)
    forged = commands.Basic.Properties(
        headers={
            "x-death": [{"count": 99, "reason": "expired", "queue": "q"}],
            "x-delivery-count": 99,
            "x-first-death-reason": "rejected",
            "cloudEvents_id": "1",
        }
    )
    await raw.basic_publish(b"", exchange="signalbus.signals", routing_key="order.x", properties=forged)
    (incoming,) = await receive(consumer)
    assert (incoming.attempt, incoming.crashes) == (1, 0)
    assert incoming.signal.headers == {"cloudEvents_id": "1"}

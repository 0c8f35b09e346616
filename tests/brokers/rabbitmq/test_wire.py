"""Messages and deliveries: pure."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, frame
from pamqp.header import ContentHeader

from signalbus.brokers.base import Incoming
from signalbus.brokers.rabbitmq import delays, tolerant, wire
from signalbus.brokers.rabbitmq.lane import Received, of_header
from signalbus.codec import EncodedSignal, decode, encode
from signalbus.delivery import DeadLetter, DeadReason, Failure
from signalbus.signals import Signal

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
SECONDS = int(NOW.timestamp())


def _signal(**headers: Any) -> EncodedSignal:
    return EncodedSignal(
        "1", "order.placed", {"cloudEvents_id": "1", "cloudEvents_source": "x", **headers}, b"{}", None
    )


def _message(
    properties: commands.Basic.Properties, body: bytes = b"", *, redelivered: bool = False, key: str = "order.placed"
) -> Received:
    # Through the driver's own encoder and decoder, as on the wire.
    header = ContentHeader(body_size=len(body), properties=properties)
    _, _, decoded = frame.unmarshal(frame.marshal(header, 1))
    assert isinstance(decoded, ContentHeader)
    return Received(1, redelivered, key, of_header(decoded), body)


def _properties(headers: Mapping[str, Any], **more: Any) -> commands.Basic.Properties:
    return commands.Basic.Properties(headers=dict(headers), **more)


def _read(properties: commands.Basic.Properties, **more: Any) -> wire.Message:
    return wire.read(_message(properties, **more), counted=True)


def test_a_signal_comes_back_as_it_went() -> None:
    signal = Signal(
        type="order.placed",
        source="shop",
        data={"a": [1, None, "ü"]},
        subject="s",
        extensions={"n": 2**31 - 1, "b": True},
    )
    encoded = encode(signal)
    message = _message(wire.persistent(encoded, "m", SECONDS).generic(), encoded.body)
    incoming = wire.read(message, counted=True).incoming
    assert decode(incoming.signal) == decode(encoded)
    assert (incoming.attempt, incoming.crashes, incoming.malformed, incoming.redelivered) == (1, 0, None, False)


def test_the_message_is_persistent_and_has_its_own_id() -> None:
    properties = wire.persistent(_signal(), "m-1", SECONDS).generic()
    assert properties.delivery_mode == 2
    assert properties.message_id == "m-1"
    assert properties.message_type == "order.placed"
    assert properties.timestamp == NOW


def test_a_content_type_too_long_for_its_property_travels_all_the_same() -> None:
    content_type = "application/json; note=" + "é" * 200
    encoded = EncodedSignal("1", "a.b", {"cloudEvents_id": "1"}, b"{}", content_type)
    assert (
        wire.read(_message(wire.persistent(encoded, "m", SECONDS).generic()), counted=True).incoming.signal.content_type
        == content_type
    )


@pytest.mark.parametrize("header", ["CC", "BCC", "x-death", "x-delivery-count", "signalbus-attempt", "a\r\nb", ""])
def test_row_60_a_header_that_is_no_attribute_is_refused(header: str) -> None:
    assert "not an attribute" in (wire.problem_of(_signal(**{header: "x"})) or "")


@pytest.mark.parametrize(
    "value", [float("nan"), 1.5, {1, 2}, b"bytes", None, 2**70, ["a"], datetime.now(UTC), "x" * 140_000, "é" * 60_000]
)
def test_row_61_a_header_value_that_breaks_the_connection_is_refused(value: object) -> None:
    assert wire.problem_of(_signal(cloudEvents_a=value)) is not None


def test_names_that_are_equal_are_judged_alike_whatever_came_first() -> None:
    class Name(StrEnum):
        MINE = "cloudEvents_mine"

    assert wire.problem_of(_signal(**{Name.MINE: "x"})) is None
    assert wire.problem_of(_signal(cloudEvents_mine="x")) is None


def test_row_61_a_wrong_name_is_found_among_many() -> None:
    many = {f"cloudEvents_{number}": "x" for number in range(wire.NAMES_TOGETHER + 1)}
    assert wire.problem_of(_signal(**many)) is None
    assert "not an attribute" in (wire.problem_of(_signal(**many, CC="x")) or "")


def test_row_61_long_names_are_refused() -> None:
    assert wire.problem_of(_signal(**{"cloudEvents_" + "a" * 300: "x"})) is not None
    assert wire.problem_of(EncodedSignal("1", "a" * 300, {}, b"", None)) is not None


def test_a_signal_at_every_limit_passes() -> None:
    extensions = {f"e{number}": "x" * 2_000 for number in range(16)}
    assert (
        wire.problem_of(encode(Signal(type="a" * 128, source="s" * 2048, subject="é" * 1024, extensions=extensions)))
        is None
    )


def test_bookkeeping_travels_in_a_copy() -> None:
    failure = Failure(attempt=2, error="E", message="m", at=NOW, session="s", traceback="t")
    incoming = Incoming(signal=_signal(), attempt=3, crashes=2, history=(failure,), malformed="why")
    headers = wire.bookkeeping(incoming, wait=delays.plan(6.5))
    read = _read(wire.persistent(incoming.signal, "m", SECONDS, headers).generic())
    assert (read.incoming.attempt, read.incoming.crashes, read.incoming.malformed) == (3, 2, "why")
    assert read.incoming.history == (failure,)
    assert read.wait == delays.plan(6.5)


def test_the_brokers_count_of_deliveries_counts_only_on_a_redelivery() -> None:
    properties = _properties({"cloudEvents_id": "1", "x-delivery-count": 7, wire.CRASHES: 1})
    assert _read(properties).incoming.crashes == 1  # forged by a publisher
    assert _read(properties, redelivered=True).incoming.crashes == 8
    assert wire.read(_message(properties, redelivered=True), counted=False).incoming.crashes == 1


@pytest.mark.parametrize("value", [-5, 0, "x", 2.5, {}, [], None, True, 2**62])
def test_forged_counters_do_no_harm(value: Any) -> None:
    headers = {wire.ATTEMPT: value, wire.CRASHES: value, wire.HISTORY: value, wire.DELAYS: value, "cloudEvents_id": "1"}
    incoming = _read(_properties(headers), redelivered=True).incoming
    assert 1 <= incoming.attempt <= 1_000_000
    assert 0 <= incoming.crashes <= 1_000_000
    assert incoming.history == ()


@pytest.mark.parametrize(
    "foreign",
    [{"deep": {"a": [1, {"b": None}]}}, {"bytes": bytearray(b"\xff")}, {"float": 1.5}, {"time": NOW}, {"text": "x"}],
)
def test_foreign_headers_are_ignored(foreign: dict[str, Any]) -> None:
    incoming = _read(_properties({"cloudEvents_id": "1", **foreign})).incoming
    assert incoming.signal.headers == {"cloudEvents_id": "1"}
    assert incoming.malformed is None


@pytest.mark.parametrize("value", [1.5, None, [1], {"a": 1}, NOW, bytearray(b"x")])
def test_an_attribute_of_another_type_makes_the_message_malformed(value: Any) -> None:
    incoming = _read(_properties({"cloudEvents_a": value, "cloudEvents_id": "1"})).incoming
    assert incoming.malformed is not None
    assert "cloudEvents_a" in incoming.malformed


def test_an_attribute_that_is_not_utf8_makes_the_message_malformed() -> None:
    table = b"\x0dcloudEvents_aS" + struct.pack(">I", 2) + b"\xff\xfe"
    data = struct.pack(">HHQH", 60, 0, 0, 1 << 13) + struct.pack(">I", len(table)) + table
    header = ContentHeader()
    header.unmarshal(data)
    assert wire.read(Received(1, False, "k", of_header(header), b""), counted=True).incoming.malformed is not None


def test_a_message_of_a_stranger_has_an_id_and_a_type() -> None:
    incoming = _read(commands.Basic.Properties(), key="some.key").incoming
    assert incoming.signal.id
    assert incoming.signal.type == "some.key"
    incoming = _read(commands.Basic.Properties(message_id="m", message_type="t")).incoming
    assert (incoming.signal.id, incoming.signal.type) == ("m", "t")


def test_other_bindings_of_cloudevents_are_read() -> None:
    for prefix in ("cloudEvents:", "ce-"):
        incoming = _read(_properties({prefix + "id": "7", prefix + "type": "a.b"})).incoming
        assert (incoming.signal.id, incoming.signal.type) == ("7", "a.b")


def _failure(number: int, size: int) -> Failure:
    return Failure(attempt=number, error="E", message="é" * size, at=NOW, session="s", traceback="t" * size)


@given(st.integers(0, 12), st.integers(0, 9000))
def test_a_history_is_bounded_and_keeps_its_newest_failure(count: int, size: int) -> None:
    history = [_failure(number, size) for number in range(count)]
    text = wire.write_history(history)
    assert len(text.encode()) <= wire.HISTORY_BYTES
    back = wire.read_history(text)
    if count and size < 500:
        assert back[-1].attempt == count - 1
        assert back[0].attempt == 0


def test_a_dead_letter_comes_back_with_its_reason() -> None:
    incoming = Incoming(signal=_signal(), attempt=5, crashes=1)
    settlement = DeadLetter(DeadReason.ATTEMPTS, "5 attempts", (_failure(5, 3),))
    headers = wire.dead_letter(incoming, settlement, "billing", NOW)
    stored = wire.read_dead_letter(
        _message(wire.persistent(incoming.signal, "m", SECONDS, headers).generic()), "signalbus.q."
    )
    assert (stored.subscription, stored.reason, stored.detail) == (
        "billing",
        DeadReason.ATTEMPTS,
        "5 attempts",
    )
    assert (stored.attempt, stored.crashes, stored.at, stored.history) == (5, 1, NOW, settlement.history)


def test_a_dead_letter_of_the_broker_says_so() -> None:
    death = {"reason": "delivery_limit", "queue": "signalbus.q.billing", "time": NOW, "count": 1}
    properties = _properties({"cloudEvents_id": "1", "x-death": [death]})
    stored = wire.read_dead_letter(_message(properties, key="signalbus.q.billing"), "signalbus.q.")
    assert stored.reason is DeadReason.BROKER
    assert stored.subscription == "billing"
    assert "delivery_limit" in stored.detail
    assert stored.at == NOW


def test_frames_of_acks_are_those_of_the_driver() -> None:
    assert wire.ack(3, 2**40) == frame.marshal(commands.Basic.Ack(delivery_tag=2**40), 3)
    assert wire.nack(3, 7) == frame.marshal(commands.Basic.Nack(delivery_tag=7, requeue=True), 3)


@given(st.binary(max_size=300))
def test_no_properties_make_the_decoder_raise(data: bytes) -> None:
    tolerant.install()
    header = ContentHeader()
    header.unmarshal(struct.pack(">HHQ", 60, 0, 5) + data)
    assert header.body_size == 5


@given(st.binary(max_size=100), st.binary(max_size=100), st.booleans(), st.integers(1, 2**63 - 1))
def test_any_routing_key_can_be_delivered(exchange: bytes, key: bytes, redelivered: bool, tag: int) -> None:
    tolerant.install()
    data = b"\x01c" + struct.pack(">QB", tag, redelivered)
    data += bytes([len(exchange)]) + exchange + bytes([len(key)]) + key
    deliver = commands.Basic.Deliver()
    deliver.unmarshal(data)
    assert (deliver.consumer_tag, deliver.delivery_tag, deliver.redelivered) == ("c", tag, redelivered)
    assert deliver.routing_key == key.decode("utf-8", "replace")

"""Signals to bytes and back, with the CloudEvents SDK as the oracle."""

from __future__ import annotations

import dataclasses
import enum
import json
import uuid
from collections.abc import Mapping
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal

import pytest
from cloudevents.core.bindings import amqp, rabbitmq
from cloudevents.core.formats.json import JSONFormat
from cloudevents.core.v1.event import CloudEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from signalbus import DecodeError, InvalidSignal, Signal
from signalbus import codec as bus_codec
from signalbus.codec import EncodedSignal, HeaderValue, decode, encode, encode_plain, encode_structured

TEXT = st.text(st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="\ufffe\uffff"), max_size=40)
JSON_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
JSON_DATA = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | JSON_TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(JSON_TEXT, inner, max_size=4),
    max_leaves=12,
)
EXTENSIONS = st.dictionaries(
    st.from_regex(r"ext[a-z0-9]{1,10}", fullmatch=True),
    TEXT | st.booleans() | st.integers(-(2**31), 2**31 - 1),
    max_size=4,
)
OPTIONAL = st.none() | TEXT.filter(bool)
SIGNALS = st.builds(
    Signal,
    type=st.from_regex(r"[A-Za-z0-9_-]{1,8}(\.[A-Za-z0-9_-]{1,8}){0,3}", fullmatch=True),
    source=TEXT.filter(bool),
    subject=OPTIONAL,
    dataschema=OPTIONAL,
    correlationid=OPTIONAL,
    causationid=OPTIONAL,
    traceparent=OPTIONAL,
    tracestate=OPTIONAL,
    time=st.datetimes(timezones=st.just(UTC)),
    extensions=EXTENSIONS,
    data=JSON_DATA | st.binary(max_size=50),
)


def as_sent(signal: Signal) -> Signal:
    """What a receiver sees: the content type is filled in, and no bytes are no data."""
    if signal.data is None or signal.data == b"":
        content_type = None if signal.data is None else "application/octet-stream"
        return dataclasses.replace(signal, data=signal.data, datacontenttype=content_type)
    content_type = "application/octet-stream" if isinstance(signal.data, bytes) else "application/json"
    return dataclasses.replace(signal, datacontenttype=content_type)


@given(SIGNALS)
@settings(max_examples=300, deadline=None)
def test_binary_round_trip(signal: Signal) -> None:
    assert decode(encode(signal)) == as_sent(signal)


@given(SIGNALS)
@settings(max_examples=300, deadline=None)
def test_structured_round_trip(signal: Signal) -> None:
    encoded = encode_structured(signal)
    assert encoded.content_type == "application/cloudevents+json"
    assert encoded.headers == {}
    assert decode(encoded) == as_sent(signal)


@given(SIGNALS)
@settings(max_examples=100, deadline=None)
def test_the_payload_is_the_same_in_both_modes(signal: Signal) -> None:
    binary = bus_codec.payload(encode(signal))
    structured = bus_codec.payload(encode_structured(signal))
    if isinstance(signal.data, bytes):
        assert structured == binary
    else:
        assert bus_codec.decode_data(*structured) == bus_codec.decode_data(*binary)


# The SDK as the oracle

SIGNAL = Signal(
    type="order.placed",
    source="shop",
    subject="42",
    time=datetime(2026, 1, 2, 3, 4, 5, 678_000, tzinfo=UTC),
    dataschema="https://example.com/order.json",
    correlationid="c-1",
    causationid="c-0",
    traceparent="00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    extensions={"tenant": "acme", "priority": 7, "test": True},
    data={"name": "Zoë", "total": 1.5, "items": [1, 2, None]},
)


def agrees(event: CloudEvent, signal: Signal) -> None:
    attributes = dict(event.get_attributes())
    assert attributes.pop("specversion") == "1.0"
    assert attributes.pop("time") == signal.time
    assert {name: str(attributes.pop(name)) for name in signal.extensions} == {
        name: str(value) for name, value in signal.extensions.items()
    }
    names = [
        "id",
        "type",
        "source",
        "subject",
        "datacontenttype",
        "dataschema",
        "correlationid",
        "causationid",
        "traceparent",
        "tracestate",
    ]
    assert attributes == {name: value for name in names if (value := getattr(signal, name)) is not None}
    assert event.get_data() == signal.data


def test_the_sdk_reads_our_binary_mode() -> None:
    encoded = encode(SIGNAL)
    message = amqp.AMQPMessage({"content-type": encoded.content_type}, dict(encoded.headers), encoded.body)
    agrees(amqp.from_binary_event(message), as_sent(SIGNAL))


def test_the_sdk_reads_our_structured_mode() -> None:
    encoded = encode_structured(SIGNAL)
    event = JSONFormat().read(CloudEvent, encoded.body)
    assert isinstance(event, CloudEvent)
    agrees(event, as_sent(SIGNAL))


def event_of(signal: Signal) -> CloudEvent:
    names = ("id", "type", "source", "subject", "time", "dataschema", "correlationid", "causationid", "traceparent")
    attributes = {name: getattr(signal, name) for name in names} | dict(signal.extensions)
    return CloudEvent({**attributes, "datacontenttype": "application/json"}, signal.data)  # type: ignore[arg-type]


def received(headers: Mapping[str, HeaderValue], body: bytes, content_type: str | None) -> Signal:
    return decode(EncodedSignal("?", "?", headers, body, content_type))


@pytest.mark.parametrize("prefix", ["cloudEvents_", "cloudEvents:"])
def test_we_read_the_sdks_amqp_binding(prefix: str) -> None:
    message = amqp.to_binary_event(event_of(SIGNAL))
    # The SDK writes the time as an AMQP timestamp: milliseconds since the epoch.
    assert isinstance(message.application_properties["cloudEvents_time"], int)
    headers = {key.replace("cloudEvents_", prefix): value for key, value in message.application_properties.items()}
    assert received(headers, message.application_data, message.properties["content-type"]) == as_sent(SIGNAL)


def test_we_read_the_sdks_rabbitmq_binding() -> None:
    message = rabbitmq.to_binary_event(event_of(SIGNAL))
    # That binding writes every attribute as a string.
    texts = {name: str(value) for name, value in SIGNAL.extensions.items()}
    expected = dataclasses.replace(as_sent(SIGNAL), extensions=texts)
    assert received(message.headers, message.body, message.content_type) == expected


def test_we_read_the_sdks_structured_mode() -> None:
    message = rabbitmq.to_structured_event(event_of(SIGNAL))
    assert received({}, message.body, message.content_type) == as_sent(SIGNAL)


@pytest.mark.parametrize("prefix", bus_codec.PREFIXES)
def test_all_three_prefixes_are_read(prefix: str) -> None:
    headers = {key.replace(bus_codec.PREFIX, prefix): value for key, value in encode(SIGNAL).headers.items()}
    encoded = encode(SIGNAL)
    assert received(headers, encoded.body, encoded.content_type) == as_sent(SIGNAL)


@pytest.mark.parametrize("time", [10**30, -(10**30), 2**63, True])
def test_a_time_out_of_range_is_a_decode_error(time: int) -> None:
    headers = {**encode(SIGNAL).headers, "cloudEvents_time": time}
    with pytest.raises(DecodeError, match="time"):
        received(headers, b"", None)


def test_structured_bytes_travel_as_base64() -> None:
    signal = Signal(type="a", source="s", data=b"\x00\xff")
    event = json.loads(encode_structured(signal).body)
    assert event["data_base64"] == "AP8="
    assert "data" not in event
    assert decode(encode_structured(signal)).data == b"\x00\xff"


# Poison: DecodeError, and nothing else

JSON_TYPE = "application/json"
BODIES: dict[str, tuple[bytes, str | None]] = {
    "nul": (b"\x00", JSON_TYPE),
    "many_nuls": (b"\x00" * 10_000, JSON_TYPE),
    "invalid_utf8": (b'{"a": "\xff\xfe"}', JSON_TYPE),
    "invalid_utf8_text": (b"\xff\xfe", "text/plain"),
    "truncated": (b'{"a": ', JSON_TYPE),
    "not_json": (b"hello", JSON_TYPE),
    "only_blanks": (b"  \n", JSON_TYPE),
    "byte_order_mark": (b"\xef\xbb\xbf{}", JSON_TYPE),
    "utf16": ('{"a": 1}'.encode("utf-16"), JSON_TYPE),
    "deep_list": (b"[" * 100_000 + b"]" * 100_000, JSON_TYPE),
    "deep_object": (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, JSON_TYPE),
    "deep_and_truncated": (b"[" * 100_000, JSON_TYPE),
    "nan": (b"NaN", JSON_TYPE),
    "nan_inside": (b'{"a": [1, NaN]}', JSON_TYPE),
    "infinity": (b"-Infinity", JSON_TYPE),
    "million_digits": (b"1" * 1_000_000, JSON_TYPE),
    "lone_surrogate": (b'"\\ud800"', JSON_TYPE),
    "lone_surrogate_key": (b'{"\\udfff": 1}', JSON_TYPE),
    "two_values": (b"1 2", JSON_TYPE),
    "xml_as_json": (b"<a/>", "application/vnd.x+json"),
    "gzip_as_json": (b"\x1f\x8b\x08\x00", "application/json; charset=utf-8"),
}


@pytest.mark.parametrize(("body", "content_type"), BODIES.values(), ids=BODIES)
def test_poison_is_a_decode_error(body: bytes, content_type: str | None) -> None:
    with pytest.raises(DecodeError) as caught:
        received(encode(SIGNAL).headers, body, content_type)
    assert len(str(caught.value)) < 1_000


EVENT = json.loads(encode_structured(SIGNAL).body)
EVENTS: dict[str, bytes] = {
    "empty": b"",
    "no_object": b"[]",
    "null": b"null",
    "nothing_inside": b"{}",
    "no_id": json.dumps({**EVENT, "id": None}).encode(),
    "empty_id": json.dumps({**EVENT, "id": ""}).encode(),
    "id_is_a_number": json.dumps({**EVENT, "id": 7}).encode(),
    "type_with_wildcard": json.dumps({**EVENT, "type": "order.*"}).encode(),
    "type_with_blanks": json.dumps({**EVENT, "type": "a b"}).encode(),
    "other_version": json.dumps({**EVENT, "specversion": "0.3"}).encode(),
    "time_is_no_time": json.dumps({**EVENT, "time": "yesterday"}).encode(),
    "nested_extension": json.dumps({**EVENT, "ext": {"a": 1}}).encode(),
    "huge_extension": json.dumps({**EVENT, "ext": 2**40}).encode(),
    "float_extension": json.dumps({**EVENT, "ext": 1.5}).encode(),
    "extension_in_capitals": json.dumps({**EVENT, "Ext": "a"}).encode(),
    "control_character": json.dumps({**EVENT, "subject": "a\r\nb"}).encode(),
    "no_base64": json.dumps({**EVENT, "data": None, "data_base64": "***"}).encode(),
    "base64_of_unicode": json.dumps({**EVENT, "data": None, "data_base64": "é"}, ensure_ascii=False).encode(),
    "content_type_is_a_number": json.dumps({**EVENT, "datacontenttype": 1}).encode(),
    "deep": b'{"data":' * 100_000,
    "data_without_a_form": json.dumps({**EVENT, "datacontenttype": "text/plain", "data": "\ud800"}).encode(),
}


@pytest.mark.parametrize("body", EVENTS.values(), ids=EVENTS)
def test_broken_events_are_decode_errors(body: bytes) -> None:
    with pytest.raises(DecodeError):
        received({}, body, "application/cloudevents+json")


@pytest.mark.parametrize("missing", ["id", "type", "source"])
def test_a_missing_attribute_is_named(missing: str) -> None:
    headers = {key: value for key, value in encode(SIGNAL).headers.items() if not key.endswith(f"_{missing}")}
    with pytest.raises(DecodeError, match=missing):
        received(headers, b"", None)


@given(
    headers=st.dictionaries(
        st.sampled_from(["id", "type", "source", "time", "specversion", "ext", "EXT", "data", ""]).map(
            lambda name: f"ce-{name}"
        )
        | st.text(max_size=10),
        st.text(max_size=20) | st.integers() | st.booleans(),
        max_size=8,
    ),
    body=st.binary(max_size=60),
    content_type=st.sampled_from([None, JSON_TYPE, "application/cloudevents+json", "text/plain", "x/y", ""])
    | st.text(max_size=10),
)
@settings(max_examples=500, deadline=None)
def test_any_message_is_a_signal_or_a_decode_error(
    headers: dict[str, str | int | bool], body: bytes, content_type: str | None
) -> None:
    for read in (decode, bus_codec.payload):
        try:
            read(EncodedSignal("?", "?", headers, body, content_type))
        except DecodeError:
            pass  # the only error it may raise


# Values that must survive

BIG = 2**200 + 1


@pytest.mark.parametrize("number", [2**53 + 1, 2**63, -(2**64), BIG])
def test_huge_integers_survive(number: int) -> None:
    signal = Signal(type="a", source="s", data={"n": number, "x": None})
    assert decode(encode(signal)).data == {"n": number, "x": None}
    assert decode(encode_structured(signal)).data == {"n": number, "x": None}


@pytest.mark.parametrize("data", [0, False, "", [], {}, 0.0])
def test_falsy_data_is_data(data: object) -> None:
    signal = Signal(type="a", source="s", data=data)
    for back in (decode(encode(signal)), decode(encode_structured(signal))):
        assert back.data == data
        assert type(back.data) is type(data)


def test_times_are_written_in_utc() -> None:
    local = datetime(2026, 1, 1, 1, 0, tzinfo=timezone(timedelta(hours=2)))
    headers = encode(Signal(type="a", source="s", time=local)).headers
    assert headers["cloudEvents_time"] == "2025-12-31T23:00:00Z"


@pytest.mark.parametrize("edge", [datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, 23, 59, tzinfo=UTC)])
def test_a_time_at_the_edge_of_the_calendar_is_an_invalid_signal_or_sent(edge: datetime) -> None:
    for offset in (-1, 1):
        signal = Signal(type="a", source="s", time=edge.replace(tzinfo=timezone(timedelta(hours=offset))))
        try:
            encoded = encode(signal)
        except InvalidSignal:
            continue  # no such time in UTC
        assert decode(encoded).time == signal.time


def test_text_in_other_charsets_is_not_guessed() -> None:
    signal = Signal(type="a", source="s", data="héllo", datacontenttype="text/plain")
    assert decode(encode(signal)).data == "héllo"
    assert decode(encode_structured(signal)).data == "héllo"


class Colour(enum.Enum):
    RED = "red"


@dataclasses.dataclass
class Item:
    name: str
    price: Decimal


class Order(BaseModel):
    id: uuid.UUID
    items: list[Item]
    day: date
    colour: Colour = Colour.RED


def test_models_dataclasses_and_plain_python_values_become_json() -> None:
    order = Order(id=uuid.UUID(int=1), items=[Item("a", Decimal("1.10"))], day=date(2026, 1, 2))
    body = json.loads(encode(Signal(type="a", source="s", data=order)).body)
    assert body == {
        "id": "00000000-0000-0000-0000-000000000001",
        "items": [{"name": "a", "price": "1.10"}],
        "day": "2026-01-02",
        "colour": "red",
    }
    # The same inside a plain dict, where no model tells how.
    mixed = {"o": order, "i": Item("b", Decimal(2)), "c": Colour.RED, "u": uuid.UUID(int=2), "none": None}
    data = json.loads(encode(Signal(type="a", source="s", data=mixed)).body)
    assert data["o"] == body
    assert data["i"] == {"name": "b", "price": "2"}
    assert data["c"] == "red"


class Loop:
    pass


def looped() -> list[object]:
    data: list[object] = []
    data.append(data)
    return data


class NanModel(BaseModel):
    value: float


UNSENDABLE: dict[str, object] = {
    "nan": float("nan"),
    "nan_inside": {"a": [float("nan")]},
    "infinity": float("inf"),
    "none_and_nan": [None, float("nan")],
    "nan_in_a_model": NanModel(value=float("nan")),
    "object": object(),
    "own_class": Loop(),
    "loop": looped(),
    "lone_surrogate": "\ud800",
    "lone_surrogate_key": {"\ud800": 1},
    "tuple_key": {(1, 2): 3},
    "function": looped,
}


@pytest.mark.parametrize("data", UNSENDABLE.values(), ids=UNSENDABLE)
def test_data_that_json_cannot_hold_is_an_invalid_signal(data: object) -> None:
    with pytest.raises(InvalidSignal):
        encode(Signal(type="a", source="s", data=data))


def test_deep_data_is_an_invalid_signal() -> None:
    data: list[object] = []
    for _ in range(100_000):
        data = [data]
    with pytest.raises(InvalidSignal):
        encode(Signal(type="a", source="s", data=data))


@pytest.mark.parametrize("data", [{"a": 1}, 1, None, b"x", "x"])
def test_a_content_type_that_is_not_json_takes_bytes_or_text(data: object) -> None:
    signal = Signal(type="a", source="s", data=data, datacontenttype="text/csv")
    if isinstance(data, bytes | str | None):
        assert encode(signal).content_type == "text/csv"
    else:
        with pytest.raises(InvalidSignal, match="text/csv"):
            encode(signal)


def test_a_signal_needs_a_source_from_somebody() -> None:
    with pytest.raises(InvalidSignal, match="source"):
        encode(Signal(type="a"))
    assert encode(Signal(type="a"), default_source="bus").headers["cloudEvents_source"] == "bus"
    assert encode(Signal(type="a", source="own"), default_source="bus").headers["cloudEvents_source"] == "own"


@pytest.mark.parametrize(
    ("content_type", "json_like"),
    [
        ("application/json", True),
        ("APPLICATION/JSON; charset=utf-8", True),
        ("text/json", True),
        ("application/vnd.api+json", True),
        ("application/jsonlines", False),
        ("text/plain", False),
        ("", False),
        (None, False),
    ],
)
def test_which_content_types_are_json(content_type: str | None, json_like: bool) -> None:
    assert bus_codec.is_json(content_type) is json_like


def test_the_size_counts_body_and_headers() -> None:
    small = encode(Signal(type="a", source="s", data=b""))
    large = encode(Signal(type="a", source="s" * 101, data=b"x" * 1_000))
    assert large.size - small.size == 1_100


# The usual signal, encoded without being made first


@pytest.mark.parametrize("foreign", [7, True])
def test_what_a_stranger_correlates_by_no_text_is_correlated_by_its_id(foreign: int) -> None:
    """Its handlers may run, as they look at its data only; what they publish has to be a signal all the same."""
    headers: dict[str, HeaderValue] = {**encode(Signal(type="a.cause", source="s")).headers}
    cause = EncodedSignal("c", "a.cause", {**headers, "cloudEvents_correlationid": foreign}, b"{}", "application/json")
    for encoded in (encode_plain("b", 1, "shop", cause), encode(Signal(type="b", source="shop", data=1), cause=cause)):
        assert (decode(encoded).correlationid, decode(encoded).causationid) == ("c", "c")


@pytest.mark.parametrize("data", [None, {"total": 9.5}, b"\x00\xff", "text"])
@pytest.mark.parametrize("caused", [False, True])
def test_a_plain_signal_is_encoded_as_the_same_one_made_first(data: object, caused: bool) -> None:
    cause = encode(Signal(type="a.cause", source="s", correlationid="c-1")) if caused else None
    plain = encode_plain("order.placed", data, "shop", cause)
    made = decode(plain)
    again = Signal(type="order.placed", data=data, source="shop", id=plain.id, time=made.time)
    assert encode(again, cause=cause) == plain


@pytest.mark.parametrize(
    ("signal_type", "source", "said"),
    [("", "s", "empty"), ("a b", "s", "characters"), ("a", "", "source"), ("a", "\n", "source")],
)
def test_a_plain_signal_obeys_the_rules(signal_type: str, source: str, said: str) -> None:
    with pytest.raises(InvalidSignal, match=said):
        encode_plain(signal_type, None, source)


def test_a_plain_signal_has_the_time_of_now() -> None:
    before = datetime.now(UTC)
    assert before <= decode(encode_plain("a", None, "s")).time <= datetime.now(UTC)

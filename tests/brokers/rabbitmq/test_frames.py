"""Frames as pamqp writes them, with less work."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pamqp import commands, frame
from pamqp.body import ContentBody
from pamqp.header import ContentHeader

from signalbus.brokers.rabbitmq import frames

short = st.text(max_size=60)
names = st.text(alphabet="abc-_.:ü", min_size=1, max_size=30)
values = st.one_of(st.text(max_size=300), st.booleans(), st.integers(-(2**63), 2**63 - 1))


@st.composite
def some_properties(draw: st.DrawFn) -> commands.Basic.Properties:
    """Draw properties as we set them."""

    def maybe(strategy: st.SearchStrategy[str]) -> str | None:
        return draw(st.none() | strategy)

    return commands.Basic.Properties(
        content_type=maybe(short),
        headers=draw(st.none() | st.dictionaries(names, values, max_size=8)),  # type: ignore[arg-type]
        delivery_mode=draw(st.sampled_from([None, 1, 2])),
        correlation_id=maybe(short),
        reply_to=maybe(short),
        expiration=maybe(short),
        message_id=maybe(short),
        timestamp=draw(st.none() | st.datetimes(datetime(1970, 1, 2), datetime(2100, 1, 1), timezones=st.just(UTC))),  # noqa: DTZ001
        message_type=maybe(short),
    )


@given(some_properties())
def test_pamqp_reads_the_properties_that_we_write(properties: commands.Basic.Properties) -> None:
    data = b"".join(frames.content(7, properties, b"", 1000))
    size, channel, header = frame.unmarshal(data)
    assert (size, channel) == (len(data), 7)
    assert isinstance(header, ContentHeader)
    assert header.body_size == 0
    read = header.properties
    for name in commands.Basic.Properties.__slots__:
        written, found = getattr(properties, name), getattr(read, name)
        if name == "timestamp" and written is not None:
            written = written.replace(microsecond=0)
        assert (found or None) == (written or None), name


@given(st.binary(max_size=5000), st.integers(1, 700))
def test_a_body_is_split_as_pamqp_would(body: bytes, limit: int) -> None:
    properties = commands.Basic.Properties(message_id="x")
    expected = frame.marshal(ContentHeader(body_size=len(body), properties=properties), 3)
    for start in range(0, len(body), limit):
        expected += frame.marshal(ContentBody(body[start : start + limit]), 3)
    assert b"".join(frames.content(3, properties, body, limit)) == expected


@pytest.mark.parametrize("mandatory", [True, False])
@pytest.mark.parametrize(("exchange", "key"), [("", "signalbus.q.work"), ("signalbus.signals", "ü" * 127), ("x", "")])
def test_a_publish_is_what_pamqp_writes(exchange: str, key: str, mandatory: bool) -> None:
    expected = frame.marshal(commands.Basic.Publish(exchange=exchange, routing_key=key, mandatory=mandatory), 65535)
    assert frames.method(65535, exchange, key, mandatory=mandatory) == expected


@pytest.mark.parametrize(
    "properties",
    [
        commands.Basic.Properties(message_id="x" * 256),
        commands.Basic.Properties(message_type="\ud800"),
        commands.Basic.Properties(headers={"x": 2**63}),
        commands.Basic.Properties(headers={"x": 1.5}),
        commands.Basic.Properties(headers={"x" * 256: 1}),
        commands.Basic.Properties(headers={"x": {"y": 1}}),
    ],
)
def test_what_amqp_or_we_cannot_carry_is_refused(properties: commands.Basic.Properties) -> None:
    with pytest.raises((TypeError, ValueError)):
        frames.content(1, properties, b"", 1000)
    with pytest.raises(ValueError, match="255"):
        frames.method(1, "", "x" * 256, mandatory=True)

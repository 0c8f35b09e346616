"""When signals were published."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

import pytest

from signalbus.brokers.ages import published_at
from signalbus.codec import EncodedSignal, HeaderValue, encode
from signalbus.signals import Signal


def _signal(signal_id: str, **headers: HeaderValue) -> EncodedSignal:
    return EncodedSignal(signal_id, "x", headers, b"", None)


NOON = datetime(2024, 5, 1, 12, 0, 0, 123_000, tzinfo=UTC)
MILLISECONDS = int(NOON.timestamp() * 1000)
ID = f"{MILLISECONDS >> 16:08x}-{MILLISECONDS & 0xFFFF:04x}-7abc-8def-0123456789ab"


def test_our_signals_tell_by_their_id() -> None:
    before = time.time()
    found = published_at(encode(Signal(type="x", source="x", time=datetime(1999, 1, 1, tzinfo=UTC))))
    assert found is not None
    assert before - 0.001 <= found.timestamp() <= time.time()


@pytest.mark.parametrize("signal_id", [ID, ID.upper()])
def test_the_time_in_an_id_comes_first(signal_id: str) -> None:
    assert published_at(_signal(signal_id, cloudEvents_time="1999-01-01T00:00:00Z")) == NOON


@pytest.mark.parametrize(
    "signal_id",
    [
        "",
        "order-17",
        ID.replace("-", ""),
        f"{{{ID}}}",
        f"urn:uuid:{ID}",
        f" {ID}",
        f"{ID}\n",
        f"{ID}0",
        ID.replace("-7abc", "-4abc"),
        ID.replace("-8def", "-cdef"),
        "ffffffff-ffff-7abc-8def-0123456789ab",
        "\N{FULLWIDTH DIGIT ONE}" + ID[1:],
    ],
)
def test_ids_of_others_do_not_tell_and_the_time_attribute_does(signal_id: str) -> None:
    assert published_at(_signal(signal_id)) is None
    assert published_at(_signal(signal_id, cloudEvents_time="2024-05-01T12:00:00.123Z")) == NOON


@pytest.mark.parametrize("prefix", ["cloudEvents_", "cloudEvents:", "ce-"])
@pytest.mark.parametrize(
    "value", ["2024-05-01T12:00:00.123Z", "2024-05-01T14:00:00.123+02:00", "2024-05-01T12:00:00.123", MILLISECONDS]
)
def test_the_time_attribute_is_read_in_any_form_that_signals_have(prefix: str, value: HeaderValue) -> None:
    found = published_at(_signal("x", **{f"{prefix}time": value}))
    assert found is not None
    assert found == NOON
    assert found.utcoffset() == timedelta(0)


@pytest.mark.parametrize("value", ["", "yesterday", "9" * 100, 2**62, -(2**62), True, "0001-01-01T00:00:00+23:00"])
def test_a_time_that_makes_no_sense_is_none(value: HeaderValue) -> None:
    assert published_at(_signal("x", cloudEvents_time=value)) is None

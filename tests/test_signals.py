"""The rules that a signal's attributes obey; also as the bus applies them, before anything is sent."""

from __future__ import annotations

import dataclasses
import re
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from signalbus import Bus, InvalidSignal, Signal
from signalbus.signals import ATTRIBUTE_LIMIT, ATTRIBUTES, EXTENSIONS_LIMIT, new_id, utc_now, utc_now_text


def test_a_signal_is_immutable_and_identified() -> None:
    signal = Signal(type="order.placed")
    assert uuid.UUID(signal.id).version == 7
    assert signal.time.tzinfo is UTC
    with pytest.raises(dataclasses.FrozenInstanceError):
        signal.type = "other"  # type: ignore[misc]


def test_ids_are_unique_and_sorted_by_time() -> None:
    ids = [new_id() for _ in range(10_000)]
    assert len(set(ids)) == len(ids)
    stamps = [text[:13] for text in ids]
    assert stamps == sorted(stamps)  # 48 bits of milliseconds


BAD: dict[str, dict[str, Any]] = {
    "no_type": {"type": ""},
    "type_with_wildcard": {"type": "order.*"},
    "type_is_a_list": {"type": ["a"]},
    "type_is_none": {"type": None},
    "type_too_long": {"type": "a" * 129},
    "empty_id": {"id": ""},
    "id_is_a_number": {"id": 7},
    "id_with_newline": {"id": "a\r\nBCC: x"},
    "source_with_nul": {"source": "a\x00"},
    "source_is_none": {"source": None},
    "lone_surrogate": {"subject": "\ud800"},
    "empty_subject": {"subject": ""},
    "c1_control": {"subject": "\x9b31m"},
    "noncharacter": {"subject": "\uffff"},
    "subject_too_long": {"subject": "x" * (ATTRIBUTE_LIMIT + 1)},
    "subject_too_long_in_bytes": {"subject": "é" * (ATTRIBUTE_LIMIT // 2 + 1)},
    "naive_time": {"time": datetime(2026, 1, 1)},  # noqa: DTZ001 - the very point
    "time_is_text": {"time": "2026-01-01T00:00:00Z"},
    "time_is_none": {"time": None},
    "correlationid_is_bytes": {"correlationid": b"a"},
    "content_type_with_newline": {"datacontenttype": "text/plain\nX-Y: z"},
    "extensions_is_a_list": {"extensions": ["a"]},
}

# Fault rows 60 and 61: what routes copies behind our back, forges counts, or makes the broker close the connection.
BAD_EXTENSIONS: dict[str, dict[Any, Any]] = {
    "CC": {"CC": ["victim"]},
    "BCC": {"BCC": ["victim"]},
    "x-death": {"x-death": []},
    "x-delivery-count": {"x-delivery-count": 1},
    "x-signalbus-attempt": {"x-signalbus-attempt": 1},
    "own_prefix": {"cloudEvents_id": "forged"},
    "crlf_in_name": {"a\r\nb": "x"},
    "crlf_in_value": {"a": "x\r\ny: z"},
    "empty_name": {"": "x"},
    "capital": {"A": "x"},
    "underscore": {"a_b": "x"},
    "unicode_digit": {"a\u0663": "x"},
    "long_key": {"k" * 300: "x"},
    "key_is_a_number": {1: "x"},
    "set": {"a": {1, 2}},
    "list": {"a": [1]},
    "dict": {"a": {"b": 1}},
    "bytes": {"a": b"x"},
    "none": {"a": None},
    "object": {"a": object()},
    "float": {"a": 1.5},
    "nan": {"a": float("nan")},
    "infinity": {"a": float("inf")},
    "int_2_31": {"a": 2**31},
    "int_2_70": {"a": 2**70},
    "int_below": {"a": -(2**31) - 1},
    "lone_surrogate": {"a": "\ud800"},
    "value_140_kB": {"a": "x" * 140_000},
    "together_140_kB": {f"a{n}": "x" * 2_000 for n in range(70)},
    **{f"attribute_{name}": {name: "x"} for name in sorted(ATTRIBUTES)},
}


@pytest.mark.parametrize("fields", BAD.values(), ids=BAD)
def test_a_broken_rule_is_an_invalid_signal(fields: dict[str, Any]) -> None:
    with pytest.raises(InvalidSignal) as caught:
        Signal(**{"type": "a", **fields})
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


@pytest.mark.parametrize("extensions", BAD_EXTENSIONS.values(), ids=BAD_EXTENSIONS)
async def test_headers_that_do_harm_are_refused_before_anything_is_sent(
    extensions: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(InvalidSignal) as caught:
        Signal(type="a", extensions=extensions)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400
    # The bus is not even open: had it got as far as sending, this would be BusClosed.
    bus = Bus(f"sqlite:///{tmp_path}/bus.db")
    with pytest.raises(InvalidSignal):
        await bus.publish("a", extensions=extensions)
    assert not (tmp_path / "bus.db").exists()


@pytest.mark.parametrize(
    "extensions",
    [
        {},
        {"a": ""},
        {"a": "Zoë \U0001f600"},
        {"a": True, "b": False},
        {"a": 2**31 - 1, "b": -(2**31)},
        {"k" * 64: "x"},
        {"a": "x" * ATTRIBUTE_LIMIT},
        {f"a{n:02}": "x" * 2_000 for n in range(16)},
    ],
    ids=range(8),
)
def test_extensions_within_the_rules_pass(extensions: dict[str, Any]) -> None:
    assert Signal(type="a", extensions=extensions).extensions == extensions


def test_the_limits_of_extensions_are_those_of_a_frame() -> None:
    assert EXTENSIONS_LIMIT < 128 * 1024 // 2  # with the attributes, which add up to 20 kB, it fits a frame
    with pytest.raises(InvalidSignal, match=str(EXTENSIONS_LIMIT)):
        Signal(type="a", extensions={f"a{n:02}": "x" * 2_000 for n in range(17)})


def test_the_time_of_day_as_text_is_that_of_the_clock() -> None:
    for _ in range(1_000):
        before = utc_now()
        text = utc_now_text()
        assert before <= datetime.fromisoformat(text) <= utc_now()
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{6}Z", text)


@pytest.mark.parametrize("nanoseconds", [0, 999_999_999, 1_000_000_000, 1_769_860_799_999_999_999])
def test_the_text_of_a_time_is_right_around_seconds(nanoseconds: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signalbus.signals.time.time_ns", lambda: nanoseconds)
    expected = datetime.fromtimestamp(0, UTC) + timedelta(microseconds=nanoseconds // 1_000)
    assert datetime.fromisoformat(utc_now_text()) == expected

"""What travels between sessions: whole however it is cut, and refused if it is anything else."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from signalbus.brokers.base import Answer, AnswerKind
from signalbus.brokers.sqlite import frames
from signalbus.brokers.sqlite.frames import Kind, Malformed, Splitter
from signalbus.codec import EncodedSignal

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=50)
HEADERS = st.dictionaries(TEXT, TEXT | st.booleans() | st.integers(-(2**63), 2**63), max_size=5)
SIGNALS = st.builds(EncodedSignal, TEXT, TEXT, HEADERS, st.binary(max_size=500), st.none() | TEXT)
ANSWERS = st.builds(Answer, st.sampled_from(AnswerKind), st.binary(max_size=500), st.none() | TEXT, TEXT, TEXT)
NUMBERS = st.integers(0, 2**64 - 1)


def _contents(data: bytes, cuts: list[int]) -> list[tuple[int, bytes]]:
    splitter = Splitter()
    ends = sorted({min(cut, len(data)) for cut in cuts} | {len(data)})
    found: list[tuple[int, bytes]] = []
    for start, end in zip([0, *ends], ends, strict=False):
        found.extend(splitter.feed(data[start:end]))
    return found


@given(SIGNALS, NUMBERS, NUMBERS, NUMBERS, st.booleans(), st.lists(st.integers(0, 1_000)))
def test_requests_arrive_as_they_were_sent_however_they_are_cut(
    signal: EncodedSignal, number: int, remaining: int, at: int, redelivered: bool, cuts: list[int]
) -> None:
    data = frames.write_request(number, remaining, at, redelivered, frames.pack_request(signal))
    (first, second) = _contents(data + data, cuts)
    assert first == second
    kind, content = first
    assert kind == Kind.REQUEST
    assert frames.read_request(content) == frames.Request(
        number=number, remaining=remaining, at=at, redelivered=redelivered, signal=signal
    )


@given(ANSWERS, NUMBERS)
def test_answers_arrive_as_they_were_sent(answer: Answer, number: int) -> None:
    ((kind, content),) = _contents(frames.write_answer(number, answer), [])
    assert kind == Kind.ANSWER
    assert frames.read_answer(content) == (number, answer)


@given(st.binary(max_size=300))
def test_anything_else_is_malformed_and_nothing_worse(content: bytes) -> None:
    for read in (frames.read_request, frames.read_answer, frames.read_number):
        with contextlib.suppress(Malformed):
            read(content)
    with contextlib.suppress(Malformed):
        list(Splitter().feed(content))


@given(SIGNALS, st.data())
def test_a_request_with_one_byte_changed_is_malformed_or_another_request(
    signal: EncodedSignal, data: st.DataObject
) -> None:
    whole = frames.write_request(1, 2, 3, False, frames.pack_request(signal))[5:]
    place = data.draw(st.integers(0, len(whole) - 1))
    changed = whole[:place] + bytes([whole[place] ^ 0xFF]) + whole[place + 1 :]
    with contextlib.suppress(Malformed):
        assert isinstance(frames.read_request(changed).signal.headers, dict)


def test_what_is_too_long_is_refused_before_it_has_arrived() -> None:
    splitter = Splitter(100)
    assert list(splitter.feed(frames.frame(Kind.MESSAGE, bytes(99)))) == [(Kind.MESSAGE, bytes(99))]
    with pytest.raises(Malformed):
        list(splitter.feed(frames.frame(Kind.MESSAGE, bytes(100))[:5]))


def test_deeply_nested_heads_are_malformed() -> None:
    head = b"[" * 100_000
    with pytest.raises(Malformed):
        frames.read_request(frames.write_request(1, 1, 1, False, (head, b""))[5:])

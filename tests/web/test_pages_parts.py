"""The pure parts of the page: geometry, payloads, addresses, questions."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.datastructures import QueryParams

from signalbus.deadletters import LetterState
from signalbus.errors import ConfigError
from signalbus.ledger import Acked, Delivered, Fact
from signalbus.trace.model import SignalTrace, Trace
from signalbus.trace.tree import build
from signalbus.web.pages.environment import ago, lines
from signalbus.web.pages.links import letters_url, trace_url, with_query
from signalbus.web.pages.payloads import MAX_SHOWN, indented, of_record
from signalbus.web.pages.questions import LetterQuestion, TraceQuestion, read_note, read_rate
from signalbus.web.pages.steps import steps
from signalbus.web.pages.timeline import timeline
from tests.trace import examples
from tests.trace.facts import At, Teller
from tests.trace.strategies import any_facts

NOW = 1_767_268_900.0


@given(any_facts())
def test_geometry_stays_within_the_figure_whatever_was_told(facts: list[Fact]) -> None:
    trace = build("signal-a", facts)
    assert steps(trace)[0]
    figure = timeline(trace, NOW)
    if figure is None:
        return
    for bar in figure.bars:
        assert 0 <= bar.waits_from <= bar.works_from <= bar.works_from + bar.works_for <= 100.001
        assert bar.works_for > 0
    places = [at for at, _ in figure.ticks]
    assert places == sorted(places)
    assert 0 <= places[0] <= places[-1] <= 100
    assert len(places) <= 7


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.534, ["0", "200 ms", "400 ms"]),
        (1.0, ["0", "200 ms", "400 ms", "600 ms", "800 ms", "1.00 s"]),
        (0.00009, ["0", "20 µs", "40 µs", "60 µs", "80 µs"]),
        (7_300, ["0", "30 min 0 s", "1 h 0 min", "1 h 30 min", "2 h 0 min"]),
    ],
)
def test_ticks_are_round_times(seconds: float, expected: list[str]) -> None:
    teller = Teller("shop", "web-1", 1)
    at = At(signal="signal-a", type="order.placed", subscription="billing")
    teller.tell(0, Delivered(**at))
    teller.tell(seconds, Acked(**at, seconds=seconds))
    figure = timeline(build("signal-a", teller.facts), NOW)
    assert figure is not None
    assert [text for _, text in figure.ticks] == expected


def test_without_a_known_time_there_is_no_figure() -> None:
    assert timeline(Trace(root=SignalTrace(id="x")), NOW) is None


@pytest.mark.parametrize("trace", [examples.order(), examples.trouble(), examples.hostile()])
def test_every_attempt_is_a_step(trace: Trace) -> None:
    rows, more = steps(trace)
    attempts = [attempt for delivery in trace.root.deliveries for attempt in delivery.attempts]
    assert not more
    assert len([row for row in rows if row.attempt is not None and row.signal == trace.root.id]) == len(attempts)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@given(JSON)
def test_indenting_changes_no_value(value: object) -> None:
    for text in (json.dumps(value), json.dumps(value, ensure_ascii=False, separators=(",", ":"))):
        assert json.loads(indented(text)) == json.loads(text)


def test_indenting_keeps_every_digit() -> None:
    text = '{"a":[12345678901234567890123,1.10,1e400],"b":{},"c":[]}'
    assert indented(text) == (
        '{\n  "a": [\n    12345678901234567890123,\n    1.10,\n    1e400\n  ],\n  "b": {},\n  "c": []\n}'
    )


@given(st.text())
def test_indenting_takes_what_is_no_json(text: str) -> None:
    kept = "".join(indented(text).split())
    assert len(kept) <= len(text)


def test_a_payload_that_the_ledger_cut_says_so() -> None:
    assert of_record("[1]", cut=True).cut
    assert not of_record("[1]", cut=False).cut
    assert of_record("[" + "1," * MAX_SHOWN, cut=False).cut


@given(st.text())
def test_an_address_is_ascii_and_ours_whatever_the_id(text: str) -> None:
    for url in (trace_url(text), letters_url(signal=text, state=(text, text))):
        assert url.isascii()
        assert url.startswith(("/traces", "/dead-letters/list"))
        path = url.partition("?")[0]
        assert ".." not in path.split("/")
        assert "//" not in path
        assert "\\" not in path


def test_what_is_empty_is_not_part_of_an_address() -> None:
    assert with_query("/", {"a": "", "b": ()}) == "/"
    assert with_query("/", {"a": "1", "b": ("2", "", "3")}) == "/?a=1&b=2&b=3"


def test_a_question_survives_its_own_address() -> None:
    asked = TraceQuestion(
        since="2h", type="order.* flight.#", state=("dead", "in hand"), failed=True, where=("data.a=1", "subject=b c")
    )
    url = with_query("/", asked.fields())
    assert TraceQuestion.read(QueryParams(url.partition("?")[2])) == asked


def test_a_frozen_question_has_times_in_full_and_an_end() -> None:
    frozen = LetterQuestion(group="g", since="2h", after="x", state=("discarded",)).frozen()
    query = LetterQuestion.read(QueryParams(frozen.pairs())).query(frozenset({LetterState.DEAD}))
    assert query.since is not None
    assert query.until is not None
    assert query.until - query.since == pytest.approx(7_200, abs=1)
    assert (query.group, query.after, query.states) == ("g", "", frozenset({LetterState.DEAD}))


@pytest.mark.parametrize("text", ["-1", "0", "inf", "nan", "1e6", "x", "1e"])
def test_a_rate_that_cannot_be_is_refused(text: str) -> None:
    with pytest.raises(ConfigError):
        read_rate(text)


def test_rates_and_notes_are_bounded() -> None:
    assert read_rate("") == 50
    assert math.isclose(read_rate("0.5"), 0.5)
    assert read_note(" why ") == "why"
    with pytest.raises(ConfigError):
        read_note("x" * 501)
    with pytest.raises(ConfigError):
        LetterQuestion.read(QueryParams([("id", str(number)) for number in range(201)]))


def test_ages_never_lie_in_the_future() -> None:
    assert ago(NOW + 60, NOW) == "just now"
    assert [ago(NOW - age, NOW) for age in (0.5, 5, 125, 7_300, 200_000)] == [
        *("just now", "5 s ago", "2 min ago", "2 h ago", "2 d ago"),
    ]
    assert ago(None) == ""


def test_lines_and_tabs_are_kept_and_the_rest_is_shown() -> None:
    assert str(lines("a\n\tb\r\x1b<i>")) == "a\n\tb\\r\\x1b&lt;i&gt;"


def test_a_trace_of_nothing_has_one_row() -> None:
    rows, more = steps(build("x", []))
    assert (len(rows), more) == (1, False)

"""Values to JSON and back: what survives, what is replaced, what is escaped. Pure."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from hypothesis import given, settings
from hypothesis import strategies as st

from signalbus.liveness import SubscriptionState, SubscriptionStatus
from signalbus.web.values import LETTER, SUBSCRIBERS, written
from tests.trace.examples import HOSTILE
from tests.web.fakes import letter

_scalars = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
_json = st.recursive(_scalars, lambda each: st.lists(each) | st.dictionaries(st.text(), each), max_leaves=10)


@given(_json)
@settings(deadline=None)
def test_whatever_is_written_is_json_on_one_line_and_the_same_value(value: object) -> None:
    body = written(value)
    assert json.loads(body) == value
    assert body.decode().isprintable()


def test_large_integers_survive() -> None:
    assert written({"a": 2**64, "b": [10**100, -(2**63) - 1]}) == b'{"a":18446744073709551616,"b":[1%s,%d]}' % (
        b"0" * 100,
        -(2**63) - 1,
    )


def test_text_that_is_no_unicode_is_replaced() -> None:
    assert written({"a": "x\ud800y", "b": 2**70}) == b'{"a":"x?y","b":1180591620717411303424}'


def test_what_a_terminal_would_obey_is_escaped() -> None:
    body = written(f"{HOSTILE}\x7f\x9b\u202e\u2028")
    assert not set(body) & set(range(0x20)) | set(body) & {0x7F}
    assert json.loads(body) == f"{HOSTILE}\x7f\x9b\u202e\u2028"


def test_a_dead_letter_comes_back_as_it_was() -> None:
    known = letter(1, detail=HOSTILE, place="\x7f", body=bytes(range(256)) * 100)
    headers = {**known.content.headers, "flag": True, "number": 1, "large": 2**70, "text": "1"}
    known = replace(known, content=replace(known.content, headers=headers, content_type=None))
    found = LETTER.load(written(LETTER.dump(known)))
    assert found == known
    assert {name: type(value) for name, value in found.content.headers.items()} == {
        name: type(value) for name, value in headers.items()
    }


def test_times_and_durations_come_back_to_the_microsecond() -> None:
    known = SubscriptionStatus(
        name="billing",
        patterns=("order.*", "#"),
        durable=True,
        state=SubscriptionState.STALLED,
        in_flight=1,
        waiting=2**40,
        oldest_waiting=timedelta(days=3, seconds=1, microseconds=7),
        sessions=(),
    )
    assert SUBSCRIBERS.load(written(SUBSCRIBERS.dump([known]))) == [known]
    at = datetime(2026, 1, 1, 12, 0, 0, 1, tzinfo=UTC)
    assert LETTER.load(written(LETTER.dump(letter(1, died=at)))).summary.died == at

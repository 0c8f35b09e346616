"""Facts: how they are recorded, chosen, bounded, carried, and what of a payload they may hold."""

from __future__ import annotations

import json
import time
import timeit
from datetime import UTC, datetime
from typing import Any

import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel, SecretStr, field_serializer

from signalbus.codec import encode_data
from signalbus.errors import ConfigError
from signalbus.ledger import (
    Acked,
    Batch,
    Capture,
    CaptureMode,
    LedgerSettings,
    Level,
    MalformedBatch,
    NewerBatch,
    Origin,
    Payload,
    Recorder,
    ReplySide,
    SessionDown,
    decode,
    encode,
    silent,
)
from signalbus.ledger.facts import FIELDS, STEPS, Step, to_row
from signalbus.sessions import Down, DownReason, SessionInfo

NOW = datetime(2026, 1, 2, 12, tzinfo=UTC)
SESSION = SessionInfo(id="s1", name="shop", host="web-1", pid=812, version="1", started=NOW)


def recorder(**options: Any) -> Recorder:
    ticks = iter(range(1_000_000))
    return Recorder(SESSION, LedgerSettings(**options), clock=lambda: float(next(ticks)))


def taken(told: Recorder, limit: int = 1000) -> Batch:
    batch = told.take(limit)
    assert batch is not None
    return batch


def kinds(told: Recorder) -> list[str]:
    batch = told.take(1000)
    return [fact.step.kind for fact in batch.facts()] if batch else []


# Recording


def test_facts_come_out_in_the_order_and_with_the_numbers_they_were_told_in() -> None:
    told = recorder()
    told.accepted("a", "order.placed", "shop", subscriptions=("billing",), seconds=0.25)
    told.delivered("a", "order.placed", "billing", 1, queued=0.5)
    told.acked("a", "order.placed", "billing", 1, seconds=0.125)
    first, second = taken(told, 2), taken(told, 2)
    facts = [*first.facts(), *second.facts()]
    assert [fact.sequence for fact in facts] == [1, 2, 3]
    assert [fact.step.kind for fact in facts] == ["accepted", "delivered", "acked"]
    assert len({fact.id for fact in facts}) == 3
    assert facts[2].step == Acked(signal="a", type="order.placed", subscription="billing", seconds=0.125)
    assert facts[0].origin.session == "s1"
    assert told.take(2) is None


def test_two_recorders_of_one_session_never_share_the_id_of_a_fact() -> None:
    one, other = recorder(), recorder()
    for told in (one, other):
        told.acked("a", "t", "s", 1)
    assert taken(one).facts()[0].id != taken(other).facts()[0].id


def test_every_kind_of_fact_can_be_told_and_read_again() -> None:
    told = recorder()
    payload = told.payload(b'{"order_id":"A-1"}', "application/json")
    told.accepted("a", "t", "shop", payload=payload)
    told.unroutable("b", "t", "shop", payload=payload)
    told.requested("c", "t", "shop", payload=payload, timeout=2.0)
    told.replied("c", "t", ReplySide.RESPONDER, "reply", 0.1)
    told.delivered("a", "t", "s", 1)
    told.acked("a", "t", "s", 1)
    told.retried("a", "t", "s", 1, error="TimeoutError", message="gateway", delay=1.0)
    told.dead("a", "t", "s", 2, reason="attempts exhausted")
    told.released("a", "t", "s", 1, reason="drained")
    told.replayed("a", "t", "s", by="ops")
    told.session_up(SESSION)
    told.session_down(Down(session="s2", reason=DownReason.CONNECTION_LOST, at=NOW, unsettled=3))
    batch = decode(encode(taken(told)))
    assert {row[0] for row in batch.rows} == set(STEPS)
    steps = [fact.step for fact in batch.facts()]
    assert [getattr(step, "data", None) for step in steps[:3]] == ['{"order_id":"A-1"}'] * 3
    assert steps[-1] == SessionDown(session="s2", reason="connection_lost", unsettled=3)
    assert all(len(row) == 2 + len(FIELDS[str(row[0])]) for row in batch.rows)


def test_a_full_buffer_drops_new_facts_and_says_how_many() -> None:
    told = recorder(capacity=2)
    for number in range(5):
        told.acked(str(number), "t", "s", 1)
    batch = taken(told)
    assert ([row[2] for row in batch.rows], batch.dropped, told.dropped) == (["0", "1"], 3, 3)
    told.acked("later", "t", "s", 1)
    assert taken(told).first == 3


def test_payloads_beyond_their_bound_are_left_out_but_the_facts_stay() -> None:
    told = recorder(payload_bytes=10)
    for _ in range(2):
        told.accepted("a", "t", "shop", payload=Payload(b'"12345"', "application/json", frozenset()))
    steps = [fact.step for fact in taken(told).facts()]
    assert [getattr(step, "data", None) for step in steps] == ['"12345"', None]
    assert told.payloads_left_out == 1
    told.accepted("a", "t", "shop", payload=Payload(b'"12345"', "application/json", frozenset()))
    assert getattr(taken(told).facts()[0].step, "data", None) == '"12345"', "taking makes room again"


def test_a_batch_holds_the_facts_of_one_session_only() -> None:
    told = recorder()
    told.session_up(SESSION)
    told.acked("a", "t", "s", 1)
    told.session_up(SESSION.next())
    told.acked("b", "t", "s", 1)
    first, second = taken(told), taken(told)
    assert [row[0] for row in first.rows] == [row[0] for row in second.rows] == ["session_up", "acked"]
    assert (first.origin.session, second.origin.session) == ("s1", "s1:2")
    assert first.origin.recorder == second.origin.recorder
    assert second.first == 3


def test_without_a_session_facts_wait_until_there_is_one() -> None:
    told = Recorder()
    told.acked("a", "t", "s", 1)
    assert told.take(10) is None
    told.session_up(SESSION)
    batch = taken(told)
    assert ([row[0] for row in batch.rows], batch.origin.session, batch.first) == (["acked", "session_up"], "s1", 1)


def test_who_takes_facts_is_called_for_the_first_of_them() -> None:
    told = recorder()
    stirred: list[int] = []
    told.stirred = lambda: stirred.append(len(told))
    told.acked("a", "t", "s", 1)
    told.acked("b", "t", "s", 1)
    assert stirred == [1]
    taken(told)
    told.acked("c", "t", "s", 1)
    assert stirred == [1, 1]


def test_a_batch_of_large_payloads_fits_into_one_message() -> None:
    told = recorder(capture=Capture(mode=CaptureMode.FULL))
    body = b'"' + b"x" * 250_000 + b'"'
    for number in range(40):
        told.accepted(str(number), "t", "shop", payload=told.payload(body, "application/json"))
    sizes = [len(encode(batch)) for batch in iter(lambda: told.take(250), None)]
    assert max(sizes) < 8 << 20
    assert sum(sizes) > 9 << 20, "none of them was left out"


def test_telling_can_be_asked_for_before_a_fact_is_put_together() -> None:
    assert recorder().tells("a")
    assert not recorder(level=Level.FAILURES).tells("a")
    assert not silent().tells("a")
    half = recorder(share=0.5)
    assert {half.tells(str(number)) for number in range(50)} == {True, False}


def test_sessions_that_told_nothing_do_not_hold_up_the_others() -> None:
    told = recorder(level=Level.FAILURES, capacity=1)
    info = SESSION
    for _ in range(3):
        info = info.next()
        told.session_up(info)
    assert taken(told).origin.session == "s1:2"
    told.retried("a", "t", "s", 1)
    assert taken(told).origin.session == "s1:4"


def everything(told: Recorder, signal: str = "a") -> None:
    told.accepted(signal, "t", "shop")
    told.delivered(signal, "t", "s", 1)
    told.retried(signal, "t", "s", 1)
    told.delivered(signal, "t", "s", 2)
    told.acked(signal, "t", "s", 2)
    told.acked(signal, "t", "other", 1)
    told.dead(signal, "t", "third", 1)
    told.unroutable(signal, "t", "shop")
    told.replayed(signal, "t", "third")
    told.requested(signal, "t", "shop")
    told.replied(signal, "t", ReplySide.REQUESTER, "reply")
    told.replied(signal, "t", ReplySide.REQUESTER, "expired")


FAILURES = ["retried", "acked", "dead", "unroutable", "replayed", "replied"]


def test_level_failures_tells_what_failed_and_how_that_ended() -> None:
    told = recorder(level=Level.FAILURES)
    everything(told)
    assert kinds(told) == FAILURES


def test_level_off_tells_nothing_and_reads_no_payload() -> None:
    told = recorder(level=Level.OFF)
    everything(told)
    told.session_up(SESSION)
    assert kinds(told) == []
    assert told.payload(b"{}", "application/json") is None


def test_a_share_chooses_whole_signals_alike_everywhere_and_always_keeps_failures() -> None:
    one, other = recorder(share=0.25), recorder(share=0.25)
    signals = [f"signal-{number}" for number in range(2_000)]
    for signal in signals:
        one.accepted(signal, "t", "shop")
        other.acked(signal, "t", "s", 1)
    chosen = [row[2] for row in taken(one, 10_000).rows]
    assert chosen == [row[2] for row in taken(other, 10_000).rows]
    assert 350 < len(chosen) < 650
    left_out = next(signal for signal in signals if signal not in chosen)
    everything(one, left_out)
    assert kinds(one) == FAILURES


@pytest.mark.parametrize("options", [{"share": 1.5}, {"share": -0.1}, {"capacity": 0}])
def test_settings_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="must be"):
        LedgerSettings(**options)


def test_recording_takes_less_than_a_microsecond() -> None:
    """CPU time, the best of many short runs: what else the machine does is not what is measured."""
    told = Recorder(SESSION, LedgerSettings(capacity=10_000_000))
    signal = "0192f9f0-0000-7000-8000-000000000000"
    facts = {
        "acked": lambda: told.acked(signal, "order.placed", "billing", 1, 0, 0.1),
        "delivered": lambda: told.delivered(signal, "order.placed", "billing", 1, 0, 0.1),
        "accepted": lambda: told.accepted(signal, "order.placed", "shop", seconds=0.1),
    }
    figures = {
        name: min(timeit.repeat(tell, number=500, repeat=60, timer=time.thread_time)) / 500 * 1e6
        for name, tell in facts.items()
    }
    print("microseconds a fact:", {name: round(value, 3) for name, value in figures.items()})
    assert max(figures.values()) < 1.0


# On the wire

_TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
_NUMBER = st.floats(-1e14, 1e14, allow_nan=False)
_INTEGER = st.integers(-(2**62) + 1, 2**62 - 1)
_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "str": _TEXT,
    "int": _INTEGER,
    "bool": st.booleans(),
    "str | None": st.none() | _TEXT,
    "int | None": st.none() | _INTEGER,
    "float | None": st.none() | _NUMBER,
    "tuple[str, ...] | None": st.none() | st.lists(_TEXT, max_size=3).map(tuple),
}


def _steps() -> st.SearchStrategy[Step]:
    return st.one_of(
        [
            st.builds(kind, **{name: _VALUES[str(kind.__dataclass_fields__[name].type)] for name in FIELDS[kind.kind]})
            for kind in STEPS.values()
        ]
    )


_ORIGINS = st.builds(
    Origin,
    recorder=_TEXT,
    session=_TEXT,
    name=_TEXT,
    host=_TEXT,
    pid=_INTEGER,
    level=st.sampled_from(["all", "failures"]),
    share=st.floats(0, 1),
)


@given(
    origin=_ORIGINS,
    first=st.integers(1, 2**61),
    steps=st.lists(st.tuples(_NUMBER, _steps()), max_size=8),
    dropped=st.integers(0, 2**61),
)
@settings(deadline=None)
def test_a_batch_survives_the_way(origin: Origin, first: int, steps: list[tuple[float, Step]], dropped: int) -> None:
    batch = Batch(origin=origin, first=first, rows=[to_row(at, step) for at, step in steps], dropped=dropped)
    again = decode(encode(batch))
    assert again.facts() == batch.facts()
    assert (again.origin, again.first, again.dropped) == (origin, first, dropped)
    assert [(fact.at, fact.step) for fact in again.facts()] == steps


@given(
    encoded=st.binary(max_size=60)
    | st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=4)
            | st.dictionaries(
                st.sampled_from(["v", "recorder", "session", "facts", "first", "pid", "share"]), inner, max_size=7
            )
        ),
    ).map(lambda value: json.dumps(value).encode())
)
@settings(deadline=None)
def test_any_bytes_are_a_batch_or_a_clear_error(encoded: bytes) -> None:
    said = ""
    try:
        decode(encoded).facts()
    except (MalformedBatch, NewerBatch) as error:
        said = str(error)
    assert not said or "batch of facts" in said or "of the batch" in said


def _members(**changed: object) -> bytes:
    told = recorder()
    told.acked("a", "t", "s", 1)
    return orjson.dumps({**orjson.loads(encode(taken(told))), **changed})


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"v": None}, "version"),
        ({"first": 0}, "'first' is 0"),
        ({"recorder": 7}, "'recorder' is not a string"),
        ({"pid": 2**63}, "'pid' is not a number that fits"),
        ({"share": "x"}, "'share'"),
        ({"facts": {}}, "'facts' is not an array"),
        ({"facts": [7]}, "fact 0"),
        ({"facts": [["exploded", 1.0]]}, "no known kind: 'exploded'"),
        ({"facts": [["acked", "now", "a", "t", "s"]]}, "no time"),
        ({"facts": [["acked", 1.0, "a", "t"]]}, "lacks 'subscription'"),
        ({"facts": [["acked", 1.0, "a", "t", "s", "one"]]}, "'attempt' is 'one'"),
        ({"facts": [["acked", 1.0, "a", "t", "s", True]]}, "'attempt' is True"),
    ],
)
def test_a_malformed_batch_says_what_is_wrong(changed: dict[str, object], said: str) -> None:
    with pytest.raises(MalformedBatch, match=said):
        decode(_members(**changed))


def test_a_newer_batch_says_what_to_update() -> None:
    with pytest.raises(NewerBatch, match=r"version 2.*update the router"):
        decode(_members(v=2))


def test_unknown_members_and_fields_are_ignored_and_missing_ones_take_defaults() -> None:
    row = ["acked", 1.5, "a", "t", "s", 2, 0, 0.25, "from the future", {"x": 1}]
    batch = decode(_members(colour="blue", facts=[row, ["acked", 2.5, "b", "t", "s"]]))
    expected = [
        Acked(signal="a", type="t", subscription="s", attempt=2, seconds=0.25),
        Acked(signal="b", type="t", subscription="s"),
    ]
    assert [fact.step for fact in batch.facts()] == expected


def test_text_that_is_no_unicode_does_not_hold_up_a_batch() -> None:
    told = recorder()
    told.retried("a", "t", "s", 1, message="half \ud800 a pair")
    told.acked("b", "t", "s", 1)
    steps = [fact.step for fact in decode(encode(taken(told))).facts()]
    assert getattr(steps[0], "message", None) == "half ? a pair"
    assert steps[1] == Acked(signal="b", type="t", subscription="s")


def test_a_batch_is_compact() -> None:
    told = recorder()
    for number in range(1_000):
        told.acked(f"0192f9f0-0000-7000-8000-{number:012}", "order.placed", "billing", 1, 0, 0.0123)
    assert len(encode(taken(told))) < 1_000 * 110


# Payloads


class Card(BaseModel):
    number: SecretStr
    holder: str

    @field_serializer("number")
    def reveal(self, number: SecretStr) -> str:
        return number.get_secret_value()


class Order(BaseModel):
    order_id: str
    cards: list[Card | None]


def kept(data: object, **options: Any) -> tuple[Any, bool]:
    capture = Capture(**options)
    body, content_type = encode_data(data, None)
    payload = capture.payload(body, content_type, data)
    assert payload is not None
    text, cut = capture.read(payload)
    return json.loads(text), cut


def test_fields_with_secret_names_are_redacted_wherever_they_are() -> None:
    data = {"user": {"Password": "x", "db-password": "x", "name": "Ann"}, "list": [{"apiKey": "x", "keys": 1}]}
    assert kept(data) == (
        {
            "user": {"Password": "[redacted]", "db-password": "[redacted]", "name": "Ann"},
            "list": [{"apiKey": "[redacted]", "keys": 1}],
        },
        False,
    )


def test_redacted_names_are_words_not_parts_of_words() -> None:
    data = {"pin": 1, "shipping": 2, "card_pin": 3, "userPIN": 4, "password": 5}
    assert kept(data, redact=("pin",))[0] == {
        "pin": "[redacted]",
        "shipping": 2,
        "card_pin": "[redacted]",
        "userPIN": "[redacted]",
        "password": 5,
    }


def test_secrets_by_type_are_redacted_even_where_the_model_reveals_them() -> None:
    order = Order(order_id="A-1", cards=[Card(number=SecretStr("4111"), holder="Ann"), None])
    assert b"4111" in encode_data(order, None)[0]
    expected = {"order_id": "A-1", "cards": [{"number": "[redacted]", "holder": "Ann"}, None]}
    assert kept(order) == (expected, False)
    assert kept([order])[0] == [expected]
    assert kept({"order": order}, mode=CaptureMode.FULL)[0] == {"order": expected}


def test_a_truncated_payload_stays_json_within_its_limit() -> None:
    data = {"order_id": "A-1", "text": "x" * 9_000, "lines": [{"sku": str(number)} for number in range(900)]}
    found, cut = kept(data, limit=500)
    assert cut
    assert found["order_id"] == "A-1"
    assert found["text"].endswith("…")
    assert len(json.dumps(found, ensure_ascii=False).encode()) <= 600
    assert kept(data, mode=CaptureMode.FULL) == (data, False)


@given(
    data=st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"])),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(st.characters(exclude_categories=["Cs"])), inner),
    ),
    limit=st.integers(64, 300),
)
@settings(deadline=None)
def test_any_json_fits_and_what_is_not_cut_is_what_it_was(data: object, limit: int) -> None:
    capture = Capture(limit=limit, redact=())
    payload = Payload(json.dumps(data).encode(), "application/json", frozenset())
    text, cut = capture.read(payload)
    assert len(text.encode()) <= limit
    assert cut or json.loads(text) == data


def test_large_integers_survive() -> None:
    assert kept({"n": 12345678901234567890123})[0] == {"n": 12345678901234567890123}


@pytest.mark.parametrize(
    ("body", "content_type", "said"),
    [
        (b"password=x", "text/plain", "[10 bytes of text/plain]"),
        (b"\x00\x01", None, "[2 bytes of unknown type]"),
        (b'{"password": "x', "application/json", "[15 bytes that are not JSON]"),
        (b"[" * 100_000, "application/json", "[100000 bytes that are not JSON]"),
    ],
)
def test_what_cannot_be_redacted_is_described_not_kept(body: bytes, content_type: str | None, said: str) -> None:
    text, cut = Capture().read(Payload(body, content_type, frozenset()))
    assert (json.loads(text), cut) == (said, True)


def test_an_integer_that_python_does_not_write_is_described() -> None:
    text, cut = Capture().read(Payload(b'{"n":' + b"9" * 5_000 + b"}", "application/json", frozenset()))
    assert cut
    assert text.startswith('"[') or len(text) < 10_000


def test_deeply_nested_payloads_are_cut() -> None:
    data: object = "x"
    for _ in range(100):
        data = {"a": data}
    assert kept(data, mode=CaptureMode.FULL)[1]


def test_capture_off_notes_nothing() -> None:
    assert Capture(mode=CaptureMode.OFF).payload(b"{}", "application/json") is None

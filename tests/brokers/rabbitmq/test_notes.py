"""Notes between sessions: what is written is read, and what strangers write is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from pamqp.header import ContentHeader

from signalbus.brokers.rabbitmq import notes
from signalbus.brokers.rabbitmq.lane import Received, of_header
from signalbus.brokers.rabbitmq.notes import Malformed, Note, Report
from signalbus.brokers.rabbitmq.roster import REMEMBERED, Roster
from signalbus.brokers.rabbitmq.topology import MAX_QUEUE_BYTES, Topology
from signalbus.sessions import DownReason, SessionInfo

INFO = SessionInfo(
    id="01a217bf-9b45-7000-8000-000000000001:3",
    name="shop",
    host="host-1",
    pid=4321,
    version="1.2.3",
    started=datetime(2026, 11, 26, 12, 0, 0, 123000, UTC),
    incarnation=3,
)


def message(body: bytes, kind: Note, key: str = "", **headers: object) -> Received:
    """Return a note as it is delivered."""
    properties = notes.properties(kind, "id", number=1)
    assert properties.headers is not None
    properties.headers.update(headers)  # type: ignore[arg-type]
    return Received(1, False, key, of_header(ContentHeader(properties=properties)), body)


def test_a_session_survives_the_wire() -> None:
    assert notes.read_up(message(notes.write_token(INFO, 0), Note.UP)) == INFO


def test_a_compact_session_fits_into_the_name_of_a_queue() -> None:
    topology = Topology("p" * 60, "quorum")
    for info in (INFO, replace(INFO, name="ü" * 300, host="h" * 300, version="v" * 300, pid=4_194_304)):
        room = MAX_QUEUE_BYTES - len(topology.presence(info.id, ""))
        queue = topology.presence(info.id, notes.compact(info, room))
        assert len(queue) <= MAX_QUEUE_BYTES
        found = topology.present(queue)
        assert found is not None
        read = notes.expand(*found)
        assert (read.id, read.pid, read.started, read.incarnation) == (info.id, info.pid, info.started, 3)
        assert info.name.startswith(read.name)
        assert info.host.startswith(read.host)
    assert notes.expand(INFO.id, notes.compact(INFO, 200)) == INFO


def test_queues_that_are_no_presence_are_told_apart() -> None:
    topology = Topology("signalbus", "quorum")
    assert topology.present("signalbus.lease.x") is None
    assert topology.present("other.here.x.abc") is None
    assert topology.present("signalbus.here.x.abc") == ("x", "abc")


def test_a_report_survives_the_wire() -> None:
    report = Report(info=INFO, temporary={"watch": ("order.*", "#")}, text=bytes(range(256)))
    assert notes.read_report(message(notes.write_report(report), Note.REPORT)) == report


def test_a_goodbye_says_why_and_a_token_only_that() -> None:
    goodbye = notes.write_goodbye(INFO, DownReason.KILLED_BY_SUPERVISOR, unsettled=0)
    down = notes.read_down(message(goodbye, Note.DOWN, f"down.{INFO.id}"))
    assert (down.session, down.reason, down.name, down.unsettled) == (INFO.id, "killed_by_supervisor", "shop", 0)
    token = notes.write_token(INFO, 7)
    down = notes.read_down(message(token, Note.TOKEN, f"down.{INFO.id}"))
    assert (down.reason, down.unsettled) == (DownReason.CONNECTION_LOST, 7)


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"\xff",
        b"[]",
        b"null",
        b'{"session": 7}',
        b'{"session": {"name": "x"}, "reason": "bored", "unsettled": 1}',
        b'{"session": {"name": "x"}, "reason": ["normal"], "unsettled": 1}',
        b"[" * 100_000,
        b'{"session": {"id": "' + b"x" * 300 + b'"}}',
        b'{"session": {"id": "x", "name": "x", "host": "x", "pid": -1}}',
        b'{"session": {"id": "x", "name": "x", "host": "x", "pid": 1, "version": "1", "started": "now"}}',
        b"0" * (notes.BODY_BYTES + 1),
    ],
)
def test_what_cannot_be_read_is_malformed(body: bytes) -> None:
    for read, kind in ((notes.read_up, Note.UP), (notes.read_down, Note.DOWN), (notes.read_report, Note.REPORT)):
        with pytest.raises(Malformed):
            read(message(body, kind, "down.x"))


@pytest.mark.parametrize("text", ["", "!", "bnVsbA", "W10", "WzEsMiwzLDQsNSw2LDdd", "WyJhIiwiYiIsMSwidiIsMWUzMDAsMV0"])
def test_a_compact_session_that_is_none_is_malformed(text: str) -> None:
    with pytest.raises(Malformed):
        notes.expand("x", text)


def test_the_end_of_no_session_is_malformed() -> None:
    for key in ("", "down", "down.", "up.x"):
        with pytest.raises(Malformed):
            notes.read_down(message(json.dumps({"session": {}}).encode(), Note.TOKEN, key))


def test_a_note_without_a_number_is_malformed() -> None:
    without = message(b"", Note.ROLL, **{notes.NUMBER: "7"})
    with pytest.raises(Malformed):
        notes.number_of(without)


def test_an_end_is_news_once_and_stays_so() -> None:
    roster = Roster()
    roster.lives(INFO)
    assert list(roster.living) == [INFO.id]
    assert roster.ended(INFO.id)
    assert not roster.ended(INFO.id)
    roster.lives(INFO)  # its announcement came late
    assert not roster.living
    for number in range(REMEMBERED):
        roster.ended(str(number))
    assert not roster.has_ended(INFO.id), "what is remembered is bounded"

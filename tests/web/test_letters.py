"""Dead letters over HTTP: looking, deciding, and who did it."""

from __future__ import annotations

import asyncio
import base64
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest

from signalbus.deadletters import LetterPage, LetterQuery, LetterState
from tests.trace.examples import HOSTILE
from tests.web.ask import Answer, get, post
from tests.web.fakes import FakeLetters, letter
from tests.web.world import World, world

BASE = "/api/v1/dead-letters"


def some(count: int = 3) -> FakeLetters:
    return FakeLetters(letter(number) for number in range(count))


def states(letters: FakeLetters) -> list[LetterState]:
    return [letter.summary.state for _, letter in sorted(letters.letters.items())]


async def order(here: World, verb: str, body: object, headers: dict[str, str] | None = None) -> Answer:
    return await post(here.port, f"{BASE}/{verb}", body, headers)


async def test_they_are_listed_in_pages(tmp_path: Path) -> None:
    async with world(tmp_path, letters=some(5)) as here:
        first = (await get(here.port, f"{BASE}?limit=3")).json
        assert (first["total"], len(_of(first, "letters"))) == (5, 3)
        rest = (await get(here.port, f"{BASE}?limit=3&after={first['next']}")).json
        assert (len(_of(rest, "letters")), rest["next"]) == (2, "")
        groups = (await get(here.port, f"{BASE}/groups")).list
        assert [group["counts"] for group in groups] == [{"dead": 5}]


def _of(told: dict[str, object], name: str) -> list[object]:
    found = told[name]
    assert isinstance(found, list)
    return found


async def test_one_is_shown_with_its_signal_as_it_was(tmp_path: Path) -> None:
    body = bytes(range(256)) * 4
    async with world(tmp_path, letters=FakeLetters([letter(1, body=body)])) as here:
        told = (await get(here.port, f"{BASE}/letter-000001")).json
        content, history = told["content"], told["history"]
        assert isinstance(content, dict)
        assert base64.urlsafe_b64decode(content["body"]) == body
        assert isinstance(history, list)
        assert "billing.py" in history[0]["traceback"]
        [found] = (await get(here.port, f"{BASE}/find?prefix=signal-000001")).list
        assert found["id"] == "letter-000001"


async def test_a_replay_is_accepted_and_can_be_followed_and_cancelled(tmp_path: Path) -> None:
    letters = some()
    async with world(tmp_path, letters=letters) as here:
        answer = await order(here, "replay", {"query": {"subscription": "billing"}, "rate": 5})
        assert answer.status == 202
        assert (answer.json["total"], answer.json["waiting"], answer.json["rate"]) == (3, 3, 5.0)
        place = answer.headers["location"]
        letters.send(str(answer.json["id"]), 1)
        assert (await get(here.port, place)).json["pending"] == 1
        again = await order(here, "replay", {"query": {}})  # the second click
        assert (again.json["total"], again.json["taken"]) == (0, 3)
        cancelled = await post(here.port, f"{place}/cancel", b"")
        assert (cancelled.status, cancelled.json["count"]) == (200, 2)
        assert (await get(here.port, place)).json["cancelled"] == 2
        assert len((await get(here.port, "/api/v1/replays")).list) == 2


async def test_a_dry_run_only_counts(tmp_path: Path) -> None:
    letters = FakeLetters([letter(1), letter(2), letter(3, state=LetterState.DISCARDED)])
    before = states(letters)
    async with world(tmp_path, letters=letters) as here:
        for verb, query, count in (
            ("replay", {}, 2),
            ("discard", {"ids": ["letter-000001", "letter-000003"]}, 1),
            ("restore", {"states": ["discarded"]}, 1),
        ):
            answer = await order(here, verb, {"query": query, "dry_run": True})
            assert (answer.status, answer.json) == (200, {"count": count, "dry_run": True}), verb
        assert (await get(here.port, "/api/v1/audit")).list == []
    assert states(letters) == before


async def test_discarding_can_be_undone(tmp_path: Path) -> None:
    letters = some(2)
    async with world(tmp_path, letters=letters) as here:
        one = {"ids": ["letter-000001"]}
        assert (await order(here, "discard", {"query": one, "note": "not ours"})).json == {"count": 1, "dry_run": False}
        assert states(letters) == [LetterState.DEAD, LetterState.DISCARDED]
        assert (await order(here, "restore", {"query": {**one, "states": ["discarded"]}})).json["count"] == 1
        assert states(letters) == [LetterState.DEAD] * 2
        notes = [entry["note"] for entry in (await get(here.port, "/api/v1/audit")).list]
        assert notes == ["", "not ours"]


@pytest.mark.parametrize(
    ("told", "by"),
    [
        (None, "api at 127.0.0.1"),
        ("ops", "ops"),
        ("%C5%BDofie%20at%20home", "Žofie at home"),
        ("%1b[31mred%0d%0aX: 1%e2%80%ae", "\\x1b[31mred\\r\\nX: 1\\u202e"),
        ("x" * 5_000, "x" * 100),
        ("  ", "api at 127.0.0.1"),
    ],
)
async def test_who_asked_is_in_the_audit(tmp_path: Path, told: str | None, by: str) -> None:
    async with world(tmp_path, letters=some(1)) as here:
        headers = {} if told is None else {"X-Signalbus-User": told}
        await order(here, "discard", {"query": {}}, headers)
        [entry] = (await get(here.port, "/api/v1/audit")).list
        assert entry["by"] == by


@pytest.mark.parametrize(
    ("verb", "body", "where"),
    [
        ("replay", b"", "query"),
        ("replay", b"{", ""),
        ("replay", b"[]", ""),
        ("replay", b"null", ""),
        ("replay", b"\xff", ""),
        ("replay", b'{"query": {"idss": ["x"]}}', "query.idss"),
        ("replay", b'{"query": {}, "rates": 1}', "rates"),
        ("replay", b'{"query": {}, "rate": 0}', "rate"),
        ("replay", b'{"query": {}, "rate": 1e99}', "rate"),
        ("replay", b'{"query": {}, "rate": NaN}', "rate"),
        ("replay", b'{"query": {"since": Infinity}}', "query.since"),
        ("replay", b'{"query": {"states": ["alive"]}}', "query.states.0"),
        ("replay", b'{"query": {"group": "\\ud800"}}', ""),
        ("replay", b'{"query": {}, "dry_run": 0}', "dry_run"),
        ("discard", b'{"query": {}, "dry_run": "no"}', "dry_run"),
        ("discard", b'{"query": {"since": true}}', "query.since"),
        ("discard", b'{"query": {"since": "1"}}', "query.since"),
        ("replay", b'{"query": {}, "rate": "5"}', "rate"),
        ("discard", b'{"query": {}, "note": 5}', "note"),
        ("restore", b'{"query": {}}', ""),
        ("replay", b"[" * 100_000, ""),
    ],
)
async def test_an_order_that_cannot_be_read_is_422_with_the_reason_and_the_place(
    tmp_path: Path, verb: str, body: bytes, where: str
) -> None:
    letters = some()
    async with world(tmp_path, letters=letters) as here:
        answer = await order(here, verb, body)
        assert answer.status == 422
        assert answer.json["error"]
        assert answer.json["advice"]
        if where:
            details = answer.json["details"]
            assert isinstance(details, list)
            assert where in [detail["where"] for detail in details]
    assert states(letters) == [LetterState.DEAD] * 3


@pytest.mark.parametrize(
    ("query", "where"),
    [
        ("limit=0", "limit"),
        ("limit=501", "limit"),
        ("limit=1&limit=2", "limit"),
        ("limit=%F0%9F%98%80", "limit"),
        ("state=alive", "state.0"),
        ("type=a..b", "type.0"),
        ("type=%23.a.%23", "type.0"),
        ("since=soon", "since"),
        ("since=nan", "since"),
        ("since=1e400", "since"),
        ("since=999999999999999w", "since"),
        ("until=12345-01-01", "until"),
        ("group=" + "x" * 1_001, "group"),
        ("nothing=1", "nothing"),
        ("group=x&%00=1", "\x00"),
        ("&".join(["id=x"] * 101), "id"),
    ],
)
async def test_a_question_that_cannot_be_read_is_422_with_the_place(tmp_path: Path, query: str, where: str) -> None:
    async with world(tmp_path) as here:
        answer = await get(here.port, f"{BASE}?{query}")
        assert answer.status == 422, answer
        details = answer.json["details"]
        assert isinstance(details, list)
        assert details[0]["where"] == where


async def test_an_answer_that_takes_too_long_is_504(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang(query: LetterQuery) -> LetterPage:
        await asyncio.Event().wait()
        raise AssertionError

    monkeypatch.setattr("signalbus.web.app.REQUEST_SECONDS", 0.1)
    async with world(tmp_path) as here:
        monkeypatch.setattr(here.letters, "page", hang)
        answer = await get(here.port, BASE)
        assert (answer.status, answer.json["type"]) == (504, "TimeoutError")
        assert answer.json["advice"]


async def test_what_is_not_there_is_404(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        for path in ("dead-letters/nothing", "replays/nothing", "dead-letters/..%2f..%2fetc%2fpasswd"):
            assert (await get(here.port, f"/api/v1/{path}")).status == 404
        assert (await post(here.port, "/api/v1/replays/nothing/cancel")).status == 404
        assert (await get(here.port, f"{BASE}/replay", method="PUT")).status == 415
        assert (await post(here.port, f"{BASE}/replay", method="PUT")).status == 405


async def test_hostile_text_stays_text(tmp_path: Path) -> None:
    body = b"x" * 10_000_000
    nasty = letter(1, detail=HOSTILE, place=HOSTILE, error=HOSTILE, subscription=f"sub{HOSTILE}", body=body)
    async with world(tmp_path, letters=FakeLetters([nasty])) as here:
        answers = [await get(here.port, path) for path in (BASE, f"{BASE}/groups", f"{BASE}/letter-000001", "/metrics")]
        for answer in answers:
            assert answer.status == 200
            assert not set(answer.body) & set(b"\x1b\x00\r")
            assert "\u202e".encode() not in answer.body
        shown = answers[2].json["summary"]
        assert isinstance(shown, dict)
        assert shown["detail"] == HOSTILE
        content = answers[2].json["content"]
        assert isinstance(content, dict)
        assert base64.urlsafe_b64decode(content["body"]) == body


@pytest.mark.parametrize(
    "identity", [f"id{HOSTILE}", "../../etc/passwd", "a/b", "%2e%2e", "x/facts", "?x=1#y", "ž" * 50]
)
async def test_any_id_can_be_asked_for(tmp_path: Path, identity: str) -> None:
    found = letter(1)
    named = replace(found, summary=replace(found.summary, id=identity))
    async with world(tmp_path, letters=FakeLetters([named])) as here:
        answer = await get(here.port, f"{BASE}/{quote(identity, safe='')}")
        assert answer.status == 200
        shown = answer.json["summary"]
        assert isinstance(shown, dict)
        assert shown["id"] == identity

"""Pages of dead letters, and what their forms do, as the server renders and answers them."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlencode

import pytest

from signalbus.deadletters import LetterState
from tests.web.page_client import Answer, Client
from tests.web.page_letters import letter
from tests.web.page_world import page_world

GROUP = "g-billing-TimeoutError"


async def confirmed(client: Client, query: str, **fields: str) -> Answer:
    """Ask for an action, and say yes: what a person does with two clicks."""
    asked = await client.get(f"/dead-letters/confirm?{query}")
    assert asked.status == 200, asked.page.text
    form = asked.page.all("form", method="post")[0]
    return await client.post(form.attributes["action"], [*asked.page.hidden(), *fields.items()])


async def test_without_dead_letters_the_page_says_what_they_are(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        page = (await world.client.get("/dead-letters")).page
        assert "No dead letters" in page.text
        assert "signalbus dead list" in page.text
        assert not page.all("form", method="post")


async def test_groups_show_error_place_counts_and_what_can_be_done(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        world.letters.add(*(letter(number) for number in range(1, 4)))
        world.letters.add(letter(9, subscription="shipping", error="", detail="", place=""))
        page = (await world.client.get("/dead-letters")).page
        for expected in ("4 dead letters in 2 groups", "TimeoutError", "billing.py:12 in charge", "✗ dead 3"):
            assert expected in page.text
        assert f"/dead-letters/list?group={GROUP}" in page.links()
        assert f"/dead-letters/confirm?action=replay&group={GROUP}" in page.links()


async def test_a_group_lists_its_letters_page_by_page(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        world.letters.add(*(letter(number) for number in range(1, 121)))
        url, seen = f"/dead-letters/list?group={GROUP}", list[str]()
        for _ in range(3):
            page = (await world.client.get(url)).page
            assert "120 dead letters" in page.text
            seen += [link for link in page.links() if link.startswith("/dead-letters/letters/")]
            older = [each.attributes["href"] for each in page.all("a", rel="next")]
            url = older[0] if older else ""
        assert not url
        assert len(seen) == len(set(seen)) == 120


async def test_a_letter_shows_history_traceback_payload_and_its_signal(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        one = letter(1, text="")
        world.letters.add(one)
        page = (await world.client.get("/dead-letters/letters/d-000001")).page
        for expected in (
            *("attempts exhausted", "attempt 5", "attempt 4", 'File "billing.py", line 12, in charge'),
            *('"total": 12345678901234567890123', "application/json, 50 bytes", "it died 2 times"),
        ):
            assert expected in page.text
        assert f"/traces/{one.summary.signal}" in page.links()
        assert (await world.client.get("/dead-letters/letters/d-999999")).status == 404


@pytest.mark.parametrize(
    ("body", "content_type", "shown"),
    [
        (b"", None, "None."),
        (b"\xff\xfe\x00\x1b[31m", "application/octet-stream", r"\xff\xfe\x00\x1b[31m"),
        ("Grüße\u202e".encode(), "text/plain", r"Grüße\u202e"),
        (b'{"a":[1,', "application/json", '"a": ['),
        (b"x" * 10_000_000, "text/plain", "Cut here; the whole payload has 10,000,000 bytes"),
        (b"[" * 100_000, "application/json", "Cut here; the whole payload has 100,000 bytes"),
    ],
)
async def test_any_payload_is_shown_escaped_and_bounded(
    tmp_path: Path, body: bytes, content_type: str | None, shown: str
) -> None:
    async with page_world(tmp_path) as world:
        world.letters.add(letter(1, body=body, content_type=content_type))
        answer = await world.client.get("/dead-letters/letters/d-000001")
        assert answer.status == 200
        assert shown in answer.page.text
        assert len(answer.body) < 60_000


async def test_a_replay_of_one_asks_first_and_then_shows_how_far_it_is(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        world.letters.add(letter(1), letter(2))
        asked = await world.client.get("/dead-letters/confirm?action=replay&id=d-000001")
        assert "Replay 1 dead letter?" in asked.page.text
        assert world.letters.state("d-000001") is LetterState.DEAD
        done = await confirmed(world.client, "action=replay&id=d-000001", rate="10")
        assert (done.status, done.headers["location"]) == (303, "/dead-letters/replays/r-1")
        assert world.letters.state("d-000001") is LetterState.WAITING
        assert world.letters.state("d-000002") is LetterState.DEAD
        assert (await world.letters.replays())[0].rate == 10
        page = (await world.client.get(done.headers["location"])).page
        assert "▶ sending at most 10 a second" in page.text
        assert page.all("meta", **{"http-equiv": "refresh"}), "without JavaScript it looks again by itself"


async def test_a_replay_counts_what_is_sent_acked_and_dead_again(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        world.letters.add(letter(1), letter(2), letter(3))
        await confirmed(world.client, f"action=replay&group={GROUP}")
        world.letters.send("r-1", 3)
        page = (await world.client.get("/dead-letters/replays/r-1")).page
        assert "waiting for acks" in page.text
        world.letters.settle("d-000001")
        world.letters.settle("d-000002")
        world.letters.settle("d-000003", LetterState.DEAD)
        page = (await world.client.get("/dead-letters/replays/r-1")).page
        assert "settled, not all acked" in page.text
        assert "acked 2 dead again 1" in page.text
        assert not page.all("meta", **{"http-equiv": "refresh"})


async def test_what_dies_after_the_question_is_not_part_of_the_answer(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        world.letters.add(letter(5), letter(6))
        asked = await world.client.get(f"/dead-letters/confirm?action=replay&group={GROUP}")
        assert "Replay 2 dead letters?" in asked.page.text
        world.letters.add(letter(-60))  # dies a minute from now
        done = await world.client.post("/dead-letters/replay", [*asked.page.hidden(), ("rate", "50")])
        assert done.status == 303
        assert (await world.letters.replays())[0].total == 2


async def test_a_second_click_finds_that_it_is_being_replayed_already(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        world.letters.add(letter(1))
        asked = await world.client.get("/dead-letters/confirm?action=replay&id=d-000001")
        await world.client.post("/dead-letters/replay", asked.page.hidden())
        done = await world.client.post("/dead-letters/replay", asked.page.hidden())
        page = (await world.client.get(done.headers["location"])).page
        assert "nothing to do" in page.text
        assert "already replaying: not sent twice" in page.text
        again = await world.client.get("/dead-letters/confirm?action=replay&id=d-000001")
        assert "Nothing fits any more" in again.page.text
        assert not again.page.all("form", method="post")


async def test_a_replay_of_all_that_fits_a_filter_takes_nothing_else(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        world.letters.add(letter(1), letter(2, subscription="shipping"), letter(3, type="invoice.created"))
        page = (await world.client.get("/dead-letters/list?type=order.%23&subscription=billing")).page
        assert "1 dead letter." in page.text
        form = page.all("form", action="/dead-letters/confirm")[0]
        assert form.attributes["method"] == "get"
        query = urlencode([("action", "replay"), *(pair for pair in page.hidden() if pair[0] != "selected")])
        await confirmed(world.client, query)
        assert [world.letters.state(f"d-00000{number}") for number in (1, 2, 3)] == [
            LetterState.WAITING,
            LetterState.DEAD,
            LetterState.DEAD,
        ]


async def test_cancelling_makes_what_was_not_sent_dead_again(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        world.letters.add(*(letter(number) for number in range(1, 6)))
        await confirmed(world.client, f"action=replay&group={GROUP}")
        world.letters.send("r-1", 2)
        page = (await world.client.get("/dead-letters/replays/r-1")).page
        form = page.all("form", method="post")[0]
        done = await world.client.post(form.attributes["action"], page.hidden())
        assert done.status == 303
        page = (await world.client.get(done.headers["location"])).page
        assert "3 dead letters are dead again, as they had not been sent yet" in page.text
        assert "cancelled 3" in page.text


async def test_a_discard_keeps_the_note_and_can_be_undone(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        world.letters.add(letter(1))
        done = await confirmed(world.client, "action=discard&id=d-000001", note="the shop is closed")
        assert done.headers["location"] == "/dead-letters/letters/d-000001?done=discarded&count=1"
        page = (await world.client.get(done.headers["location"])).page
        assert "1 dead letter is discarded" in page.text
        assert "the shop is closed" in page.text
        assert "by page at 127.0.0.1" in page.text
        done = await confirmed(world.client, "action=restore&id=d-000001")
        assert "1 dead letter is dead again" in (await world.client.get(done.headers["location"])).page.text
        assert world.letters.state("d-000001") is LetterState.DEAD


async def test_what_is_stuck_in_a_replay_can_be_freed(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        world.letters.add(letter(1, state=LetterState.REPLAYING))
        await confirmed(world.client, "action=free&id=d-000001")
        assert world.letters.state("d-000001") is LetterState.DEAD


async def test_the_audit_says_who_did_what(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        assert "Nothing was done" in (await world.client.get("/dead-letters/audit")).page.text
        assert "Nothing was replayed" in (await world.client.get("/dead-letters/replays")).page.text
        world.letters.add(letter(1), letter(2))
        await confirmed(world.client, "action=discard&id=d-000001", note="spam")
        await confirmed(world.client, "action=replay&id=d-000002")
        page = (await world.client.get("/dead-letters/audit")).page
        assert "discard 1 dead letter" in page.text
        assert "spam" in page.text
        assert "/dead-letters/replays/r-1" in page.links()
        assert "/dead-letters/replays/r-1" in (await world.client.get("/dead-letters/replays")).page.links()


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("/dead-letters/confirm?action=burn&id=d-000001", "one of replay, discard"),
        ("/dead-letters/confirm?action=replay&selected=1", "no dead letter was selected"),
        ("/dead-letters/confirm?action=restore", "wants single dead letters"),
        ("/dead-letters?state=buried", "one of dead"),
        ("/dead-letters/list?since=x", "15m, 2h or 3d"),
    ],
)
async def test_a_question_that_cannot_be_is_refused_with_the_reason(tmp_path: Path, url: str, reason: str) -> None:
    async with page_world(tmp_path) as world:
        answer = await world.client.get(url)
        assert answer.status == 422
        assert reason in answer.page.text


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({}, "until when"),
        ({"id": "d-000001", "rate": "fast"}, "no number"),
        ({"id": "d-000001", "rate": "0"}, "above 0"),
        ({"id": "d-000001", "rate": "nan"}, "above 0"),
        ({"id": "d-000001", "rate": "1e9"}, "at most"),
    ],
)
async def test_a_form_that_cannot_be_changes_nothing(tmp_path: Path, fields: dict[str, str], reason: str) -> None:
    async with page_world(tmp_path) as world:
        world.letters.add(letter(1))
        answer = await world.client.post("/dead-letters/replay", fields.items())
        assert answer.status == 422
        assert reason in answer.page.text
        assert world.letters.state("d-000001") is LetterState.DEAD


async def test_only_a_form_of_bounded_size_is_read(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        world.letters.add(letter(1))
        large = await world.client.post("/dead-letters/replay", [("id", "d-000001"), ("rate", "1" * 70_000)])
        assert (large.status, "more than 65536 bytes" in large.page.text) == (422, True)
        json = await world.client.post("/dead-letters/replay", headers={"content-type": "application/json"})
        assert (json.status, "takes a form" in json.page.text) == (422, True)
        assert world.letters.state("d-000001") is LetterState.DEAD


@pytest.mark.parametrize("path", ["replay", "discard", "restore", "cancel"])
async def test_nothing_changes_by_a_get(tmp_path: Path, path: str) -> None:
    async with page_world(tmp_path) as world:
        world.letters.add(letter(1))
        assert (await world.client.get(f"/dead-letters/{path}?id=d-000001")).status == 404
        assert world.letters.state("d-000001") is LetterState.DEAD


async def test_what_was_done_is_told_in_words_of_ours_only(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        for query in ("done=<b>owned</b>&count=1", "done=discarded&count=lots", "done=discarded&count=%D9%A3"):
            assert not (await world.client.get(f"/dead-letters/list?{query}")).page.all("p", role="status")

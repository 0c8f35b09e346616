"""Nothing that came from outside becomes an element, an attribute or a control character of a page.

Each page is rendered twice, once with a harmless text in every place that takes one: it has to consist of the same
elements with the same attributes, of which only those that show a text may have another value.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import cast
from urllib.parse import urlencode

import pytest
from starlette.requests import Request

from signalbus.brokers.base import QueueInfo, SessionStatus
from signalbus.deadletters import LetterQuery
from signalbus.sessions import ServiceReport, SessionInfo, SessionReport, encode_report
from signalbus.web.pages import login_page
from signalbus.web.pages.links import letter_url, letters_url, trace_url, with_query
from tests.web.page_client import Answer, Document
from tests.web.page_corpus import CORPUS
from tests.web.page_letters import letter
from tests.web.page_world import INVOICE, LOST, ORDER, QUOTE, PageWorld, order, page_world

SHOWING = ("title", "value", "href")  # attributes that may hold a text from outside
_MOMENT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}\+00:00")
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]")


def shape(page: Document) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return what of a page must not depend on texts."""
    return [
        (
            each.tag,
            [(name, "" if name in SHOWING else _MOMENT.sub("", value)) for name, value in each.attributes.items()],
        )
        for each in page.elements
    ]


def in_id(text: str) -> str:
    """Return a text as far as it can be part of an id: SQLite ends texts in JSON at a NUL."""
    return text.replace("\0", "")


def addresses(text: str) -> list[str]:
    """Return pages that show a text everywhere."""
    one = letter(1, text=text).summary
    asked = {"subscription": "s" + text, "since": "1h", "type": "order.#", "where": f"data.x={text}", "state": "dead"}
    return [
        "/",
        with_query("/", asked),
        *(trace_url(signal + in_id(text)) for signal in (ORDER, INVOICE, QUOTE, LOST)),
        with_query("/traces", {"id": "01929f00"}),
        with_query("/traces", {"id": "unknown" + text}),
        with_query("/", {"since": "x" + text}),
        with_query("/", {"state": "x" + text}),
        with_query("/", {"type": "x..y" + text}),
        "/dead-letters",
        "/dead-letters/list",
        letters_url(group=one.group),
        letters_url(signal=one.signal, subscription=one.subscription, error=one.error),
        letters_url(group="none" + text, signal=text),
        letter_url(one.id),
        letter_url("none" + text),
        with_query("/dead-letters/confirm", {"action": "restore", "id": one.id}),
        with_query("/dead-letters/confirm", {"action": "replay", "group": one.group}),
        with_query("/dead-letters/confirm", {"action": "x" + text}),
        with_query("/dead-letters/list", {"done": text, "count": text}),
        "/dead-letters/audit",
        "/dead-letters/replays",
        "/dead-letters/replays/r-1",
        "/subscribers",
    ]


async def pages(world: PageWorld, text: str, monkeypatch: pytest.MonkeyPatch) -> list[Answer]:
    """Return all pages of a world that is full of a text."""
    world.tell(order(text))
    world.letters.add(letter(1, text=text), letter(2, text=text), letter(3, text=text))
    world.troubles.append("trouble" + text)
    await world.letters.replay(LetterQuery(ids=(letter(2, text=text).summary.id,)), by="by" + text)
    await world.letters.discard(LetterQuery(ids=(letter(1, text=text).summary.id,)), by="by" + text, note="n" + text)
    _occupy(world, text, monkeypatch)
    return [await world.client.get(url) for url in addresses(text)]


def _occupy(world: PageWorld, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the broker tell of queues and sessions with such names: what comes from RabbitMQ was not checked by us."""
    service = ServiceReport(name="s" + text, concurrency=1, in_flight=0, last_error="Error: " + text)
    infos = [
        SessionInfo(
            id=f"{number}{text}", name="n" + text, host="h" + text, pid=1, version="v" + text, started=datetime.now(UTC)
        )
        for number in range(2)
    ]
    told = [encode_report(SessionReport(subscriptions=(service,))), None]
    statuses = [SessionStatus(info=info, report=report) for info, report in zip(infos, told, strict=True)]
    names = ("s" + text, "other" + text)
    held = [
        QueueInfo(name=name, patterns=("p" + text,), durable=True, ready=1, unsettled=0, delayed=0, consumers=consumers)
        for name, consumers in zip(names, (2, 0), strict=True)
    ]

    async def queues(timeout: float) -> Sequence[QueueInfo]:
        return held

    async def sessions(timeout: float) -> Sequence[SessionStatus]:
        return statuses

    monkeypatch.setattr(world.bus.broker, "queues", queues)
    monkeypatch.setattr(world.bus.broker, "sessions", sessions)


@pytest.mark.parametrize("name", CORPUS)
async def test_no_text_changes_what_a_page_consists_of(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = CORPUS[name]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with page_world(tmp_path / "a") as harmless, page_world(tmp_path / "b") as hostile:
        expected = await pages(harmless, "x y", monkeypatch)
        found = await pages(hostile, text, monkeypatch)
        for url, plain, answer in zip(addresses(text), expected, found, strict=True):
            assert answer.status == plain.status, url
            assert shape(answer.page) == shape(plain.page), url
            assert not _OBEYED.search(answer.page.text), url
            assert "\x00" not in answer.text, url
            for link in answer.page.links():
                assert link.startswith(("/", "#")), link
                assert not link.startswith("//"), link
                assert link.isascii()


@pytest.mark.parametrize("name", CORPUS)
async def test_no_text_changes_the_login_page(name: str) -> None:
    request = cast("Request", SimpleNamespace())
    plain, found = (
        Document(bytes(login_page(request, error=text, status=401).body).decode()) for text in ("x", CORPUS[name])
    )
    assert shape(found) == shape(plain)
    assert not _OBEYED.search(found.text)


@pytest.mark.parametrize("name", [name for name in CORPUS if name not in ("control", "separators")])
async def test_a_filter_comes_back_as_it_was_written(tmp_path: Path, name: str) -> None:
    # Control characters and line ends cannot be typed into a field.
    text = CORPUS[name].strip()
    async with page_world(tmp_path) as world:
        page = (await world.client.get(f"/?{urlencode({'subscription': text})}")).page
        (field,) = page.all("input", name="subscription")
        assert field.attributes["value"] == text


@pytest.mark.parametrize("name", CORPUS)
async def test_what_a_page_links_to_is_the_same_signal_and_letter(tmp_path: Path, name: str) -> None:
    text = CORPUS[name]
    async with page_world(tmp_path) as world:
        world.tell(order(text))
        world.letters.add(letter(1, text=text))
        assert (await world.client.get(trace_url(ORDER + in_id(text)))).status == 200
        assert (await world.client.get(letter_url(letter(1, text=text).summary.id))).status == 200

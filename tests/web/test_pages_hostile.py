"""Nothing that came from outside becomes an element, an attribute or a control character of a page.

Each page is rendered twice, once with a harmless text in every place that takes one: it has to consist of the same
elements with the same attributes, of which only those that show a text may have another value.
"""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from signalbus.ledger import SessionUp
from signalbus.sessions import SessionInfo
from signalbus.web.pages.links import letter_url, letters_url, trace_url
from tests.trace.facts import Teller
from tests.web.page_client import Answer, Document
from tests.web.page_corpus import CORPUS
from tests.web.page_letters import letter
from tests.web.page_world import INVOICE, LOST, ORDER, QUOTE, PageWorld, order, page_world

SHOWING = ("title", "value", "href")  # attributes that may hold a text from outside
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028\u2029\u202a-\u202e\u2066-\u2069\ufeff]")
_SCHEME = re.compile(r"/|\?|#|$")


def shape(page: Document) -> list[tuple[str, list[tuple[str, str]]]]:
    """Return what of a page must not depend on texts."""
    return [
        (each.tag, [(name, "" if name in SHOWING else value) for name, value in each.attributes.items()])
        for each in page.elements
    ]


def addresses(text: str) -> list[str]:
    """Return pages that show a text everywhere."""
    one = letter(1, text=text).summary
    return [
        "/",
        *(trace_url(signal + text) for signal in (ORDER, INVOICE, QUOTE, LOST)),
        "/dead-letters",
        "/dead-letters/list",
        letters_url(group=one.group),
        letters_url(signal=one.signal, subscription=one.subscription, error=one.error, group="x" + text),
        letter_url(one.id),
        "/dead-letters/audit",
        "/dead-letters/replays",
    ]


async def pages(world: PageWorld, text: str) -> list[Answer]:
    """Return all pages of a world that is full of a text."""
    world.tell(order(text))
    world.letters.add(letter(1, text=text), letter(2, text=text))
    world.troubles.append("trouble" + text)
    asked = await world.client.get(f"/dead-letters/confirm?action=discard&id={letter_url('')}")
    assert asked.status == 200
    query = await world.letters.get(letter(2, text=text).summary.id)
    assert query is not None
    await world.letters.replay(_all(), by="by" + text)
    await world.letters.discard(_all(), by="by" + text, note="note" + text)
    return [await world.client.get(url) for url in addresses(text)]


def _all():  # type: ignore[no-untyped-def]
    from signalbus.deadletters import LetterQuery

    return LetterQuery()


@pytest.mark.parametrize("name", CORPUS)
async def test_no_text_changes_what_a_page_consists_of(tmp_path: Path, name: str) -> None:
    text = CORPUS[name]
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    async with page_world(tmp_path / "a") as harmless, page_world(tmp_path / "b") as hostile:
        expected, found = await pages(harmless, "x y"), await pages(hostile, text)
        for url, plain, answer in zip(addresses(text), expected, found, strict=True):
            assert answer.status == plain.status == 200, url
            assert shape(answer.page) == shape(plain.page), url
            assert not _OBEYED.search(answer.page.text), url
            for link in answer.page.links():
                assert link.startswith(("/", "#")), link
                assert link.isascii()

"""What a browser needs of every page: weight, contrast, labels, and nothing that a strict policy would block."""

from __future__ import annotations

import re
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path

import pytest

from tests.web.page_client import Document
from tests.web.page_letters import letter
from tests.web.page_world import ORDER, PageWorld, many, order, page_world

STATIC = files("signalbus.web.pages") / "static"
CSS = (STATIC / "page.css").read_text()
SCRIPT = (STATIC / "page.js").read_text()
FIRST_LOAD = 100 * 1024  # bytes of a page with all that it asks for, nothing compressed

#: Texts and what they stand on.
TEXTS = [
    *((ink, "--ground") for ink in ("--text", "--quiet", "--accent", "--good", "--bad", "--warn", "--busy", "--calm")),
    *((ink, "--sheet") for ink in ("--text", "--quiet", "--accent", "--good", "--bad", "--warn", "--busy", "--calm")),
    *((ink, "--sunk") for ink in ("--text", "--quiet", "--accent", "--good", "--bad", "--warn", "--busy", "--calm")),
    *(("--on-accent", "--accent"), ("--bad", "--bad-ground"), ("--text", "--bad-ground"), ("--good", "--good-ground")),
]
#: What is no text but tells something: borders of fields, focus, bars.
SHAPES = [
    *(("--edge", ground) for ground in ("--ground", "--sheet")),
    *(("--accent", ground) for ground in ("--ground", "--sheet", "--sunk")),
    *((bar, "--sheet") for bar in ("--good", "--bad", "--warn", "--busy", "--edge")),
]


def colours(theme: str) -> dict[str, str]:
    """Return the colours of a theme, by name."""
    light, dark = (dict(re.findall(r"(--[a-z-]+): (#[0-9a-f]{6});", part)) for part in _roots())
    return {**light, **dark} if theme == "dark" else light


def _roots() -> Iterator[str]:
    found = re.findall(r":root \{(.*?)\n\s*\}", CSS, re.DOTALL)
    assert len(found) == 2, "one block of colours for each theme"
    return iter(found)


def contrast(one: str, other: str) -> float:
    """Return the contrast ratio of WCAG 2.2."""
    lighter, darker = sorted((luminance(one), luminance(other)), reverse=True)
    return (lighter + 0.05) / (darker + 0.05)


def luminance(colour: str) -> float:
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_texts_have_the_contrast_of_aa(theme: str) -> None:
    found = colours(theme)
    ratios = {(ink, ground): contrast(found[ink], found[ground]) for ink, ground in TEXTS}
    assert not {pair: round(ratio, 2) for pair, ratio in ratios.items() if ratio < 4.5}


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_shapes_that_tell_something_have_the_contrast_of_aa(theme: str) -> None:
    found = colours(theme)
    ratios = {(ink, ground): contrast(found[ink], found[ground]) for ink, ground in SHAPES}
    assert not {pair: round(ratio, 2) for pair, ratio in ratios.items() if ratio < 3}


def test_every_colour_is_one_of_those_that_were_checked() -> None:
    rules = re.sub(r":root \{.*?\n\s*\}", "", CSS, flags=re.DOTALL)
    assert not re.findall(r"#[0-9a-fA-F]{3,8}\b|rgba?\(|hsla?\(", rules)
    used = set(re.findall(r"var\((--[a-z-]+)\)", rules))
    assert used - {"--mono", "--sans"} <= {name for pair in (*TEXTS, *SHAPES) for name in pair} | {"--line", "--wait"}


def test_the_style_sheet_and_the_script_ask_for_nothing_from_elsewhere() -> None:
    assert not re.findall(r"url\(|@import|https?:", CSS)
    assert not re.findall(
        r"https?:|innerHTML|outerHTML\s*=|insertAdjacentHTML|document\.write|eval\(|\.style\b", SCRIPT
    )


async def all_pages(world: PageWorld) -> list[tuple[str, Document, int]]:
    """Return pages with as much on them as a page shows."""
    world.tell([*order(), *many(60)])
    world.letters.add(*(letter(number) for number in range(1, 70)))
    await world.client.get("/")
    urls = [
        *("/", "/?failed=1&where=data.x%3D1", f"/traces/{ORDER}", "/traces?id=01929f", "/traces/none-known"),
        *("/dead-letters", "/dead-letters/list", "/dead-letters/list?group=g-billing-TimeoutError"),
        *("/dead-letters/letters/d-000001", "/dead-letters/confirm?action=replay&id=d-000001"),
        *("/dead-letters/confirm?action=discard&id=d-000001", "/dead-letters/replays", "/dead-letters/audit"),
        *("/subscribers", "/login"),
    ]
    answers = [(url, await world.client.get(url)) for url in urls]
    return [(url, answer.page, len(answer.body)) for url, answer in answers]


async def test_a_first_load_stays_below_its_weight(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        asked: dict[str, int] = {}
        for url, page, size in await all_pages(world):
            for each in page.elements:
                asset = each.attributes.get("src" if each.tag == "script" else "href", "")
                if asset.startswith("/static/"):
                    asked[asset] = asked.get(asset) or len((await world.client.get(asset)).body)
            assert size + sum(asked.values()) <= FIRST_LOAD, url
        assert len(asked) == 3


async def test_nothing_is_inline_that_a_strict_policy_forbids(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        for url, page, _ in await all_pages(world):
            assert not page.all("style"), url
            for each in page.elements:
                assert "style" not in each.attributes, url
                assert not [name for name in each.attributes if name.startswith("on")], url
                for name in ("src", "href", "action"):
                    value = each.attributes.get(name, "/")
                    assert value.startswith(("/", "#")), (url, value)
                    assert not value.startswith("//"), (url, value)
            assert all(each.attributes["src"].startswith("/static/") for each in page.all("script")), url


async def test_pages_are_built_for_keyboards_and_readers(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        for url, page, _ in await all_pages(world):
            ids = [each.attributes["id"] for each in page.elements if "id" in each.attributes]
            assert len(ids) == len(set(ids)), url
            assert len(page.all("h1")) == len(page.all("main")) == 1, url
            assert page.all("html", lang="en"), url
            for each in page.elements:
                for name in ("aria-labelledby", "for"):
                    assert each.attributes.get(name, ids[0]) in ids, (url, each)
                assert int(each.attributes.get("tabindex", "0")) <= 0, (url, each)
            labelled = {each.attributes.get("for") for each in page.all("label")}
            for each in (*page.all("input"), *page.all("select")):
                if each.attributes.get("type") not in ("hidden", "checkbox"):  # a checkbox is within its label
                    assert each.attributes.get("id") in labelled, (url, each)
            assert len(page.all("table")) == len(page.all("caption")), url
            if url != "/login":
                assert page.links()[0] == "#main", url
                assert page.all("a", **{"aria-current": "page"}), url


async def test_an_asset_is_kept_only_under_its_version(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        page = (await world.client.get("/")).page
        (sheet,) = page.all("link", rel="stylesheet")
        answer = await world.client.get(sheet.attributes["href"])
        assert answer.headers["content-type"] == "text/css; charset=utf-8"
        assert "immutable" in answer.headers["cache-control"]
        assert (await world.client.get("/static/page.css?v=old")).headers["cache-control"] == "no-cache"
        assert (await world.client.get("/static/..%2fassets.py")).status == 404

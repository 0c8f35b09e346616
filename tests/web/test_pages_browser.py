"""The page in Chromium: with and without JavaScript, by mouse and by keyboard, live, narrow, dark, and under attack."""

from __future__ import annotations

import asyncio
import functools
from pathlib import Path

import pytest
from selenium.webdriver.common.keys import Keys

from signalbus.deadletters import LetterQuery, LetterState
from signalbus.ledger import Accepted, Acked
from signalbus.web.pages.links import letter_url, trace_url
from tests.support import eventually
from tests.trace.facts import Teller
from tests.web.page_browser import Browser, Site, screenshot, served
from tests.web.page_corpus import CORPUS
from tests.web.page_letters import letter
from tests.web.page_world import INVOICE, ORDER, PageWorld, many, order, page_world

pytestmark = [pytest.mark.chromium, pytest.mark.timeout(180)]

NEW = "01929f00-7777-7000-8000-000000000777"


def fill(world: PageWorld) -> None:
    """Let there be traces and dead letters."""
    world.tell([*order(), *many(5)])
    world.letters.add(*(letter(number) for number in range(1, 6)))


def publish(world: PageWorld, type: str = "order.new") -> None:  # noqa: A002
    """Let another signal appear."""
    teller = Teller(f"later-{type}", "web-9", 9)
    teller.tell(100, Accepted(signal=NEW + type, type=type, source="later", subscriptions=("billing",)))
    teller.tell(101, Acked(signal=NEW + type, type=type, subscription="billing", seconds=0.1))
    world.tell([teller])


async def test_everything_can_be_read_and_replayed_without_javascript(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world, served(world.app) as site:
        fill(world)

        def read(browser: Browser) -> None:
            browser.cdp("Emulation.setScriptExecutionDisabled", value=True)
            browser.open("/")
            browser.sees("✗ dead")
            browser.click(".filter summary")
            browser.type("#f-type", "invoice.#")
            browser.click(".filter button.main")
            browser.click("td a.type")
            browser.arrives(f"/traces/{INVOICE}")
            browser.sees("invoice.created")
            browser.click("nav a[href='/dead-letters']")
            browser.click("a[href*='action=replay&group=']")
            browser.sees("Replay 5 dead letters?")
            browser.click("#go")
            browser.arrives("/dead-letters/replays/r-1")
            browser.sees("sending")
            assert "Pause updates" not in browser.text

        await site.use(read)
        assert {world.letters.state(f"d-00000{number}") for number in range(1, 6)} == {LetterState.WAITING}
        world.letters.send("r-1", 5)
        for number in range(1, 6):
            world.letters.settle(f"d-00000{number}")

        def read_end(browser: Browser) -> None:
            browser.cdp("Emulation.setScriptExecutionDisabled", value=True)
            browser.open("/dead-letters/replays/r-1")
            browser.sees("all acked")
            browser.open("/subscribers")
            browser.sees("Refresh for newer numbers")

        await site.use(read_end)


async def test_without_javascript_the_progress_of_a_replay_refreshes_itself(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world, served(world.app) as site:
        fill(world)
        await world.letters.replay(_one(1), by="ops")
        loop = asyncio.get_running_loop()

        def read(browser: Browser) -> None:
            browser.cdp("Emulation.setScriptExecutionDisabled", value=True)
            browser.open("/dead-letters/replays/r-1")
            browser.sees("sending")
            loop.call_soon_threadsafe(world.letters.send, "r-1", 1)
            browser.sees("waiting for acks")
            loop.call_soon_threadsafe(world.letters.settle, "d-000001")
            browser.sees("all acked")

        await site.use(read)


async def test_a_replay_is_asked_for_confirmed_and_followed_to_its_end(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world, served(world.app) as site:
        fill(world)
        loop = asyncio.get_running_loop()

        def replay(browser: Browser) -> None:
            browser.open("/dead-letters/letters/d-000001")
            browser.click("#replay")
            browser.sees("Replay 1 dead letter?")
            browser.click("#go")
            browser.arrives("/dead-letters/replays/r-1")
            browser.js("(window.marked = true)")
            loop.call_soon_threadsafe(world.letters.send, "r-1", 1)
            browser.sees("waiting for acks")
            loop.call_soon_threadsafe(world.letters.settle, "d-000001")
            browser.sees("all acked")
            assert browser.js("window.marked") is True, "it was followed without loading the page again"
            assert not browser.complaints()

        await site.use(replay)
        assert site.posted == [("/dead-letters/replay", site.address)]


async def test_selected_letters_are_discarded_with_a_note(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world, served(world.app) as site:
        fill(world)

        def discard(browser: Browser) -> None:
            browser.open("/dead-letters/list")
            browser.click("input[name=id][value=d-000002]")
            browser.click("input[name=id][value=d-000004]")
            browser.click(".selected button[value=discard]")
            browser.sees("Discard 2 dead letters?")
            browser.type("#f-note", "the shop is closed")
            browser.click("#go")
            browser.sees("2 dead letters are discarded")

        await site.use(discard)
        discarded = [number for number in range(1, 6) if world.letters.state(f"d-00000{number}") == "discarded"]
        assert discarded == [2, 4]


async def test_the_list_follows_events_and_stands_still_while_paused(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world, served(world.app) as site:
        fill(world)
        loop = asyncio.get_running_loop()

        def happen(type: str) -> None:  # noqa: A002
            publish(world, type)
            site.tell("changed", '{"what": ["traces"]}')

        def follow(browser: Browser) -> None:
            browser.open("/")
            browser.js("(window.marked = true)")
            browser.wait(lambda: browser.js("document.getElementById('live-word').textContent") == "live")
            loop.call_soon_threadsafe(happen, "order.first")
            browser.sees("order.first")
            browser.click("#live-pause")
            assert browser.js("document.getElementById('live-word').textContent") == "paused"
            asked = site.served.count("/")
            asyncio.run_coroutine_threadsafe(_unread(site), loop).result(15)
            loop.call_soon_threadsafe(happen, "order.second")
            browser.click("#live-pause")
            browser.sees("order.second")
            assert browser.js("window.marked") is True
            assert site.served.count("/") > asked
            assert not browser.complaints()

        await site.use(follow)


async def test_after_a_lost_stream_the_page_listens_again_and_catches_up(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world, served(world.app) as site:
        fill(world)
        loop = asyncio.get_running_loop()

        def lose() -> None:
            site.hang_up()
            publish(world)

        def follow(browser: Browser) -> None:
            browser.open("/")
            browser.wait(lambda: bool(site.readers))
            loop.call_soon_threadsafe(lose)
            browser.sees("order.new")
            browser.wait(lambda: browser.js("document.getElementById('live-word').textContent") == "live")

        await site.use(follow)


async def test_rates_move_with_events(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world, served(world.app) as site:
        loop = asyncio.get_running_loop()

        def follow(browser: Browser) -> None:
            browser.open("/subscribers")
            browser.wait(lambda: bool(site.readers))
            for rates in ('{"published": 12.34, "acked": 4321.4}', '{"published": 1, "acked": "<b>x</b>", "<i>": 3}'):
                loop.call_soon_threadsafe(site.tell, "stats", f'{{"rates": {rates}}}')
            browser.wait(lambda: browser.js("document.querySelector('#rate-published .value').textContent") == "1.0")
            assert browser.js("document.querySelector('#rate-acked .value').textContent") == "4,321"
            points = str(browser.js("document.querySelector('#rate-published polyline').getAttribute('points')"))
            assert len(points.split()) == 2
            loop.call_soon_threadsafe(site.tell, "stats", "no json <script>")
            loop.call_soon_threadsafe(site.tell, "stats", '{"rates": {"failed": 2}}')
            browser.wait(lambda: browser.js("document.querySelector('#rate-failed .value').textContent") == "2.0")
            assert not browser.complaints()

        await site.use(follow)


async def test_an_update_takes_nothing_out_of_the_readers_hand(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world, served(world.app) as site:
        fill(world)
        loop = asyncio.get_running_loop()

        def happen() -> None:
            world.letters.add(letter(0, type="order.fresh"))
            site.tell("changed")

        def hold(browser: Browser) -> None:
            browser.open("/dead-letters/list")
            browser.click("input[name=id][value=d-000003]")
            browser.js("(document.querySelector(\"a[href$='d-000004']\").focus())")
            browser.wait(lambda: bool(site.readers))
            loop.call_soon_threadsafe(happen)
            browser.sees("order.fresh")
            assert browser.js("document.querySelector('input[value=d-000003]').checked") is True
            assert browser.js("document.activeElement.getAttribute('href')") == letter_url("d-000004")
            assert browser.js("[...document.querySelectorAll('input[name=id]')].length") == 6
            browser.open("/dead-letters/letters/d-000001")
            browser.click("#live-letter section details > summary")
            before = browser.js("[...document.querySelectorAll('#live-letter details')].map((each) => each.open)")
            asked = site.served.count("/dead-letters/letters/d-000001")
            browser.wait(lambda: bool(site.readers))
            loop.call_soon_threadsafe(site.tell, "changed")
            browser.wait(lambda: site.served.count("/dead-letters/letters/d-000001") > asked)
            browser.wait(lambda: browser.js("document.getElementById('live-word').textContent") == "live")
            assert (
                browser.js("[...document.querySelectorAll('#live-letter details')].map((each) => each.open)") == before
            )

        await site.use(hold)


async def test_rows_that_lead_to_the_same_place_stay_apart(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world, served(world.app) as site:
        fill(world)
        loop = asyncio.get_running_loop()
        await world.letters.replay(_one(1), by="first")
        await world.letters.cancel("r-1", by="second")

        async def happen() -> None:
            await world.letters.cancel("r-1", by="third")
            await world.letters.discard(_one(2), by="fourth")
            site.tell("changed")

        def follow(browser: Browser) -> None:
            browser.open("/dead-letters/audit")
            browser.wait(lambda: bool(site.readers))
            for expected in (4, 6):
                asyncio.run_coroutine_threadsafe(happen(), loop).result(15)
                browser.wait(functools.partial(_has_rows, browser, expected))
            assert [row.split()[0] for row in _rows(browser)] == [
                "fourth",
                "third",
                "fourth",
                "third",
                "second",
                "first",
            ]

        await site.use(follow)


def _rows(browser: Browser) -> list[str]:
    found = browser.js("[...document.querySelectorAll('tbody tr')].map((row) => row.cells[2].textContent)")
    assert isinstance(found, list)
    return [str(row) for row in found]


def _has_rows(browser: Browser, count: int) -> bool:
    return len(_rows(browser)) == count


async def test_a_replay_can_be_begun_by_keyboard_alone_with_the_focus_in_sight(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world, served(world.app) as site:
        fill(world)

        def reach(browser: Browser, wanted: str) -> None:
            for _ in range(40):
                browser.press(Keys.TAB)
                outline = browser.js("getComputedStyle(document.activeElement).outlineStyle")
                assert outline == "solid", browser.js("document.activeElement.outerHTML")
                if browser.js(f"document.activeElement.matches({wanted!r})"):
                    return
            raise AssertionError(f"{wanted} was not reached")

        def walk(browser: Browser) -> None:
            browser.open("/dead-letters/letters/d-000001")
            reach(browser, ".skip")
            browser.press(Keys.ENTER)
            reach(browser, "#replay")
            browser.press(Keys.ENTER)
            browser.sees("Replay 1 dead letter?")
            reach(browser, "#go")
            browser.press(Keys.ENTER)
            browser.arrives("/dead-letters/replays/r-1")

        await site.use(walk)
        assert world.letters.state("d-000001") is LetterState.WAITING


async def test_both_themes_are_drawn(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world, served(world.app) as site:
        fill(world)

        def look(browser: Browser) -> None:
            grounds: list[object] = []
            pictures: list[bytes] = []
            for theme in ("light", "dark"):
                browser.cdp("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": theme}])
                browser.open(f"/traces/{ORDER}")
                grounds.append(browser.js("getComputedStyle(document.body).backgroundColor"))
                pictures.append(screenshot(browser, tmp_path / f"{theme}.png"))
            assert len(set(grounds)) == 2
            assert all(len(picture) > 20_000 for picture in pictures)
            assert pictures[0] != pictures[1]

        await site.use(look)


@pytest.mark.parametrize("text", ["", "x" * 200])
async def test_nothing_is_wider_than_a_small_telephone(tmp_path: Path, text: str) -> None:
    async with page_world(tmp_path) as world, served(world.app) as site:
        world.tell(order(text))
        one = letter(1, text=text)
        world.letters.add(one)
        await world.letters.replay(_one(2), by="ops")
        world.troubles.append("trouble" + text)
        paths = [
            *("/", "/?failed=1", trace_url(ORDER + text), "/traces?id=01929f", "/dead-letters", "/dead-letters/list"),
            *(letter_url(one.summary.id), f"/dead-letters/confirm?action=replay&group={one.summary.group}"),
            *("/dead-letters/replays/r-1", "/dead-letters/audit", "/subscribers", "/login"),
        ]

        def measure(browser: Browser) -> None:
            for path in paths:
                browser.open(path)
                wide = browser.js(_WIDE)
                assert browser.js("document.documentElement.scrollWidth") == 360, (path, wide, browser.complaints())

        await site.use(measure, width=360, height=740)


async def test_nothing_of_a_hostile_corpus_runs_or_breaks_the_policy(tmp_path: Path) -> None:
    text = " ".join(value for name, value in CORPUS.items() if name != "long")
    identity = text.replace("\0", "")
    async with page_world(tmp_path) as world, served(world.app) as site:
        loop = asyncio.get_running_loop()
        paths = [
            *("/", trace_url(ORDER + identity), "/traces?id=01929f", "/dead-letters", "/dead-letters/list"),
            *(letter_url(letter(number, text=text).summary.id) for number in (1, 2)),
            *("/dead-letters/confirm?action=replay", "/dead-letters/audit", "/subscribers"),
        ]

        def appear() -> None:
            world.tell(order(text))
            world.letters.add(letter(1, text=text), letter(2, text=text, content_type="text/html", body=text.encode()))
            world.troubles.append(text)
            site.tell("changed")

        def check(browser: Browser) -> None:
            assert browser.complaints() == [], browser.path
            assert browser.js(_ACTIVE) == [], browser.path
            assert browser.js("document.querySelectorAll('script').length") == 1, browser.path
            assert browser.js("document.querySelectorAll('img, iframe, b, i, style').length") == 0, browser.path

        def visit(browser: Browser) -> None:
            browser.open("/")
            browser.wait(lambda: bool(site.readers))
            loop.call_soon_threadsafe(appear)
            browser.sees("onerror=alert(1)")  # an alert would be an error here, as below
            check(browser)
            for path in paths:
                browser.open(path)
                check(browser)

        await site.use(visit)


_WIDE = (
    "[...document.querySelectorAll('body *')].filter((each) => each.getBoundingClientRect().right > 361)"
    ".map((each) => each.outerHTML.slice(0, 200))"
)
#: What an attacker wants: an attribute that runs.
_ACTIVE = (
    "[...document.querySelectorAll('*')].flatMap((each) => [...each.attributes]"
    ".filter((one) => one.name.startsWith('on') || (one.name !== 'title' && /^\\s*javascript:/i.test(one.value)))"
    ".map(() => each.outerHTML))"
)


def _one(number: int) -> LetterQuery:
    return LetterQuery(ids=(letter(number).summary.id,))


async def _unread(site: Site) -> None:
    await eventually(lambda: not site.readers, message="a paused page does not listen")

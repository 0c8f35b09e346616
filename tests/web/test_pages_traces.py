"""The list of traces and single traces, as the server renders them."""

from __future__ import annotations

from pathlib import Path

import pytest

from signalbus import Bus
from signalbus.errors import BrokerUnavailable, BusClosed, NotPermitted, StorageError
from signalbus.inspection import Inspection
from signalbus.ledger import Accepted, Acked, Delivered, LedgerError
from signalbus.web.pages.site import Site
from tests.trace.facts import About, At, Teller
from tests.web.page_letters import MemoryLetters
from tests.web.page_world import INVOICE, LOST, ORDER, many, order, page_world


async def test_an_empty_list_says_what_to_do_next(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        answer = await world.client.get("/")
        assert answer.status == 200
        assert "No signal was recorded yet" in answer.page.text
        assert "signalbus publish order.placed" in answer.page.text


async def test_the_list_names_state_and_subscriptions_in_words(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        world.tell(order())
        page = (await world.client.get("/")).page
        assert "✗ dead shipping" in page.text
        assert "… waiting audit" in page.text
        assert "✓ acked billing" in page.text
        assert "∅ unroutable" in page.text
        assert len([row for row in page.all("tr") if row.attributes.get("class") == "failed"]) == 3
        assert f"/traces/{ORDER}" in page.links()


async def test_a_long_list_is_read_page_by_page_without_gaps(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        world.tell(many(120))
        url, seen = "/?type=order.*", list[str]()
        for _ in range(3):
            page = (await world.client.get(url)).page
            seen += [link for link in page.links() if link.startswith("/traces/")]
            older = [each.attributes["href"] for each in page.all("a", rel="next")]
            url = older[0] if older else ""
        assert not url
        assert len(seen) == len(set(seen)) == 120


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ("failed=1", 3),
        ("state=dead", 1),
        ("subscription=mail", 1),
        ("subscription=billing&state=acked", 1),
        ("type=order.*", 2),
        ("type=order.placed,quote.%23", 2),
        ("where=data.order_id%3DA-1", 1),
        ("where=data.order_id%3DA-1&where=subject%3DA-2", 0),
        ("since=2026-01-01T12:00:01.5Z", 1),
        ("until=2026-01-01T12:00:00.5Z", 2),
        ("since=1h", 0),
    ],
)
async def test_filters_narrow_the_list_down_and_stay_in_the_form(tmp_path: Path, query: str, found: int) -> None:
    async with page_world(tmp_path) as world:
        world.tell(order())
        page = (await world.client.get(f"/?{query}")).page
        assert len({link for link in page.links() if link.startswith("/traces/")}) == found
        assert "open" in page.all("details", **{"class": "filter"})[0].attributes
        if not found:
            assert "No signal fits this filter" in page.text


@pytest.mark.parametrize(
    ("query", "reason"),
    [
        ("since=yesterday", "15m, 2h or 3d"),
        ("state=gone", "one of waiting"),
        ("type=order.%23.x.%23", "more than one run"),
        ("where=order_id", "data.order_id=A-1"),
        ("before=x", "number"),
    ],
)
async def test_a_filter_that_cannot_be_is_refused_with_what_would_do(tmp_path: Path, query: str, reason: str) -> None:
    async with page_world(tmp_path) as world:
        answer = await world.client.get(f"/?{query}")
        assert answer.status == 422
        assert reason in answer.page.text


async def test_the_search_goes_to_the_one_signal_that_fits(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        world.tell(order())
        answer = await world.client.get(f"/traces?id={ORDER[:14]}")
        assert (answer.status, answer.headers["location"]) == (303, f"/traces/{ORDER}")


async def test_the_search_lists_candidates_and_says_when_there_are_none(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        world.tell(order())
        several = await world.client.get(f"/traces?id={ORDER[:8]}")
        assert several.status == 200
        assert {f"/traces/{ORDER}", f"/traces/{INVOICE}", f"/traces/{LOST}"} <= set(several.page.links())
        none = await world.client.get("/traces?id=0000000000")
        assert none.status == 404
        assert "No signal is known" in none.page.text
        assert (await world.client.get("/traces?id=019")).status == 404


async def test_a_trace_shows_attempts_errors_causes_and_skew(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        world.tell(order())
        page = (await world.client.get(f"/traces/{ORDER}")).page
        for expected in (
            *(ORDER, "A-1", "cart-17", "TimeoutError: gateway", "rejected by the handler: no such address"),
            *("invoice.created", "published in billing", "quote.get", "waited 400 ms", "no subscriber is connected"),
            "The clock of web-2 is behind that of web-1 by at least 1.00 s",
            "12345678901234567890123",
        ):
            assert expected in page.text
        assert f"/dead-letters/list?signal={ORDER}&subscription=shipping" in page.links()


async def test_bars_have_numbers_only_and_a_table_says_the_same(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        world.tell(order())
        page = (await world.client.get(f"/traces/{ORDER}")).page
        assert page.all("rect")
        for rect in page.all("rect"):
            for name in ("x", "y", "width", "height"):
                value = rect.attributes.get(name, "0").removesuffix("%")
                assert 0 <= float(value) <= 100
        assert len(page.all("svg", **{"class": "bars"})) == 7
        steps = page.text[page.text.index("Every step") :]
        for row in ("billing attempt 1 ↻ retried TimeoutError: gateway 2 ms 3 ms", "✓ acked 400 ms 44 ms"):
            assert row in steps


async def test_a_signal_that_nobody_serves_says_so_only_while_that_is_so(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        world.tell(order())
        assert "no subscriber is connected" in (await world.client.get(f"/traces/{ORDER}")).page.text

        @world.bus.subscribe("order.#", name="audit")
        async def audit(data: dict[str, object]) -> None:
            pass

        await audit
        assert "no subscriber is connected" not in (await world.client.get(f"/traces/{ORDER}")).page.text


async def test_an_unknown_signal_is_not_found(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        answer = await world.client.get("/traces/01929f00-9999-7000-8000-000000000000")
        assert answer.status == 404
        assert "nothing is known" in answer.page.text


async def test_a_deep_and_wide_trace_stays_within_bounds(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        teller = Teller("chain", "web-1", 1)
        for number in range(600):
            about = About(signal=f"chain-{number:06d}", type="chain.link")
            cause = f"chain-{number - 1:06d}" if number < 40 else "chain-000000"
            at = At(**about, subscription="link")
            teller.tell(
                number,
                Accepted(**about, source="chain", causationid=cause if number else None, subscriptions=("link",)),
            )
            teller.tell(number, Delivered(**at))
            teller.tell(number, Acked(**at, seconds=0.5))
        world.tell([teller])
        answer = await world.client.get("/traces/chain-000000")
        assert answer.status == 200
        assert len(answer.body) < 300_000
        assert "more steps" in answer.page.text


async def test_troubles_and_the_place_of_the_bus_are_on_every_page(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        world.troubles.append("The store is full: free some space")
        for url in ("/", "/dead-letters", "/subscribers", "/?since=nonsense"):
            page = (await world.client.get(url)).page
            assert "The store is full: free some space" in page.text
            assert "bus.db" in page.text
            assert "✓ broker up" in page.text
            assert "signalbus 0." in page.text


async def test_a_password_in_the_address_of_the_bus_is_masked(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        known = world.inspection
        other = Inspection(
            bus=Bus("amqp://shop:canary-7193@broker/shop"),
            traces=known.traces,
            letters=MemoryLetters(),
            troubles=known.troubles,
        )
        frame = Site(other).frame()
        assert frame.place == "amqp://shop:***@broker/shop"
        assert "canary" not in repr(frame)


@pytest.mark.parametrize(
    ("kind", "status"),
    [(StorageError, 503), (BrokerUnavailable, 503), (NotPermitted, 503), (BusClosed, 503), (LedgerError, 500)],
)
async def test_trouble_of_the_store_becomes_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Exception], status: int
) -> None:
    async with page_world(tmp_path) as world:

        def broken(*_: object) -> None:
            raise kind("cannot read traces.db: database disk image is malformed")

        monkeypatch.setattr(world.store, "page", broken)
        answer = await world.client.get("/")
        assert answer.status == status
        assert "malformed" in answer.page.text


async def test_who_is_signed_in_can_sign_out(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        assert not (await world.client.get("/")).page.all("form", action="/logout")
        answer = await world.client.ask("GET", "/", headers={"cookie": "signalbus_pass=1.x"})
        assert answer.page.all("form", action="/logout", method="post")


async def test_an_address_without_a_page_is_not_found_and_that_of_a_program_is_left_alone(tmp_path: Path) -> None:
    async with page_world(tmp_path) as world:
        answer = await world.client.get("/orders/<b>")
        assert answer.status == 404
        assert "there is no page at" in answer.page.text
        assert (await world.client.get("/api/v1/orders")).text == "Not Found"

"""A bus on a file, with traces that a test tells and dead letters in memory, behind the routes of the page."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

from starlette.applications import Starlette

from signalbus import Bus
from signalbus.inspection import Inspection
from signalbus.ledger import Accepted, Acked, Dead, Delivered, Replied, Requested, Retried, Unroutable
from signalbus.trace.reader import TraceReader
from signalbus.trace.store import SqliteStore
from signalbus.web.pages import page_routes
from tests.trace.facts import About, At, Teller
from tests.web.page_client import Client
from tests.web.page_letters import MemoryLetters

ORDER = "01929f00-1111-7000-8000-0000000007c2"
INVOICE = "01929f00-2222-7000-8000-00000000081a"
QUOTE = "01929f00-3333-7000-8000-000000000999"
LOST = "01929f00-4444-7000-8000-000000000aaa"


@dataclass(kw_only=True)
class PageWorld:
    """What a test of the page has in hand."""

    inspection: Inspection
    bus: Bus
    store: SqliteStore
    letters: MemoryLetters
    client: Client
    app: Starlette
    troubles: list[str] = field(default_factory=list[str])

    def tell(self, tellers: Iterable[Teller]) -> None:
        """Store what was told."""
        self.store.append([teller.batch() for teller in tellers if teller.facts])


@asynccontextmanager
async def page_world(directory: Path, name: str = "page-test") -> AsyncGenerator[PageWorld]:
    """Yield a world in a directory."""
    troubles: list[str] = []
    letters = MemoryLetters()
    store = SqliteStore(directory / "traces.db")
    url = f"sqlite:///{directory}/bus.db?min_free_bytes=0"
    async with Bus(url, name=name, ledger="off") as bus, TraceReader(store) as traces:
        inspection = Inspection(bus=bus, traces=traces, letters=letters, troubles=lambda: troubles)
        app = Starlette(routes=page_routes(inspection))
        yield PageWorld(
            inspection=inspection,
            bus=bus,
            store=store,
            letters=letters,
            client=Client(app),
            app=app,
            troubles=troubles,
        )


def order(text: str = "") -> list[Teller]:
    """Tell of an order as in the documents, with a failure, a cause and a request; ``text`` goes everywhere."""
    identity = text.replace("\0", "")  # SQLite ends texts in JSON at a NUL
    shop, mail = Teller(f"shop{text}", f"web-1{text}", 700), Teller(f"mail-1{text}", f"web-1{text}", 830)
    first, second = (
        Teller(f"billing-1{text}", f"web-1{text}", 811),
        Teller(f"billing-2{text}", f"web-2{text}", 812, skew=-2),
    )
    about = About(signal=ORDER + identity, type=f"order.placed{text}")
    at, dead = At(**about, subscription=f"billing{text}"), At(**about, subscription=f"shipping{text}")
    shop.tell(
        0.001,
        Accepted(
            **about,
            source=f"shop{text}",
            time="2026-01-01T12:00:00.000Z",
            subject=f"A-1{text}",
            correlationid=f"cart-17{text}",
            causationid=f"cause-1{text}",
            traceparent=f"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01{text}",
            subscriptions=(f"audit{text}", f"billing{text}", f"shipping{text}"),
            data=f'{{"order_id":"A-1","total":12345678901234567890123,"note":{json.dumps(text)}}}',
            seconds=0.001,
        ),
    )
    first.tell(0.003, Delivered(**at, queued=0.002))
    first.tell(0.006, Retried(**at, seconds=0.003, error=f"TimeoutError{text}", message=f"gateway{text}", delay=1.0))
    second.tell(1.006, Delivered(**at, attempt=2, queued=0.4))
    second.tell(
        1.03,
        Accepted(
            signal=INVOICE + identity,
            type=f"invoice.created{text}",
            source=f"billing{text}",
            causationid=ORDER + identity,
            subscriptions=(f"mail{text}",),
        ),
    )
    second.tell(1.05, Acked(**at, attempt=2, seconds=0.044))
    first.tell(0.5, Delivered(**dead, queued=0.01))
    first.tell(0.9, Dead(**dead, seconds=0.4, reason=f"rejected by the handler{text}", detail=f"no such address{text}"))
    mail.tell(
        1.04,
        Delivered(signal=INVOICE + identity, type=f"invoice.created{text}", subscription=f"mail{text}", queued=0.01),
    )
    mail.tell(
        1.044,
        Acked(signal=INVOICE + identity, type=f"invoice.created{text}", subscription=f"mail{text}", seconds=0.004),
    )
    quote = About(signal=QUOTE + identity, type=f"quote.get{text}")
    mail.tell(1.05, Requested(**quote, source=f"mail{text}", causationid=INVOICE + identity, timeout=2.0))
    mail.tell(
        1.2,
        Replied(
            **quote, side="requester", outcome=f"failed{text}", seconds=0.15, error=f"KeyError{text}", message=text
        ),
    )
    shop.tell(2.0, Unroutable(signal=LOST + identity, type=f"order.lost{text}", source=f"shop{text}"))
    return [shop, first, second, mail]


def many(count: int) -> list[Teller]:
    """Tell of many signals that one subscription acked."""
    shop, billing = Teller("many-shop", "web-1", 1), Teller("many-billing", "web-1", 2)
    for number in range(count):
        about = About(signal=f"01929fff-{number:04d}-7000-8000-000000000000", type="order.placed")
        at = At(**about, subscription="billing")
        shop.tell(10 + number, Accepted(**about, source="shop", subscriptions=("billing",)))
        billing.tell(10 + number, Delivered(**at, queued=0.001))
        billing.tell(10 + number, Acked(**at, seconds=0.002))
    return [shop, billing]

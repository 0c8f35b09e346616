"""Traces to look at: what the documents show, and what goes wrong in the world."""

from __future__ import annotations

from signalbus.ledger import (
    Accepted,
    Acked,
    Dead,
    Delivered,
    Replayed,
    Replied,
    Requested,
    Retried,
    SessionDown,
    Unroutable,
)
from signalbus.trace.model import Trace
from signalbus.trace.tree import build
from tests.trace.facts import About, At, Teller

ORDER = "01929f00-1111-7000-8000-0000000007c2"
INVOICE = "01929f00-2222-7000-8000-00000000081a"
QUOTE = "01929f00-3333-7000-8000-000000000999"
TRACEPARENT = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


def order() -> Trace:
    """An order as in the documents: a retry, what its handler caused, and a subscription that nobody serves."""
    shop, mail = Teller("shop", "web-1", 700), Teller("mail-1", "web-1", 830)
    first, second, shipping = (
        Teller("billing-1", "web-1", 811),
        Teller("billing-2", "web-2", 812),
        Teller("shipping-1", "web-1", 820),
    )
    about = About(signal=ORDER, type="order.placed")
    at = At(**about, subscription="billing")
    shop.tell(
        0.001,
        Accepted(
            **about,
            source="shop",
            time="2026-01-01T12:00:00.000Z",
            correlationid="cart-17",
            traceparent=TRACEPARENT,
            subscriptions=("audit", "billing", "shipping"),
            data='{"order_id":"A-1","total":12345678901234567890123}',
            seconds=0.001,
        ),
    )
    first.tell(0.003, Delivered(**at, queued=0.002))
    first.tell(0.006, Retried(**at, seconds=0.003, error="TimeoutError", message="gateway", delay=1.0))
    second.tell(1.006, Delivered(**at, attempt=2, queued=1.0))
    second.tell(
        1.03,
        Accepted(signal=INVOICE, type="invoice.created", source="billing", causationid=ORDER, subscriptions=("mail",)),
    )
    second.tell(1.05, Acked(**at, attempt=2, seconds=0.044))
    shipping.tell(0.004, Delivered(**about, subscription="shipping", queued=0.003))
    shipping.tell(0.009, Acked(**about, subscription="shipping", seconds=0.005))
    mail.tell(1.04, Delivered(signal=INVOICE, type="invoice.created", subscription="mail", queued=0.01))
    mail.tell(1.044, Acked(signal=INVOICE, type="invoice.created", subscription="mail", seconds=0.004))
    tellers = (shop, first, second, shipping, mail)
    return build(ORDER, [fact for teller in tellers for fact in teller.facts])


def trouble() -> Trace:
    """Facts that were lost with a process, clocks that disagree, a dead letter that was replayed, a failed request."""
    watcher, late = Teller("router", "hub", 1), Teller("billing-2", "web-2", 812, skew=-30.0)
    first = Teller("billing-1", "web-1", 811, level="failures")
    at = At(signal=ORDER, type="order.placed", subscription="billing")
    first.tell(1.0, Delivered(**at))
    watcher.tell(1.5, SessionDown(session="s-billing-1", reason="connection_lost"))
    late.tell(2.0, Acked(**at, attempt=4, crashes=2, seconds=0.2))
    late.tell(3.0, Dead(signal=ORDER, type="order.placed", subscription="mail", reason="rejected by the handler"))
    watcher.tell(4.0, Replayed(signal=ORDER, type="order.placed", subscription="mail", by="ops"))
    watcher.tell(
        0.5, Requested(signal=QUOTE, type="quote.get", source="shop", causationid=ORDER, subject="A-1", timeout=2.0)
    )
    watcher.tell(
        2.5,
        Replied(signal=QUOTE, type="quote.get", side="requester", outcome="responder_down", seconds=2.0),
    )
    watcher.tell(5.0, Unroutable(signal=INVOICE, type="invoice.created", source="billing", causationid=ORDER))
    return build(ORDER, [*watcher.facts, *late.facts, *first.facts])


HOSTILE = "\x1b[31m\n\r\x00\u202e;#<script>alert(1)</script>%%{init}%% end `$(x)`"


def hostile() -> Trace:
    """Every text from outside tries to take control of whatever shows it."""
    shop, other = Teller(f"shop{HOSTILE}", f"web{HOSTILE}", 1), Teller(f"b{HOSTILE}", f"h{HOSTILE}", 2, skew=-9.0)
    about = About(signal=f"id{HOSTILE}", type=f"type{HOSTILE}")
    at = At(**about, subscription=f"sub{HOSTILE}")
    shop.tell(
        0,
        Accepted(
            **about, source=HOSTILE, subject=HOSTILE, correlationid=HOSTILE, causationid=HOSTILE, traceparent=HOSTILE
        ),
    )
    other.tell(1, Delivered(**at))
    other.tell(2, Retried(**at, error=HOSTILE, message=HOSTILE, delay=1.0))
    other.tell(3, Dead(**at, attempt=2, reason=HOSTILE, detail=HOSTILE))
    other.tell(4, Requested(signal=f"q{HOSTILE}", type=HOSTILE, source=HOSTILE, causationid=about["signal"]))
    other.tell(
        5,
        Replied(
            signal=f"q{HOSTILE}", type=HOSTILE, side="requester", outcome=HOSTILE, error=HOSTILE, responder=HOSTILE
        ),
    )
    return build(about["signal"], [*shop.facts, *other.facts])

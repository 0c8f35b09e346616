"""Facts that hypothesis makes up: any steps in any order, and the facts of runs that could have been."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from hypothesis import strategies as st

from signalbus.ledger import (
    Accepted,
    Acked,
    Dead,
    Delivered,
    Fact,
    Origin,
    Released,
    Replayed,
    Replied,
    Requested,
    Retried,
    SessionDown,
    SessionUp,
    Unroutable,
)
from signalbus.ledger.facts import Step
from tests.trace.facts import NOON, About, AtAttempt, Published, Teller

SIGNALS = ("signal-a", "signal-b", "signal-c")
SUBSCRIPTIONS = ("billing", "mail")
TYPES = {"signal-a": "order.placed", "signal-b": "order.paid", "signal-c": "invoice.created"}
ORIGINS = tuple(
    Origin(recorder=f"r{number}", session=f"s{number}", name=f"n{number}", host=f"h{number % 2}", pid=number)
    for number in range(3)
)

_signals = st.sampled_from(SIGNALS)
_seconds = st.none() | st.sampled_from([-1.0, 0.0, 0.5, 1e9])
_causes = st.none() | _signals
_attempts = st.sampled_from([1, 1, 1, 2, 3, 10**9])
_crashes = st.sampled_from([0, 0, 1, 2])
_times = st.sampled_from([NOON, NOON + 1, NOON + 2, NOON + 3, NOON - 1, 0.0, -1e14, 1e14])


@st.composite
def steps(draw: st.DrawFn, causes: Mapping[str, str | None] | None = None) -> Step:
    """Any step of one of a few signals; ``causes``: what caused them, if all who tell agree about it."""
    signal = draw(_signals)
    common = About(signal=signal, type=TYPES[signal])
    cause = causes[signal] if causes else draw(_causes)
    subject = draw(st.sampled_from([None, "A-1"]))
    subscription = draw(st.sampled_from(SUBSCRIPTIONS))
    at = AtAttempt(**common, subscription=subscription, attempt=draw(_attempts), crashes=draw(_crashes))
    published = Published(**common, source="shop", causationid=cause, subject=subject)
    session = draw(st.sampled_from(ORIGINS)).session
    routed = draw(st.sampled_from([None, (), ("billing",), SUBSCRIPTIONS]))
    data = draw(st.sampled_from([None, '{"order_id":"A-1"}', '{"order_id":"A-2","deep":{"n":[1]}}', "not json"]))
    outcome = draw(st.sampled_from(["reply", "failed", "expired"]))
    side = draw(st.sampled_from(["responder", "requester"]))
    made: list[Step] = [
        Accepted(**published, subscriptions=routed, data=data, seconds=draw(_seconds)),
        Unroutable(**published, data=data),
        Requested(**published, data=data),
        Replied(**common, side=side, outcome=outcome, seconds=draw(_seconds), message="no"),
        Delivered(**at, queued=draw(_seconds), causationid=cause),
        Acked(**at, seconds=draw(_seconds)),
        Retried(**at, seconds=draw(_seconds), error="TimeoutError", delay=draw(_seconds)),
        Dead(**at, seconds=draw(_seconds), reason="attempts exhausted"),
        Released(**at),
        Replayed(**common, subscription=subscription),
        SessionUp(session=session),
        SessionDown(session=session, reason="connection_lost"),
    ]
    return draw(st.sampled_from(made))


@st.composite
def any_facts(draw: st.DrawFn, *, agreed_causes: bool = False) -> list[Fact]:
    """Facts of three recorders, in any order, as no bus would tell them together."""
    causes = {signal: draw(_causes) for signal in SIGNALS} if agreed_causes else None
    told = draw(st.lists(st.tuples(st.sampled_from(ORIGINS), _times, steps(causes)), max_size=14))
    counts = dict.fromkeys((origin.recorder for origin in ORIGINS), 0)
    facts: list[Fact] = []
    for origin, at, step in told:
        counts[origin.recorder] += 1
        facts.append(Fact(origin=origin, sequence=counts[origin.recorder], at=at, step=step))
    return draw(st.permutations(facts))


@dataclass(slots=True)
class History:
    """What happened, with all its facts: attempts by subscription and number, each with its end."""

    facts: list[Fact] = field(default_factory=list[Fact])
    ends: dict[tuple[str, int], str] = field(default_factory=dict[tuple[str, int], str])


@st.composite
def histories(draw: st.DrawFn) -> History:
    """One signal to two subscriptions, some attempts of which fail; the subscribers' clocks are not the publisher's."""
    skew = draw(st.sampled_from([0.0, 5.0, -5.0]))
    shop = Teller("shop", "web-1", 1)
    workers = [Teller("w1", "web-2", 2, skew=skew), Teller("w2", "web-3", 3, skew=-skew)]
    about = About(signal="signal-a", type="order.placed")
    found = History()
    shop.tell(0, Accepted(**about, source="shop", subscriptions=SUBSCRIPTIONS))
    for subscription in SUBSCRIPTIONS:
        failures = draw(st.integers(0, 4))
        last = draw(st.sampled_from(["acked", "dead", "running", "retried"]))
        for attempt in range(1, failures + 2):
            worker = workers[draw(st.integers(0, 1))]
            at = AtAttempt(**about, subscription=subscription, attempt=attempt, crashes=0)
            worker.tell(attempt, Delivered(**at, queued=0.01))
            end = "retried" if attempt <= failures else last
            found.ends[subscription, attempt] = end
            if end == "acked":
                worker.tell(attempt + 0.5, Acked(**at, seconds=0.5))
            elif end == "dead":
                worker.tell(attempt + 0.5, Dead(**at, seconds=0.5))
            elif end == "retried":
                worker.tell(attempt + 0.5, Retried(**at, seconds=0.5, delay=0.5))
    found.facts = [fact for teller in (shop, *workers) for fact in teller.facts]
    return found

"""From facts to traces: what follows from them, and what must not be made up."""

from __future__ import annotations

import random
from collections.abc import Iterator

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from signalbus.ledger import (
    Accepted,
    Acked,
    Dead,
    Delivered,
    Fact,
    Released,
    Replayed,
    Replied,
    Requested,
    Retried,
    SessionDown,
    Unroutable,
)
from signalbus.trace.model import Delivery, End, Gap, SignalTrace, Skew, State, Trace
from signalbus.trace.rendering_json import render_json
from signalbus.trace.rendering_otlp import render_otlp
from signalbus.trace.rendering_sequence import render_sequence
from signalbus.trace.rendering_tree import TreeView, render_tree
from signalbus.trace.rendering_waterfall import render_waterfall
from signalbus.trace.tree import MAX_DEPTH, build, outline
from tests.trace.facts import NOON, About, At, Teller
from tests.trace.strategies import SIGNALS, History, any_facts, histories

ABOUT = About(signal="a", type="order.placed")
BILLING = At(**ABOUT, subscription="billing")


def shop() -> Teller:
    return Teller("shop", "web-1", 1)


def worker(number: int = 1, skew: float = 0.0) -> Teller:
    return Teller(f"billing-{number}", f"web-{number}", 10 + number, skew=skew)


def only(trace: Trace) -> Delivery:
    (delivery,) = trace.root.deliveries
    return delivery


def ends(delivery: Delivery) -> list[tuple[int, End]]:
    return [(attempt.number, attempt.end) for attempt in delivery.attempts]


# States


def test_what_was_routed_somewhere_waits_there_until_somebody_has_it() -> None:
    publisher, subscriber = shop(), worker()
    publisher.tell(0, Accepted(**ABOUT, source="shop", subscriptions=("billing", "audit")))
    subscriber.tell(1, Delivered(**BILLING, queued=1.0))
    root = build("a", [*publisher.facts, *subscriber.facts]).root
    assert [(each.subscription, each.state) for each in root.deliveries] == [
        ("audit", State.WAITING),
        ("billing", State.IN_HAND),
    ]
    assert root.deliveries[0].since == NOON
    assert root.summary == "2 outstanding"


def test_waiting_and_work_are_told_apart() -> None:
    publisher, subscriber = shop(), worker()
    publisher.tell(0, Accepted(**ABOUT, source="shop", subscriptions=("billing",)))
    subscriber.tell(1.2, Delivered(**BILLING, queued=1.2))
    subscriber.tell(1.5, Acked(**BILLING, seconds=0.3))
    (attempt,) = only(build("a", [*publisher.facts, *subscriber.facts])).attempts
    assert (attempt.queued, attempt.work, attempt.end, attempt.inferred) == (1.2, 0.3, End.ACKED, ())


def test_each_attempt_has_its_error_and_the_state_is_that_of_the_last_one() -> None:
    subscriber = worker()
    subscriber.tell(0, Delivered(**BILLING))
    subscriber.tell(1, Retried(**BILLING, error="TimeoutError", message="gateway", delay=2.0))
    facts = subscriber.facts
    retrying = only(build("a", facts))
    assert (retrying.state, retrying.due) == (State.RETRYING, NOON + 3)
    subscriber.tell(3, Delivered(**BILLING, attempt=2))
    assert only(build("a", facts)).state is State.IN_HAND
    subscriber.tell(4, Dead(**BILLING, attempt=2, reason="attempts exhausted", detail="2 attempts"))
    dead = only(build("a", facts))
    assert (dead.state, dead.since) == (State.DEAD, NOON + 4)
    assert [attempt.error for attempt in dead.attempts] == ["TimeoutError: gateway", "attempts exhausted: 2 attempts"]


def test_attempts_order_before_clocks_do() -> None:
    first, second = worker(1), worker(2, skew=-60.0)
    first.tell(0, Delivered(**BILLING))
    first.tell(1, Retried(**BILLING, delay=1.0))
    second.tell(2, Delivered(**BILLING, attempt=2))
    second.tell(3, Acked(**BILLING, attempt=2))
    trace = build("a", [*second.facts, *first.facts])
    assert ends(only(trace)) == [(1, End.RETRIED), (2, End.ACKED)]
    assert trace.skews == (Skew(early="web-1", late="web-2", seconds=59.0),)


def test_a_clock_that_is_set_back_changes_no_order_and_is_stated() -> None:
    subscriber = worker()
    subscriber.tell(100, Delivered(**BILLING))
    subscriber.tell(40, Acked(**BILLING))
    trace = build("a", subscriber.facts)
    assert ends(only(trace)) == [(1, End.ACKED)]
    assert only(trace).attempts[0].work == 0.0

    publisher = shop()
    publisher.tell(0, Accepted(**ABOUT, source="shop"))
    skewed = build("a", [*publisher.facts, *subscriber.facts])
    assert skewed.skews == (Skew(early="web-1", late="web-1", seconds=60.0),)


def test_released_and_lost_deliveries_wait_again() -> None:
    subscriber = worker()
    subscriber.tell(0, Delivered(**BILLING))
    subscriber.tell(1, Released(**BILLING, reason="drained"))
    released = only(build("a", subscriber.facts))
    assert (released.state, ends(released)) == (State.WAITING, [(1, End.RELEASED)])

    holder, watcher = worker(), shop()
    holder.tell(0, Delivered(**BILLING))
    watcher.tell(1, SessionDown(session="s-billing-1", reason="connection_lost"))
    lost = only(build("a", [*holder.facts, *watcher.facts]))
    assert (lost.state, ends(lost)) == (State.WAITING, [(1, End.LOST)])
    assert lost.attempts[0].inferred == (), "the end of the session was told"


def test_a_crash_is_an_attempt_that_was_lost_and_the_next_run_has_the_same_number() -> None:
    first, second = worker(1), worker(2)
    first.tell(0, Delivered(**BILLING))
    second.tell(1, Delivered(**BILLING, crashes=1))
    second.tell(2, Acked(**BILLING, crashes=1))
    delivery = only(build("a", [*second.facts, *first.facts]))
    assert ends(delivery) == [(1, End.LOST), (1, End.ACKED)]
    assert delivery.attempts[0].inferred == ("end",)
    assert delivery.crashes == 0


def test_two_runs_of_a_publishers_duplicate_are_not_taken_for_a_loss() -> None:
    first, second = worker(1), worker(2)
    first.tell(0, Delivered(**BILLING))
    second.tell(1, Delivered(**BILLING))
    second.tell(2, Acked(**BILLING))
    assert ends(only(build("a", [*first.facts, *second.facts]))) == [(1, End.UNKNOWN), (1, End.ACKED)]


def test_a_replay_begins_anew_and_keeps_what_was() -> None:
    subscriber, router = worker(), shop()
    subscriber.tell(0, Delivered(**BILLING))
    subscriber.tell(1, Dead(**BILLING, reason="rejected by the handler"))
    facts = subscriber.facts
    assert only(build("a", facts)).state is State.DEAD
    router.tell(2, Replayed(**BILLING, by="ops"))
    assert only(build("a", [*facts, *router.facts])).state is State.WAITING
    subscriber.tell(3, Delivered(**BILLING))
    subscriber.tell(4, Acked(**BILLING))
    delivery = only(build("a", [*router.facts, *facts]))
    assert (delivery.state, ends(delivery)) == (State.ACKED, [(1, End.DEAD), (1, End.ACKED)])
    assert [attempt.replay for attempt in delivery.attempts] == [0, 1]


def test_unroutable_signals_and_requests_have_a_state_of_their_own() -> None:
    publisher, responder = shop(), worker()
    publisher.tell(0, Unroutable(**ABOUT, source="shop"))
    assert build("a", publisher.facts).root.summary == "1 unroutable"
    asker = shop()
    asker.tell(0, Requested(signal="q", type="quote.get", source="shop", timeout=2.0))
    assert build("q", asker.facts).root.states == (State.ASKED,)
    responder.tell(1, Replied(signal="q", type="quote.get", side="responder", outcome="reply", seconds=0.5))
    asker.tell(1.1, Replied(signal="q", type="quote.get", side="requester", outcome="reply", seconds=1.1))
    root = build("q", [*asker.facts, *responder.facts]).root
    assert root.reply is not None
    assert (root.states, root.reply.work, root.reply.waited) == ((State.REPLIED,), 0.5, 1.1)
    assert root.reply.responder == "s-billing-1"


def test_what_the_requester_got_counts_not_what_the_responder_sent() -> None:
    asker, responder = shop(), worker()
    asker.tell(0, Requested(signal="q", type="quote.get", source="shop"))
    responder.tell(5, Replied(signal="q", type="quote.get", side="responder", outcome="reply", seconds=5.0))
    asker.tell(2, Replied(signal="q", type="quote.get", side="requester", outcome="expired", seconds=2.0))
    assert build("q", [*responder.facts, *asker.facts]).root.states == (State.FAILED,)


def test_a_signal_that_was_unroutable_first_and_stored_later_is_not_unroutable() -> None:
    publisher = shop()
    publisher.tell(0, Unroutable(**ABOUT, source="shop"))
    publisher.tell(1, Accepted(**ABOUT, source="shop", subscriptions=("billing",)))
    root = build("a", publisher.facts).root
    assert (root.unroutable, root.states) == (False, (State.WAITING,))


# What was lost


def test_an_ack_without_a_delivery_had_one_which_is_inferred() -> None:
    subscriber = worker()
    subscriber.tell(1, Acked(**BILLING, seconds=0.3))
    root = build("a", subscriber.facts).root
    (attempt,) = root.deliveries[0].attempts
    assert (attempt.end, attempt.began, attempt.inferred) == (End.ACKED, None, ("start",))
    assert root.published is None
    assert root.type == "order.placed"


def test_attempts_that_must_have_been_are_a_gap_not_attempts() -> None:
    subscriber = worker()
    subscriber.tell(0, Delivered(**BILLING, attempt=2))
    subscriber.tell(5, Delivered(**BILLING, attempt=7, crashes=2))
    delivery = only(build("a", subscriber.facts))
    assert delivery.gaps == (Gap(first=1, last=1), Gap(first=3, last=6))
    assert ends(delivery) == [(2, End.RETRIED), (7, End.RUNNING)]
    assert delivery.attempts[0].inferred == ("end",)
    assert delivery.crashes == 2


def test_a_replay_without_a_dead_letter_ended_in_one() -> None:
    subscriber, router = worker(), shop()
    subscriber.tell(0, Delivered(**BILLING))
    router.tell(2, Replayed(**BILLING))
    delivery = only(build("a", [*subscriber.facts, *router.facts]))
    assert ends(delivery) == [(1, End.DEAD)]
    assert delivery.attempts[0].inferred == ("end",)


def test_recorders_that_do_not_tell_everything_are_mentioned() -> None:
    quiet = Teller("shop", "web-1", 1, level="failures")
    quiet.tell(0, Dead(**BILLING))
    assert not build("a", quiet.facts).complete


# Causes


def test_what_a_handler_published_hangs_under_its_subscription() -> None:
    publisher, biller, mailer = shop(), worker(1), worker(2)
    publisher.tell(0, Accepted(**ABOUT, source="shop", subscriptions=("billing", "mail")))
    biller.tell(1, Delivered(**BILLING))
    biller.tell(1.1, Accepted(signal="b", type="invoice.created", source="billing", causationid="a"))
    biller.tell(1.2, Acked(**BILLING))
    mailer.tell(1, Delivered(**ABOUT, subscription="mail"))
    publisher.tell(9, Accepted(signal="c", type="order.noted", source="shop", causationid="a"))
    root = build("a", [*publisher.facts, *biller.facts, *mailer.facts]).root
    assert [(child.id, child.cause) for child in root.children] == [("b", "billing"), ("c", None)]


def test_where_two_handlers_can_have_published_it_none_is_named() -> None:
    both = worker()
    both.tell(1, Delivered(**BILLING))
    both.tell(1, Delivered(**ABOUT, subscription="mail"))
    both.tell(1.1, Accepted(signal="b", type="invoice.created", source="x", causationid="a"))
    assert [child.cause for child in build("a", both.facts).root.children] == [None]


def test_signals_that_cause_each_other_end() -> None:
    publisher = shop()
    publisher.tell(0, Accepted(**ABOUT, source="shop", causationid="b"))
    publisher.tell(1, Accepted(signal="b", type="t", source="shop", causationid="a"))
    root = build("a", publisher.facts).root
    assert [child.id for child in root.children] == ["b"]
    assert root.children[0].children == ()


def test_a_chain_of_causes_is_cut_and_said_to_be() -> None:
    publisher = shop()
    for number in range(MAX_DEPTH + 10):
        cause = str(number - 1) if number else None
        publisher.tell(number, Accepted(signal=str(number), type="t", source="shop", causationid=cause))
    trace = build("0", publisher.facts)
    assert trace.left_out == 1, "the first of the rest; what follows it was not looked at"
    assert render_json(trace)


# Any facts


def all_of(signal: SignalTrace) -> Iterator[SignalTrace]:
    yield signal
    for child in signal.children:
        yield from all_of(child)


def referred(signal: SignalTrace) -> Iterator[Fact | None]:
    yield signal.published
    for delivery in signal.deliveries:
        yield from delivery.replays
        for attempt in delivery.attempts:
            yield attempt.began
            yield attempt.ended
    if signal.reply is not None:
        yield signal.reply.answered
        yield signal.reply.received


@given(facts=any_facts(), seed=st.integers(0, 1 << 30))
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_any_facts_make_one_trace_whatever_their_order(facts: list[Fact], seed: int) -> None:
    trace = build("signal-a", facts)
    again = [*facts, *facts]
    random.Random(seed).shuffle(again)
    assert build("signal-a", again) == trace
    for signal in all_of(trace.root):
        for delivery in signal.deliveries:
            for attempt in delivery.attempts:
                assert (attempt.queued or 0.0) >= 0.0
                assert (attempt.work or 0.0) >= 0.0


@given(facts=any_facts())
@settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.too_slow])
def test_a_trace_invents_no_fact_and_hides_none(facts: list[Fact]) -> None:
    for signal in SIGNALS:
        found = [fact for fact in referred(outline(signal, facts)) if fact is not None]
        assert {fact.id for fact in found} <= {fact.id for fact in facts}
        told = [
            fact.id
            for fact in facts
            if isinstance(fact.step, Delivered | Acked | Retried | Dead | Released | Replayed)
            and fact.step.signal == signal
        ]
        steps = [fact.id for fact in found if fact.id in set(told)]
        assert sorted(steps) == sorted(told), "each exactly once"


@given(facts=any_facts(), width=st.none() | st.integers(20, 120))
@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
def test_every_rendering_shows_any_facts(facts: list[Fact], width: int | None) -> None:
    trace = build("signal-a", facts)
    for now in (None, NOON + 5):
        shown = [
            render_tree(trace, TreeView(width=width, now=now, consumers={})),
            render_waterfall(trace, width=width, now=now),
            render_sequence(trace),
            render_json(trace),
            render_otlp(trace),
        ]
        assert all(line.isprintable() for text in shown for line in text.split("\n"))
        assert not any("-0" in word or "- " in word for word in shown[0].split("waited ")[1:2])


@given(history=histories(), data=st.data())
@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.too_slow])
def test_what_is_left_of_a_history_tells_nothing_that_did_not_happen(history: History, data: st.DataObject) -> None:
    kept = data.draw(st.lists(st.sampled_from(history.facts), unique_by=lambda fact: fact.id))
    for delivery in build("signal-a", kept).root.deliveries:
        for attempt in delivery.attempts:
            truth = history.ends[delivery.subscription, attempt.number]
            assert attempt.end.value == truth or attempt.end is End.RUNNING
        for gap in delivery.gaps:
            for number in (gap.first, gap.last):
                assert history.ends[delivery.subscription, number] == "retried"


@given(history=histories())
@settings(deadline=None, max_examples=50)
def test_a_whole_history_is_told_as_it_was(history: History) -> None:
    root = build("signal-a", history.facts).root
    told = {
        (delivery.subscription, attempt.number): attempt.end.value
        for delivery in root.deliveries
        for attempt in delivery.attempts
    }
    assert told == history.ends
    assert not any(attempt.inferred for delivery in root.deliveries for attempt in delivery.attempts)
    assert not any(delivery.gaps or delivery.crashes for delivery in root.deliveries)


def test_a_signal_that_is_handled_before_its_publisher_hears_of_it_is_no_skew() -> None:
    shop, billing = Teller("shop", "web-1", 1), Teller("billing", "web-1", 2)
    billing.tell(1.0, Delivered(signal="a", type="t", subscription="billing"))
    shop.tell(1.2, Accepted(signal="a", type="t", source="shop", seconds=0.25))
    assert build("a", [*shop.facts, *billing.facts]).skews == ()
    late = Teller("shop", "web-1", 1)
    late.tell(1.2, Accepted(signal="a", type="t", source="shop", seconds=0.1))
    [skew] = build("a", [*late.facts, *billing.facts]).skews
    assert abs(skew.seconds - 0.1) < 1e-6

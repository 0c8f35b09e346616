"""Hearing what became of a signal, without a broker."""

from __future__ import annotations

import asyncio
from datetime import timedelta

import orjson
import pytest

from signalbus import BrokerUnavailable, Outcome
from signalbus.acknowledgements import Acknowledgements
from signalbus.delivery import ACK, RELEASE, DeadLetter, DeadReason, RetryLater, Settlement
from tests.support import eventually


class Post:
    """Carries messages between two sessions, or loses them."""

    def __init__(self) -> None:
        self.sent: list[tuple[str, bytes]] = []
        self.failure: Exception | None = None
        self.blocked = False

    async def __call__(self, session: str, message: bytes) -> None:
        if self.blocked:
            await asyncio.Event().wait()
        if self.failure is not None:
            raise self.failure
        self.sent.append((session, message))


DEAD = DeadLetter(DeadReason.REJECTED, "no", ())


async def test_the_publisher_hears_of_each_subscription() -> None:
    post = Post()
    subscriber, publisher = Acknowledgements(post), Acknowledgements(Post())
    awaited = publisher.expect("id", ["a", "b"])
    assert not await awaited.wait(0)
    subscriber.tell("publisher", "id", "a", ACK, "subscriber")
    subscriber.tell("publisher", "id", "b", DEAD, "subscriber")
    await eventually(lambda: len(post.sent) == 2, 5)
    for session, message in post.sent:
        assert session == "publisher"
        publisher.take(orjson.loads(message))
    assert await awaited.wait(0)
    assert [(each.subscription, each.outcome, each.session) for each in awaited.results()] == [
        ("a", Outcome.ACKED, "subscriber"),
        ("b", Outcome.DEAD, "subscriber"),
    ]
    assert awaited.results()[1].detail == "rejected by the handler: no"


@pytest.mark.parametrize("settlement", [RetryLater(timedelta(0), ()), RELEASE])
async def test_what_is_not_final_is_not_told(settlement: Settlement) -> None:
    post = Post()
    subscriber = Acknowledgements(post)
    subscriber.tell("publisher", "id", "a", settlement, "subscriber")
    await subscriber.aclose()
    assert post.sent == []


async def test_ones_own_signals_need_no_post() -> None:
    post = Post()
    both = Acknowledgements(post)
    awaited = both.expect("id", ["a"])
    both.tell("me", "id", "a", ACK, "me")
    assert await awaited.wait(0)
    assert post.sent == []


async def test_what_is_not_heard_stays_pending() -> None:
    post = Post()
    post.failure = BrokerUnavailable("away")
    subscriber = Acknowledgements(post)
    awaited = subscriber.expect("id", ["a"])
    subscriber.tell("publisher", "id", "a", ACK, "subscriber")
    await subscriber.aclose()
    assert not await awaited.wait(0)
    assert awaited.results()[0].outcome is Outcome.PENDING


async def test_an_audience_of_none_is_settled_at_once() -> None:
    assert await Acknowledgements(Post()).expect("id", []).wait(0)


async def test_a_subscription_that_nobody_knew_of_is_named_too() -> None:
    publisher = Acknowledgements(Post())
    awaited = publisher.expect("id", ["a"])
    publisher.tell("me", "id", "new", ACK, "me")
    assert not await awaited.wait(0)
    assert {each.subscription: each.outcome for each in awaited.results()} == {
        "a": Outcome.PENDING,
        "new": Outcome.ACKED,
    }


async def test_who_waits_twice_hears_twice_and_who_went_not_at_all() -> None:
    publisher = Acknowledgements(Post())
    first, second, gone = (publisher.expect("id", ["a"]) for _ in range(3))
    publisher.forget("id", gone)
    publisher.forget("id", gone)
    publisher.tell("me", "id", "a", ACK, "me")
    publisher.tell("me", "other", "a", ACK, "me")
    assert await first.wait(0)
    assert await second.wait(0)
    assert not await gone.wait(0)


@pytest.mark.parametrize("message", [{}, {"signal": "id"}, {"signal": "id", "subscription": "a", "outcome": "?"}])
async def test_a_malformed_message_is_dropped(message: dict[str, object]) -> None:
    publisher = Acknowledgements(Post())
    awaited = publisher.expect("id", ["a"])
    publisher.take(message)
    assert not await awaited.wait(0)


async def test_closing_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signalbus.acknowledgements.CLOSE_SECONDS", 0.05)
    post = Post()
    post.blocked = True
    subscriber = Acknowledgements(post)
    subscriber.tell("publisher", "id", "a", ACK, "subscriber")
    await asyncio.wait_for(subscriber.aclose(), 2)

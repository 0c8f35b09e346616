"""Facts on their way from a bus to its broker."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import cast

from signalbus.bookkeeper import BATCH_FACTS, CARRY_BATCHES, Bookkeeper
from signalbus.brokers.base import Broker
from signalbus.ledger import Batch, Recorder
from signalbus.sessions import SessionInfo
from signalbus.signals import utc_now
from tests.support import eventually

SESSION = SessionInfo(id="s1", name="shop", host="h", pid=1, version="1", started=utc_now())


class Book:
    """Takes facts, as a broker does."""

    def __init__(self) -> None:
        self.calls: list[Sequence[Batch]] = []

    def append(self, batches: Sequence[Batch]) -> None:
        self.calls.append(batches)

    @property
    def signals(self) -> list[object]:
        return [row[2] for batches in self.calls for batch in batches for row in batch.rows]


def keeping() -> tuple[Recorder, Book, Bookkeeper]:
    recorder, book = Recorder(SESSION), Book()
    return recorder, book, Bookkeeper(recorder, cast("Broker", book))


async def test_facts_are_carried_together_a_moment_later() -> None:
    recorder, book, keeper = keeping()
    keeper.begin()
    for number in range(3):
        recorder.acked(str(number), "t", "s", 1)
    assert book.calls == []
    await eventually(lambda: book.signals == ["0", "1", "2"], 5)
    assert len(book.calls) == 1
    recorder.acked("3", "t", "s", 1)
    await eventually(lambda: book.signals == ["0", "1", "2", "3"], 5)
    keeper.close()


async def test_what_was_told_before_the_beginning_is_carried_too() -> None:
    recorder, book, keeper = keeping()
    recorder.acked("early", "t", "s", 1)
    keeper.begin()
    await eventually(lambda: book.signals == ["early"], 5)
    keeper.close()


async def test_the_event_loop_has_its_turn_between_many_facts() -> None:
    recorder, book, keeper = keeping()
    count = BATCH_FACTS * CARRY_BATCHES + 1
    for number in range(count):
        recorder.acked(str(number), "t", "s", 1)
    keeper.begin()
    await eventually(lambda: len(book.signals) == count, 5)
    assert len(book.calls) == 2
    assert all(len(batch.rows) <= BATCH_FACTS for batches in book.calls for batch in batches)
    keeper.close()


async def test_closing_carries_the_rest_and_nothing_afterwards() -> None:
    recorder, book, keeper = keeping()
    keeper.begin()
    recorder.acked("last", "t", "s", 1)
    keeper.close()
    keeper.close()
    assert book.signals == ["last"]
    recorder.acked("later", "t", "s", 1)
    await asyncio.sleep(0.1)  # longer than a fact waits
    assert book.signals == ["last"]

"""The dead letters of a bus on RabbitMQ, kept by its router, in the file of its ledger.

Whoever may open the file can ask and decide; the router, which runs the `children`, takes dead letters in and sends
replays. Both survive its death: dead letters are acknowledged once they are stored, and what waits is sent later.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import sqlite3
import time
import uuid
from collections.abc import Sequence
from functools import partial
from typing import TypeVar

from ..brokers.base import PublishOutcome
from ..brokers.rabbitmq.broker import RabbitBroker
from ..brokers.rabbitmq.draining import Arrived
from ..brokers.sqlite.letters import whole
from ..children import ChildSpec
from ..deadletters import queries, transitions
from ..deadletters.keeper import Keeper, Order, Question
from ..deadletters.model import DEFAULT_RATE, Letter, LetterQuery, Replay
from ..deadletters.pace import pace_of
from ..deadletters.retention import forget
from ..deadletters.sender import send_all
from ..deadletters.transitions import Claim
from ..errors import BrokerError, BusClosed, ConfigError, StorageError
from ..ledger import Batch, Origin
from ..ledger.facts import Row, to_row
from ..signals import new_id
from . import graves
from .graves import Sending
from .store import RouterStore

log = logging.getLogger(__name__)

T = TypeVar("T")

FORGET_SECONDS, PIECE_SECONDS = 60.0, 0.05  # between looks for what is old; between pieces, in which others write
LOST_SECONDS = 5.0  # between looks for replays whose subscription is gone
LOOK_SECONDS = 0.5  # between looks at what others claimed
AGAIN_SECONDS = 1.0  # before what the store could not do is tried again
SEND_SECONDS = 10.0  # for the answer to what was sent
NAME = "router"


class RouterLetters(Keeper):
    """See `DeadLetters`, and the module. Replays are sent by the router: elsewhere they only begin here."""

    def __init__(self, broker: RabbitBroker, store: RouterStore) -> None:
        """Keep them in a store that somebody else opens and closes."""
        self._broker = broker
        self._store = store
        self.turn = asyncio.Event()  # set while it is up to us to send, and not to another router
        self.turn.set()
        self._claimed = asyncio.Event()
        self._listening = asyncio.Event()
        self._closed = False

    def children(self) -> Sequence[ChildSpec]:
        """Return what a router runs under its supervisor, with its broker open."""
        return (
            ChildSpec(name="dead letters", start=self.take_in),
            ChildSpec(name="ends of replays", start=self.listen),
            ChildSpec(name="replays", start=self.send),
            ChildSpec(name="lost replays", start=self.find_lost),
            ChildSpec(name="forget dead letters", start=self.forget),
        )

    async def get(self, letter: str) -> Letter | None:
        """See `DeadLetters.get`."""
        return await self._ask(partial(whole, letter=letter))

    async def replay(self, query: LetterQuery, *, by: str, rate: float = DEFAULT_RATE) -> Replay:
        """See `DeadLetters.replay`."""
        pace_of(rate)
        replay = new_id()

        def claim(connection: sqlite3.Connection, now: float) -> Replay | None:
            transitions.claim(connection, query, Claim(id=replay, by=by, at=now, rate=rate))
            return queries.progress(connection, replay)

        begun = await self._order(claim)
        self._claimed.set()
        if begun is None:
            raise StorageError(f"replay {replay} is not in {self._store.path}, though it was stored; check the disk")
        return begun

    async def aclose(self) -> None:
        """See `DeadLetters.aclose`; what waits goes on waiting, for the router."""
        self._closed = True

    # What the router runs

    async def take_in(self) -> None:
        """Store the dead letters of all buses, until cancelled."""

        def store(arrived: Sequence[Arrived]) -> object:
            return self._store.write(lambda connection: graves.bury(connection, arrived, time.time()))

        await self._broker.take_dead_letters(store)

    async def listen(self) -> None:
        """Store what becomes of replays, until cancelled."""

        def store(words: Sequence[bytes]) -> object:
            if senseless := self._store.write(lambda connection: graves.hear(connection, words, time.time())):
                log.warning("%d messages about replays could not be read", senseless)
            return None

        await self._broker.take_words(store, self._listening)

    async def send(self) -> None:
        """Send what replays have claimed, here or elsewhere, now or before we were started, until cancelled."""
        await self._listening.wait()  # or the first words would be lost
        while True:
            await self.turn.wait()
            await self._persist(lambda connection, _: transitions.dropped(connection))
            await self._send_in_turn()

    async def _send_in_turn(self) -> None:
        running: dict[str, asyncio.Task[None]] = {}
        async with asyncio.TaskGroup() as tasks:
            while self.turn.is_set():
                self._claimed.clear()
                for replay, rate in await self._unfinished():
                    if replay not in running or running[replay].done():
                        running[replay] = tasks.create_task(self._send_all(replay, rate), name=f"replay {replay}")
                running = {replay: task for replay, task in running.items() if not task.done()}
                await self._wait_claimed()
            for task in running.values():
                task.cancel()

    async def find_lost(self) -> None:
        """End replays whose subscription was deleted meanwhile, until cancelled: RabbitMQ drops its queue silently."""
        while True:
            await asyncio.sleep(LOST_SECONDS)
            try:
                for subscription in await self._ask(queries.awaited):
                    if not await self._broker.has_queue(subscription, SEND_SECONDS):
                        await self._order(partial(_orphan, subscription=subscription))
            except (BrokerError, ConfigError) as error:
                log.warning("it is not known which subscriptions exist: %s", error)

    async def forget(self) -> None:
        """Forget what was acked long ago, until cancelled."""
        while True:
            try:
                some = await self._order(forget)
            except BrokerError as error:
                log.warning("dead letters are not forgotten for now: %s", error)
                some = 0
            await asyncio.sleep(PIECE_SECONDS if some else FORGET_SECONDS)

    async def _send_all(self, replay: str, rate: float) -> None:
        recorder = f"replay {replay} {uuid.uuid4().hex[:8]}"
        told = 0

        async def send(replay: str, limit: int) -> int:
            nonlocal told
            looked, sending = await self._order(lambda connection, now: graves.take_up(connection, replay, limit, now))
            if sending:
                before = time.time()  # a subscriber may have it, and tell, before we know that it was sent
                outcomes = await self._return(sending)
                facts = await self._persist(lambda connection, now: graves.note(connection, sending, outcomes, now))
                self._tell(recorder, told + 1, [to_row(before, fact) for fact in facts])
                told += len(facts)
            return looked

        await send_all(replay, rate, send)

    async def _return(self, sending: Sequence[Sending]) -> Sequence[PublishOutcome]:
        letters = [(each.subscription, each.signal) for each in sending]
        try:
            return await self._broker.return_dead_letters(letters, SEND_SECONDS)
        except BrokerError:
            numbers = [each.number for each in sending]
            await self._persist(lambda connection, _: transitions.laid_down(connection, numbers))
            raise

    def _tell(self, recorder: str, first: int, facts: Sequence[Row]) -> None:
        if facts:
            origin = Origin(recorder=recorder, session=NAME, name=NAME, host=socket.gethostname(), pid=os.getpid())
            self._broker.append([Batch(origin=origin, first=first, rows=facts)])

    async def _unfinished(self) -> Sequence[tuple[str, float]]:
        try:
            return await self._ask(queries.unfinished)
        except BrokerError as error:
            log.warning("replays wait, as the store has trouble: %s", error)
            return ()

    async def _wait_claimed(self) -> None:
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await self._claimed.wait()
        except TimeoutError:
            pass  # another process may have claimed something

    # The file

    async def _ask(self, question: Question[T]) -> T:
        self._check()
        return await asyncio.to_thread(self._store.read, question)

    async def _order(self, order: Order[T]) -> T:
        self._check()
        return await asyncio.to_thread(self._store.write, lambda connection: order(connection, time.time()))

    async def _persist(self, order: Order[T]) -> T:
        """As `_order`, until it works: what is in hand would stay there otherwise."""
        while True:
            try:
                return await self._order(order)
            except BrokerError as error:
                log.warning("what was sent cannot be noted for now: %s", error)
                await asyncio.sleep(AGAIN_SECONDS)

    def _check(self) -> None:
        if self._closed:
            raise BusClosed("these dead letters are closed; ask those of a router that runs")


def _orphan(connection: sqlite3.Connection, now: float, subscription: str) -> int:
    return graves.orphan(connection, subscription, now)

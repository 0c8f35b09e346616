"""Responding to one type of requests: a consumer that is made again after every loss.

An answer is published, with confirm, before its request is acknowledged: dying between the two repeats the request,
and loses nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from aiormq.abc import AbstractChannel, AbstractConnection
from pamqp import commands

from ...errors import BrokerError, BrokerUnavailable, ConfigError
from ..base import Answer, AnswerKind, IncomingRequest, PublishResult
from . import dialogue
from .connection import Backoff, Link
from .control import Control
from .deliveries import consume, received
from .driver import NOT_FOUND, DriverFailure, call, close_quietly
from .lane import Received
from .notes import Note
from .post import Post
from .publishing import Envelope, Publisher
from .rounds import Held, Round
from .tasks import Keeper, end
from .topology import Topology

log = logging.getLogger(__name__)

STEP_SECONDS = 10.0
STOP_SECONDS = 2.0
ANSWER_SECONDS = 5.0
VERIFY_SECONDS = 3.0
VERIFY_PAUSE = 0.02
FIRST_PAUSE = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class Service:
    """What the responders of a broker share. ``session`` tells who we are now."""

    topology: Topology
    link: Link
    control: Control
    publisher: Publisher
    post: Post
    keeper: Keeper
    counters: Counter[str]
    responders: set[RabbitResponder]  # those that are not closed
    session: Callable[[], str]
    silent_after: float
    backoff_cap: float


class RabbitResponder:
    """Implements `Responder`."""

    def __init__(self, request_type: str, concurrency: int, backlog: int, service: Service) -> None:
        self.request_type = request_type
        self.refused: ConfigError | None = None  # while the broker refuses us
        self.problem: str | None = None  # why we are not served
        self.served = asyncio.Event()
        self._service = service
        self._concurrency = concurrency
        # RabbitMQ refuses what makes a queue longer than this even while a consumer waits for it.
        self._queue = service.topology.request_queue(request_type, max(backlog, 1))
        self._backlog = backlog
        self._ready: deque[IncomingRequest] = deque()
        self._arrived = asyncio.Event()
        self._changed = asyncio.Event()
        self._stopped = asyncio.Event()
        self._stopping = asyncio.Lock()
        self._round: Round | None = None
        self._backoff = Backoff(FIRST_PAUSE, service.backoff_cap)
        service.responders.add(self)
        self._task = service.keeper.keep(f"responder to {request_type}", self._run)

    async def wait_served(self, timeout: float) -> None:
        """Wait until requests reach us. Raises `ConfigError` or `BrokerUnavailable`."""
        try:
            async with asyncio.timeout(timeout):
                while not self.served.is_set():
                    if self.refused is not None:
                        raise self.refused
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError as error:
            reason = self.problem or self._service.link.trouble("no answer")
            raise BrokerUnavailable(f"requests {self.request_type!r} do not reach us: {reason}") from error

    # Implements Responder

    async def receive(self) -> Sequence[IncomingRequest]:
        """Wait for requests."""
        clock = asyncio.get_running_loop().time
        while not self._stopped.is_set():
            now, batch = clock(), list(self._ready)
            self._ready.clear()
            if alive := [request for request in batch if self._waited_for(request, now)]:
                return alive
            self._arrived.clear()
            await self._arrived.wait()
        return ()

    async def answer(self, request: IncomingRequest, answer: Answer) -> bool:
        """Publish the answer, then acknowledge the request."""
        held = request.handle
        if not isinstance(held, Held) or held.answering:
            return False
        held.answering = True
        try:
            await self._send(held, answer)
        except BaseException:
            held.answering = False
            raise
        held.round.ack(held.tag)
        return True

    async def stop(self) -> None:
        """Take nothing more."""
        async with self._stopping:
            if self._stopped.is_set():
                return
            self._stopped.set()
            self._arrived.set()
            round_ = self._round
            if round_ is None or not round_.alive:
                return
            await self._notify(round_, dialogue.WORKING)
            await self._fetch(round_)
            await self._move_on()
            await self._cancel(round_)
            await self._move_on()
            await self._leave()

    async def aclose(self) -> None:
        """Stop, and leave whatever is unanswered to others."""
        await self.stop()
        self._service.responders.discard(self)
        round_ = self._round
        if round_ is not None and round_.alive:
            left = bool(round_.unanswered)
            await self._notify(round_, dialogue.RELEASED)
            await round_.drain()
            round_.end("closed")  # closing its channel gives back what is unanswered
            await asyncio.wait([self._task], timeout=STOP_SECONDS)
            if left:
                await self._leave()
        await end(self._task)

    # Answers

    async def _send(self, held: Held, answer: Answer) -> None:
        """Publish an answer. Raises `BrokerError`. Whether its requester still waits the broker does not tell.

        Not mandatory: up to RabbitMQ 4.1 every message to a direct reply address is returned, also when it arrives;
        later ones return none.
        """
        publisher = self._service.publisher
        header = dialogue.answer(answer, held.correlation, publisher.next_id(), self._service.session())
        envelope = Envelope("", held.reply_to, header, answer.body, mandatory=False)
        (outcome,) = await publisher.publish([envelope], ANSWER_SECONDS)
        if outcome.result is not PublishResult.CONFIRMED:
            raise BrokerUnavailable(f"an answer to {self.request_type!r} was not sent: {outcome.reason}")

    async def _notify(self, round_: Round, kind: str) -> None:
        """Tell the requesters of what is in our handlers' hands that we go on with it, or that we do not."""
        waiting = {id(request.handle) for request in self._ready}
        held = [
            held
            for held in round_.unanswered.values()
            if id(held) not in waiting and not held.answering and (kind == dialogue.WORKING or held.noticed)
        ]
        if not held:
            return
        publisher, session = self._service.publisher, self._service.session()
        headers = [dialogue.notice(kind, item.correlation, publisher.next_id(), session) for item in held]
        envelopes = [
            Envelope("", item.reply_to, header, b"", mandatory=False)
            for item, header in zip(held, headers, strict=True)
        ]
        try:
            await publisher.publish(envelopes, STOP_SECONDS)
        except BrokerError as error:
            log.warning("%s: requesters do not learn that we stop: %s", self.request_type, error)
        for item in held:
            item.noticed = kind == dialogue.WORKING

    async def _fetch(self, round_: Round) -> None:
        """Take what waits in the queue, if nobody else will: it goes with its last consumer, and nobody is told."""
        try:
            async with asyncio.timeout(STOP_SECONDS):
                counts = await self._service.control.counts(self._queue.name, STOP_SECONDS)
                if counts is None or counts.consumers > 1:
                    return
                for _ in range(counts.ready):
                    message = await call(round_.channel.basic_get(self._queue.name), STOP_SECONDS)
                    if not isinstance(message.delivery, commands.Basic.GetOk):
                        return
                    self._take(received(message), round_)
        except (TimeoutError, BrokerError, ConfigError, DriverFailure) as error:
            log.warning("%s: not all requests that wait could be moved: %s", self.request_type, error)

    async def _move_on(self) -> None:
        """Answer what nobody has received: it is to go to somebody else."""
        requests = list(self._ready)
        self._ready.clear()
        moved = Answer(AnswerKind.MOVED, reason="the responder stops")
        results = await asyncio.gather(*(self.answer(request, moved) for request in requests), return_exceptions=True)
        for result in results:
            if isinstance(result, BrokerError):
                log.warning("%s: a requester does not learn that we stop: %s", self.request_type, result)
            elif isinstance(result, BaseException):
                raise result

    async def _cancel(self, round_: Round) -> None:
        if round_.alive and round_.tag:
            try:
                await call(round_.channel.basic_cancel(round_.tag), STOP_SECONDS)
            except DriverFailure as failure:
                round_.end(f"not cancelled: {failure.reason}")

    async def _leave(self) -> None:
        """Tell requesters to look whether others respond to the type."""
        service = self._service
        try:
            await service.post.send(
                service.topology.sessions, f"left.{self.request_type}", Note.LEFT, b"", STOP_SECONDS
            )
        except BrokerError as error:
            log.debug("%s: requesters find out later that we left: %s", self.request_type, error)

    # Requests

    def _take(self, message: Received, round_: Round) -> None:
        tag = message.tag
        round_.deliveries += 1
        asked = dialogue.read_request(message, time.time())
        if isinstance(asked, str):
            self._service.counters["requests_refused"] += 1
            log.warning("a request %r is refused: %s", self.request_type, asked)
            round_.ack(tag)
            return
        expires = asyncio.get_running_loop().time() + asked.remaining
        held = Held(round_, tag, asked.reply_to, asked.correlation, expires)
        round_.unanswered[tag] = held
        self._ready.append(
            IncomingRequest(signal=asked.signal, remaining=asked.remaining, redelivered=asked.redelivered, handle=held)
        )
        self._arrived.set()

    def _waited_for(self, request: IncomingRequest, now: float) -> bool:
        """Whether somebody waits for the answer still. What has expired is done with."""
        held = request.handle
        assert isinstance(held, Held)
        if not held.round.alive:
            return False  # it comes again, to somebody
        request.remaining = held.expires - now
        if request.remaining > 0:
            return True
        self._service.counters["requests_expired"] += 1
        held.round.ack(held.tag)
        return False

    # Rounds

    async def _run(self) -> None:
        while not self._stopped.is_set():
            try:
                await self._serve()
            except (BrokerError, DriverFailure) as error:
                self.problem = str(error)
            except ConfigError as error:
                self.problem, self.refused = str(error), error
            if self._stopped.is_set():
                return
            self._service.counters["responders_lost"] += 1
            self._changed.set()
            log.warning("requests %s do not reach us for now: %s", self.request_type, self.problem)
            await asyncio.sleep(self._backoff.next())

    async def _serve(self) -> None:
        """Consume on a new channel, and wait until that ends."""
        service, clock = self._service, asyncio.get_running_loop().time
        connection = await service.link.wait_up(clock() + STEP_SECONDS)
        await self._declare()
        channel = await self._open(connection)
        round_ = self._round = Round(channel)

        def take(message: Received) -> None:
            if round_.alive:
                self._take(message, round_)

        try:
            await call(channel.basic_qos(prefetch_count=self._concurrency), STEP_SECONDS)
            if self._stopped.is_set():
                return
            round_.tag = await consume(channel, self._queue.name, take)
            await self._verify()
            if self._stopped.is_set():
                return
            self.problem = self.refused = None
            self.served.set()
            self._changed.set()
            self._backoff.began(clock())
            await self._watch(round_)
            self._backoff.ended(clock())
            self.problem = round_.reason
        finally:
            self.served.clear()
            round_.kill()
            self._ready.clear()
            self._round = None
            if not channel.is_closed:
                await close_quietly(channel.close(), STOP_SECONDS)

    async def _declare(self) -> None:
        try:
            await self._service.control.run([self._queue], STEP_SECONDS)
        except ConfigError as error:
            raise ConfigError(
                f"requests {self.request_type!r}: {error}. All responders to a type share one queue: "
                f"give them the same backlog (here {self._backlog}), or stop the others first"
            ) from error

    async def _verify(self) -> None:
        """Wait until the broker counts a consumer on the queue. Raises `DriverFailure` if it does not."""
        clock = asyncio.get_running_loop().time
        deadline = clock() + VERIFY_SECONDS
        while True:
            counts = await self._service.control.counts(self._queue.name, STEP_SECONDS)
            if counts is not None and counts.consumers:
                return
            if clock() >= deadline:
                raise DriverFailure("the broker does not count us as a responder", NOT_FOUND)
            await asyncio.sleep(VERIFY_PAUSE)

    async def _watch(self, round_: Round) -> None:
        """Wait for the end; give the round up when the broker does not know it, or keeps requests from it."""
        while not round_.ended.is_set():
            before = round_.deliveries
            try:
                async with asyncio.timeout(self._service.silent_after):
                    await round_.ended.wait()
            except TimeoutError:
                await self._look(round_, before)

    async def _look(self, round_: Round, before: int) -> None:
        if self._stopped.is_set():
            return
        try:
            counts = await self._service.control.counts(self._queue.name, STEP_SECONDS)
        except (BrokerError, ConfigError) as error:
            log.debug("%s: its queue cannot be looked at: %s", self.request_type, error)
            return
        idle = round_.deliveries == before and len(round_.unanswered) < self._concurrency
        if not self._stopped.is_set() and (counts is None or not counts.consumers or (counts.ready and idle)):
            self._service.counters["consumers_recycled"] += 1
            round_.end("the broker does not know its consumer, or sends it nothing")

    async def _open(self, connection: AbstractConnection) -> AbstractChannel:
        try:
            return await call(connection.channel(publisher_confirms=False), STEP_SECONDS)
        except DriverFailure as failure:
            self._service.link.suspect(connection, failure)
            raise

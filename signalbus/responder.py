"""Responding to requests of one type: from requests to handler runs to answers.

Whether a request may run a second time is its handler's to say (``idempotent``); a broker only marks those that
another responder had.
"""

from __future__ import annotations

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Generator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import timedelta
from typing import Generic, ParamSpec, Self, TypedDict, TypeVar, cast

import orjson

from . import codec
from .brokers.base import Answer, AnswerKind, IncomingRequest, Responder
from .delivery import describe
from .errors import BrokerError, BrokerUnavailable, BusClosed, ConfigError, DecodeError, InvalidSignal
from .handlers import Delivery, Handler, absorb_cancellation
from .ledger import ReplySide
from .services import Surroundings
from .sessions import ServiceReport
from .signals import utc_now

log = logging.getLogger(__name__)

P = ParamSpec("P")
R_co = TypeVar("R_co", covariant=True)

LONGEST_TIMEOUT = timedelta(minutes=29)  # RabbitMQ takes an unacknowledged request back after 30 minutes
SERVE_PAUSE = 0.5  # seconds before what the broker could not do is tried again
THREADS = 64  # for sync handlers, at most


class RespondKeywords(TypedDict, total=False):
    """The keyword arguments of `Bus.respond`."""

    concurrency: int
    backlog: int
    timeout: timedelta | float
    idempotent: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class ResponderOptions:
    """How a type is responded to by this process.

    ``concurrency``: handlers at a time. ``backlog``: requests that may wait; further ones are refused. ``timeout``:
    of one run, if the requester waits longer. ``idempotent``: a request whose responder died may run again.
    """

    concurrency: int = 100
    backlog: int = 1_000
    timeout: timedelta = timedelta(minutes=15)
    idempotent: bool = False

    def __post_init__(self) -> None:
        for name, value in (("concurrency", self.concurrency), ("backlog", self.backlog)):
            if not 1 <= value <= 65_535:
                raise ConfigError(f"{name} is {value}; it must be from 1 to 65535")
        if not timedelta(0) < self.timeout <= LONGEST_TIMEOUT:
            raise ConfigError(f"timeout is {self.timeout}; it must be above zero and at most {LONGEST_TIMEOUT}")


@dataclass(slots=True, kw_only=True)
class ResponderStats:
    """Counters of a responder in this process since the bus was opened; ``in_flight`` is now.

    ``refused``: requests that another responder had when it died, and that must not run again. ``expired``: those
    whose deadline passed while they ran. ``unheard``: answers whose requester was known to be gone.
    """

    received: int = 0
    replied: int = 0
    failed: int = 0
    refused: int = 0
    expired: int = 0
    unheard: int = 0
    in_flight: int = 0
    last_error: str = ""


class RespondingService:
    """Responds to one type in an open bus. Started once, stopped once."""

    def __init__(self, request_type: str, handler: Handler, options: ResponderOptions) -> None:
        self.request_type = request_type
        self.stats = ResponderStats()
        self._handler = handler
        self._options = options
        self._surroundings: Surroundings | None = None
        self._responder: Responder | None = None
        self._starting: asyncio.Task[None] | None = None
        self._serving: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._threads = ThreadPoolExecutor(
            min(options.concurrency, THREADS), thread_name_prefix=f"signalbus-{request_type}"
        )
        self._cancelling = False

    @property
    def name(self) -> str:
        """What it is called in logs."""
        return f"respond {self.request_type}"

    def start(self, surroundings: Surroundings) -> asyncio.Task[None]:
        """Begin to respond; the task ends when requests reach us, or fails."""
        self._surroundings = surroundings
        self._starting = asyncio.create_task(self._start(surroundings), name=f"start {self.name}")
        return self._starting

    async def wait_served(self) -> None:
        """Wait for the start. Raises what kept it from succeeding, and `BusClosed` before it began."""
        if self._starting is None:
            raise BusClosed(f"{self.request_type!r} is responded to once its bus is open: async with bus: ...")
        await asyncio.shield(self._starting)

    async def stop(self) -> None:
        """Take nothing more, let running handlers reply within the drain timeout, cancel the rest. Idempotent."""
        if self._starting is not None and not self._starting.done():
            self._starting.cancel()
            await asyncio.wait([self._starting])
        if self._responder is not None and self._surroundings is not None:
            await self._responder.stop()
            await self._drain(self._surroundings.drain_timeout)
            await self._responder.aclose()
        if self._serving is not None:
            self._serving.cancel()
            await asyncio.wait([self._serving])
        self._threads.shutdown(wait=False, cancel_futures=True)

    def report(self) -> ServiceReport:
        """Return what to say of it to others."""
        return ServiceReport(
            name=self.request_type,
            concurrency=self._options.concurrency,
            in_flight=self.stats.in_flight,
            last_error=self.stats.last_error,
        )

    async def _start(self, surroundings: Surroundings) -> None:
        options = self._options
        self._responder = await _until_there(
            lambda left: surroundings.broker.respond(self.request_type, options.concurrency, options.backlog, left),
            surroundings.timeout,
        )
        self._serving = surroundings.supervisor.start(self.name, self._serve)

    async def _serve(self) -> None:
        assert self._responder is not None
        while batch := await self._responder.receive():
            for request in batch:
                self.stats.received += 1
                task = asyncio.create_task(self._respond(self._responder, request))
                self._tasks.add(task)
                task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            # Our own bug, as errors of handlers became answers. The requester gets none, and times out.
            self.stats.last_error = repr(error)
            log.critical("%s: a request could not be answered", self.name, exc_info=error)

    async def _drain(self, grace: float) -> None:
        if not self._tasks:
            return
        _, late = await asyncio.wait(self._tasks, timeout=grace)
        if late:
            log.warning("%s: %d handlers did not end within %.1f s; cancelling them", self.name, len(late), grace)
            self._cancelling = True
            for task in late:
                task.cancel()
            await asyncio.wait(late, timeout=min(grace, 5.0))

    async def _respond(self, responder: Responder, request: IncomingRequest) -> None:
        if request.redelivered and not self._options.idempotent:
            self.stats.refused += 1
            answer, took = Answer(AnswerKind.RESPONDER_DOWN, session=self._session), None
        else:
            self.stats.in_flight += 1
            clock = asyncio.get_running_loop().time
            began = clock()
            try:
                answer = await self._run(request)
            finally:
                self.stats.in_flight -= 1
            took = clock() - began
        task = asyncio.current_task()
        if task is not None and task.cancelling() and not self._cancelling:
            await absorb_cancellation(task)
        try:
            heard = await self._answer(responder, request, answer)
            self._tell(request, answer, took)
        except BrokerError as error:
            # The connection the request came on is gone as well: it goes to another responder, or its requester hears.
            self.stats.last_error = str(error)
            log.warning("%s: request %s could not be answered: %s", self.name, request.signal.id, error)
            return
        if not heard:
            self.stats.unheard += 1

    async def _answer(self, responder: Responder, request: IncomingRequest, answer: Answer) -> bool:
        try:
            return await responder.answer(request, answer)
        except InvalidSignal as error:  # the broker's own limit is below ours
            return await responder.answer(request, self._failed(DecodeError(f"the reply cannot be sent: {error}")))

    def _tell(self, request: IncomingRequest, answer: Answer, took: float | None) -> None:
        """Tell the ledger what was answered."""
        assert self._surroundings is not None
        error = message = ""
        if answer.kind is AnswerKind.FAILED:
            told = cast("dict[str, str]", orjson.loads(answer.body))
            error, message = told["type"], told["message"]
        signal = request.signal
        self._surroundings.recorder.replied(
            signal.id, signal.type, ReplySide.RESPONDER, answer.kind.value, took, error, message
        )

    @property
    def _session(self) -> str:
        return self._surroundings.session() if self._surroundings is not None else ""

    async def _run(self, request: IncomingRequest) -> Answer:
        """Run the handler; whatever it returns or raises becomes an answer."""
        assert self._surroundings is not None
        delivery = Delivery(
            subscription=self.request_type,
            attempt=1,
            crashes=int(request.redelivered),
            redelivered=request.redelivered,
            history=(),
            encoded=request.signal,
        )
        seconds = min(request.remaining, self._options.timeout.total_seconds())
        limit = asyncio.timeout(seconds)
        try:
            async with limit:
                with self._surroundings.telemetry.responding(request.signal):
                    result = await self._handler(request.signal, delivery, self._threads)
            body, content_type = codec.encode_data(result, None)
            check_body(body, self._surroundings.max_signal_bytes)
        except InvalidSignal as error:
            return self._failed(DecodeError(f"the handler's result cannot be sent: {error}"))
        except asyncio.CancelledError as error:
            if self._cancelling:
                raise  # the drain is over: the requester learns that we are gone
            return self._failed(error)
        except TimeoutError as error:
            if limit.expired() and seconds >= request.remaining:
                self.stats.expired += 1
                return Answer(AnswerKind.EXPIRED, session=self._session)
            return self._failed(error)
        except BaseException as error:  # noqa: BLE001 - foreign code: whatever it raises is the answer
            return self._failed(error)
        self.stats.replied += 1
        return Answer(AnswerKind.REPLY, body, content_type, self._session)

    def _failed(self, error: BaseException) -> Answer:
        session = self._session
        failure = describe(error, attempt=1, at=utc_now(), session=session)
        self.stats.failed += 1
        self.stats.last_error = f"{failure.error}: {failure.message}"
        log.warning("%s: the handler raised %s: %s", self.name, failure.error, failure.message)
        fields = {"type": failure.error, "message": failure.message, "traceback": failure.traceback}
        return Answer(AnswerKind.FAILED, orjson.dumps(fields), codec.JSON, session)


def check_body(body: bytes, limit: int) -> None:
    """Raise `InvalidSignal` if a reply is over the limit."""
    if len(body) > limit:
        raise InvalidSignal(
            f"it has {len(body)} bytes, more than max_signal_bytes={limit}; reply with a reference to it"
        )


async def _until_there(respond: Callable[[float], Awaitable[Responder]], timeout: float) -> Responder:
    """Begin to respond; again when the connection was lost meanwhile, which one call cannot wait out."""
    clock = asyncio.get_running_loop().time
    deadline = clock() + timeout
    while True:
        try:
            return await respond(max(deadline - clock(), 0.0))
        except BrokerUnavailable:
            if clock() + SERVE_PAUSE >= deadline:
                raise
        await asyncio.sleep(SERVE_PAUSE)


class Endpoint(Generic[P, R_co]):
    """A handler that responds to a type. Calling it calls the handler; awaiting it waits until it is served."""

    def __init__(
        self,
        service: RespondingService,
        function: Callable[P, R_co],
        cancel: Callable[[RespondingService], Awaitable[None]],
    ) -> None:
        functools.update_wrapper(self, function)
        self._service = service
        self._function = function
        self._cancel = cancel

    @property
    def type(self) -> str:
        """The type of requests it responds to."""
        return self._service.request_type

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the handler directly, as tests do."""
        return self._function(*args, **kwargs)

    def __await__(self) -> Generator[object, None, Self]:
        """Wait until requests reach us. Raises what kept it from that."""
        return self._wait_served().__await__()

    def __repr__(self) -> str:
        return f"<Endpoint of {self.type!r}>"

    async def cancel(self) -> None:
        """Stop responding, as when the bus closes. Idempotent."""
        await self._cancel(self._service)

    def stats(self) -> ResponderStats:
        """Return the counters of this process since the bus was opened."""
        return self._service.stats

    async def _wait_served(self) -> Self:
        await self._service.wait_served()
        return self

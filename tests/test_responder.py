"""Responding without a broker: requests become handler runs, and those become answers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any, cast

import orjson
import pytest

from signalbus import BrokerUnavailable, BusClosed, ConfigError, Delivery, InvalidSignal, Signal
from signalbus.brokers.base import Answer, AnswerKind, Broker, IncomingRequest, Responder
from signalbus.codec import encode
from signalbus.handlers import compile_handler
from signalbus.responder import Endpoint, ResponderOptions, RespondingService
from signalbus.services import Surroundings
from signalbus.supervision import Supervisor
from signalbus.telemetry import Telemetry
from tests.support import eventually


class FakeResponder:
    """Hands out what it is given, and keeps the answers."""

    def __init__(self) -> None:
        self.answers: list[tuple[IncomingRequest, Answer]] = []
        self.calls: list[str] = []
        self.script: list[bool | Exception] = []
        self._queue: asyncio.Queue[Sequence[IncomingRequest]] = asyncio.Queue()

    def hand_out(self, *requests: IncomingRequest) -> None:
        self._queue.put_nowait(requests)

    async def receive(self) -> Sequence[IncomingRequest]:
        return await self._queue.get()

    async def answer(self, request: IncomingRequest, answer: Answer) -> bool:
        self.answers.append((request, answer))
        outcome = self.script.pop(0) if self.script else True
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def stop(self) -> None:
        self.calls.append("stop")
        self._queue.put_nowait(())

    async def aclose(self) -> None:
        self.calls.append("aclose")


class FakeBroker:
    def __init__(self, *failures: Exception) -> None:
        self.responder = FakeResponder()
        self.asked: list[tuple[str, int, int]] = []
        self._failures = list(failures)

    async def respond(self, request_type: str, concurrency: int, backlog: int, timeout: float) -> Responder:
        self.asked.append((request_type, concurrency, backlog))
        if self._failures:
            raise self._failures.pop(0)
        return self.responder


class Setup:
    def __init__(
        self, handler: Callable[..., object], *failures: Exception, drain: float = 1.0, **options: Any
    ) -> None:
        self.broker = FakeBroker(*failures)
        self.errors: list[BaseException] = []
        self.service = RespondingService("ask", compile_handler(handler), ResponderOptions(**options))
        self.surroundings = Surroundings(
            broker=cast("Broker", self.broker),
            session=lambda: "me",
            supervisor=Supervisor("test", self.errors.append),
            tell=lambda *_: None,
            telemetry=Telemetry(),
            max_signal_bytes=1_000,
            timeout=5.0,
            drain_timeout=drain,
        )

    @property
    def answers(self) -> list[Answer]:
        return [answer for _, answer in self.broker.responder.answers]

    async def wait_answers(self, count: int) -> list[Answer]:
        await eventually(lambda: len(self.answers) >= count, 5, interval=0.001)
        return self.answers


@asynccontextmanager
async def serving(handler: Callable[..., object], *failures: Exception, **options: Any) -> AsyncIterator[Setup]:
    setup = Setup(handler, *failures, **options)
    await asyncio.wait_for(setup.service.start(setup.surroundings), 5)
    try:
        yield setup
    finally:
        await setup.service.stop()
        await setup.surroundings.supervisor.aclose()
        assert setup.errors == []


def incoming(data: object = 1, **fields: Any) -> IncomingRequest:
    return IncomingRequest(signal=encode(Signal(type="ask", source="s", data=data)), **{"remaining": 5.0, **fields})


def fields_of(answer: Answer) -> dict[str, str]:
    return cast("dict[str, str]", orjson.loads(answer.body))


async def test_what_a_handler_returns_is_the_reply() -> None:
    async def handle(n: int, delivery: Delivery) -> dict[str, int]:
        assert (delivery.type, delivery.attempt, delivery.redelivered) == ("ask", 1, False)
        return {"n": n + 1}

    async with serving(handle, concurrency=3, backlog=7) as setup:
        assert setup.broker.asked == [("ask", 3, 7)]
        setup.broker.responder.hand_out(incoming(1), incoming(2))
        answers = await setup.wait_answers(2)
        assert [(answer.kind, answer.body, answer.session) for answer in answers] == [
            (AnswerKind.REPLY, b'{"n":2}', "me"),
            (AnswerKind.REPLY, b'{"n":3}', "me"),
        ]
        stats = setup.service.stats
        assert (stats.received, stats.replied, stats.in_flight) == (2, 2, 0)
        assert (setup.service.report().name, setup.service.report().in_flight) == ("ask", 0)


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit(3), RecursionError("deep"), KeyboardInterrupt()])
async def test_whatever_a_handler_raises_is_a_failure_told_to_the_requester(error: BaseException) -> None:
    async def handle(n: int) -> None:
        raise error

    async with serving(handle) as setup:
        setup.broker.responder.hand_out(incoming())
        (answer,) = await setup.wait_answers(1)
        assert answer.kind is AnswerKind.FAILED
        assert fields_of(answer)["type"] == type(error).__name__
        assert "raise error" in fields_of(answer)["traceback"]
        assert (setup.service.stats.failed, setup.service.stats.in_flight) == (1, 0)


async def test_a_handler_that_cancels_itself_has_failed() -> None:
    async def handle(n: int) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        await asyncio.sleep(0)

    async with serving(handle) as setup:
        setup.broker.responder.hand_out(incoming())
        (answer,) = await setup.wait_answers(1)
        assert (answer.kind, fields_of(answer)["type"]) == (AnswerKind.FAILED, "asyncio.exceptions.CancelledError")


async def test_data_that_does_not_fit_and_results_that_cannot_be_sent_are_failures() -> None:
    async def handle(n: int) -> object:
        return object()

    async with serving(handle) as setup:
        setup.broker.responder.hand_out(incoming("x"), incoming(1))
        answers = await setup.wait_answers(2)
        assert [answer.kind for answer in answers] == [AnswerKind.FAILED] * 2
        assert {fields_of(answer)["type"] for answer in answers} == {"DecodeError"}


async def test_replies_over_a_limit_are_failures_told_to_the_requester() -> None:
    async def handle(n: int) -> str:
        return "x" * n

    async with serving(handle) as setup:
        setup.broker.responder.hand_out(incoming(2_000))
        (answer,) = await setup.wait_answers(1)
        assert answer.kind is AnswerKind.FAILED
        assert "more than max_signal_bytes=1000" in fields_of(answer)["message"]
        setup.broker.responder.script = [InvalidSignal("more than the broker takes"), True]
        setup.broker.responder.hand_out(incoming(10))
        reply, refused = (await setup.wait_answers(3))[1:]
        assert (reply.kind, refused.kind) == (AnswerKind.REPLY, AnswerKind.FAILED)
        assert "more than the broker takes" in fields_of(refused)["message"]


async def test_a_request_whose_responder_died_is_refused_unless_it_may_run_again() -> None:
    runs: list[bool] = []

    async def handle(n: int, delivery: Delivery) -> None:
        runs.append(delivery.redelivered)

    async with serving(handle) as setup:
        setup.broker.responder.hand_out(incoming(redelivered=True))
        (answer,) = await setup.wait_answers(1)
        assert (answer.kind, setup.service.stats.refused, runs) == (AnswerKind.RESPONDER_DOWN, 1, [])
    async with serving(handle, idempotent=True) as setup:
        setup.broker.responder.hand_out(incoming(redelivered=True))
        (answer,) = await setup.wait_answers(1)
        assert (answer.kind, setup.service.stats.refused, runs) == (AnswerKind.REPLY, 0, [True])


async def test_a_handler_is_cancelled_when_nobody_waits_any_more() -> None:
    cancelled = asyncio.Event()

    async def handle(n: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async with serving(handle) as setup:
        setup.broker.responder.hand_out(incoming(remaining=0.05))
        (answer,) = await setup.wait_answers(1)
        assert cancelled.is_set()
        assert (answer.kind, setup.service.stats.expired, setup.service.stats.failed) == (AnswerKind.EXPIRED, 1, 0)


async def test_a_handler_over_its_own_timeout_has_failed() -> None:
    async def handle(n: int) -> None:
        await asyncio.Event().wait()

    async with serving(handle, timeout=timedelta(seconds=0.05)) as setup:
        setup.broker.responder.hand_out(incoming(remaining=60))
        (answer,) = await setup.wait_answers(1)
        assert (answer.kind, fields_of(answer)["type"]) == (AnswerKind.FAILED, "TimeoutError")


async def test_an_answer_that_cannot_be_sent_is_noted_and_serving_goes_on() -> None:
    async def handle(n: int) -> int:
        return n

    async with serving(handle) as setup:
        setup.broker.responder.script = [BrokerUnavailable("away"), False, True]
        setup.broker.responder.hand_out(incoming(1))
        await setup.wait_answers(1)
        assert "away" in setup.service.stats.last_error
        setup.broker.responder.hand_out(incoming(2))
        await setup.wait_answers(2)
        await eventually(lambda: setup.service.stats.unheard == 1, 5)
        setup.broker.responder.hand_out(incoming(3))
        await setup.wait_answers(3)


async def test_stopping_lets_handlers_answer_and_then_gives_the_rest_up() -> None:
    release = asyncio.Event()

    async def handle(n: int) -> int:
        await (release.wait() if n == 1 else asyncio.Event().wait())
        return n

    async with serving(handle, drain=0.2) as setup:
        setup.broker.responder.hand_out(incoming(1), incoming(2))
        await eventually(lambda: setup.service.stats.in_flight == 2, 5)
        stopping = asyncio.create_task(setup.service.stop())
        await eventually(lambda: setup.broker.responder.calls == ["stop"], 5, interval=0.001)
        release.set()
        await stopping
        # What did not end is left to others: its requester learns that we are gone.
        assert [answer.body for answer in setup.answers] == [b"1"]
        assert setup.broker.responder.calls == ["stop", "aclose"]
        assert setup.service.stats.in_flight == 0


async def test_a_start_whose_connection_was_lost_is_repeated() -> None:
    async def handle(n: int) -> None: ...

    async with serving(handle, BrokerUnavailable("lost")) as setup:
        assert len(setup.broker.asked) == 2


async def test_a_start_that_is_refused_fails() -> None:
    async def handle(n: int) -> None: ...

    setup = Setup(handle, ConfigError("others respond with another backlog"))
    with pytest.raises(ConfigError):
        await setup.service.start(setup.surroundings)
    with pytest.raises(ConfigError):
        await setup.service.wait_served()
    await setup.service.stop()


async def test_an_endpoint_is_the_function_and_knows_its_type() -> None:
    async def handle(n: int) -> int:
        """Count on."""
        return n + 1

    service = RespondingService("ask", compile_handler(handle), ResponderOptions())

    async def cancel(_: RespondingService) -> None:
        await service.stop()

    endpoint = Endpoint(service, handle, cancel)
    assert await endpoint(1) == 2
    assert (endpoint.type, endpoint.__doc__, endpoint.stats().received) == ("ask", "Count on.", 0)
    with pytest.raises(BusClosed):
        await endpoint
    await endpoint.cancel()


@pytest.mark.parametrize(
    "options",
    [
        {"concurrency": 0},
        {"backlog": 0},
        {"concurrency": 70_000},
        {"timeout": timedelta(0)},
        {"timeout": timedelta(hours=1)},
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        ResponderOptions(**options)

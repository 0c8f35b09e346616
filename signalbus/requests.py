"""Requesting: a call that returns the reply, or says as early as it can be known why there is none.

Knows answers and errors, but no broker.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Hashable
from dataclasses import dataclass
from typing import TypeVar, cast

import orjson
from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from . import codec
from .brokers.base import Answer, AnswerKind, Broker
from .codec import EncodedSignal, told
from .errors import (
    BrokerError,
    ConfigError,
    DecodeError,
    NoResponder,
    Overloaded,
    RemoteError,
    ReplyLost,
    RequestError,
    RequestTimeout,
    ResponderDown,
)
from .handlers import problems
from .ledger import Payload, Recorder, ReplySide, silent
from .telemetry import Telemetry

T = TypeVar("T")

FIRST_PAUSE = 0.01  # seconds before a request is sent again whose responder left; doubles
LONGEST_PAUSE = 0.5
NOT_SENT = "not_sent"  # the outcome of a request that the broker did not take
GIVEN_UP = "given_up"  # of one that its requester does not wait for any more


@dataclass(slots=True, kw_only=True)
class RequesterStats:
    """Counters of the requests of a bus since it was created; ``open`` is now."""

    sent: int = 0
    replied: int = 0
    failed: int = 0
    open: int = 0


class Requester:
    """Sends requests through a broker, and turns answers into replies and errors."""

    def __init__(self, broker: Broker, telemetry: Telemetry | None = None, recorder: Recorder | None = None) -> None:
        self._broker = broker
        self._telemetry = telemetry or Telemetry()
        self._recorder = silent() if recorder is None else recorder  # an empty one is false
        self.stats = RequesterStats()

    async def request(self, encoded: EncodedSignal, timeout: float, payload: Payload | None = None) -> Answer:
        """Return the reply's answer. Raises a `RequestError`, `BrokerUnavailable` or `Backpressure`."""
        self.stats.sent += 1
        self.stats.open += 1
        try:
            with self._telemetry.requesting(encoded) as operation:
                answer = await self._recorded(operation.carried_by(encoded), timeout, payload)
                if answer.kind is not AnswerKind.REPLY:
                    raise _error(answer, encoded, timeout)
        except BaseException:
            self.stats.failed += 1
            raise
        finally:
            self.stats.open -= 1
        self.stats.replied += 1
        return answer

    async def _recorded(self, encoded: EncodedSignal, timeout: float, payload: Payload | None) -> Answer:
        """Ask, and tell the ledger of it."""
        if self._recorder.tells(encoded.id):
            self._tell_requested(encoded, timeout, payload)
        clock = asyncio.get_running_loop().time
        began = clock()
        outcome, error, message, responder = GIVEN_UP, "", "", ""
        try:
            answer = await self._until_answered(encoded, timeout)
            outcome, message, responder = answer.kind.value, answer.reason, answer.session
            if answer.kind is AnswerKind.FAILED:
                remote = _remote_error(answer, encoded)
                error, message = remote.type, remote.message
        except BrokerError as problem:
            outcome, error, message = NOT_SENT, type(problem).__name__, str(problem)
            raise
        finally:
            end = (ReplySide.REQUESTER, outcome, clock() - began, error, message, responder)
            self._recorder.replied(encoded.id, encoded.type, *end)
        return answer

    def _tell_requested(self, encoded: EncodedSignal, timeout: float, payload: Payload | None) -> None:
        self._recorder.requested(encoded.id, encoded.type, *told(encoded), payload, timeout)

    async def _until_answered(self, encoded: EncodedSignal, timeout: float) -> Answer:
        clock = asyncio.get_running_loop().time
        deadline = clock() + timeout
        pause = FIRST_PAUSE
        left = timeout
        while True:
            answer = await self._broker.request(encoded, left)
            if answer.kind is not AnswerKind.MOVED or clock() + pause >= deadline:
                return answer
            # Its responder left in good order before it began: another try is not a second run.
            await asyncio.sleep(pause)
            pause = min(pause * 2, LONGEST_PAUSE)
            left = deadline - clock()


def _error(answer: Answer, request: EncodedSignal, timeout: float) -> RequestError:
    who, kind = request.id, request.type
    match answer.kind:
        case AnswerKind.FAILED:
            return _remote_error(answer, request)
        case AnswerKind.OVERLOADED:
            return Overloaded(
                who,
                kind,
                f"too many requests of type {kind!r} wait already; this one did not run. {answer.reason}".strip(),
            )
        case AnswerKind.RESPONDER_DOWN:
            return ResponderDown(
                who,
                kind,
                f"the responder to {kind!r} died while it had request {who}, which may have run; "
                "if the handler can stand a second run, respond with idempotent=True",
            )
        case AnswerKind.LOST:
            return ReplyLost(
                who, kind, f"the connection was lost with request {who} open, which may have run: {answer.reason}"
            )
        case AnswerKind.EXPIRED:
            return RequestTimeout(
                who, kind, f"no reply to {kind!r} within {timeout:g} s; request {who} may have run, or run still"
            )
        case _:
            return NoResponder(
                who, kind, f"nobody responds to {kind!r}; nothing has run. Serve it: @bus.respond({kind!r})"
            )


def _remote_error(answer: Answer, request: EncodedSignal) -> RemoteError:
    try:
        told = cast("object", orjson.loads(answer.body))
    except ValueError:
        told = None
    fields = cast("dict[str, object]", told) if isinstance(told, dict) else {}
    return RemoteError(
        request.id,
        request.type,
        type=str(fields.get("type", "unknown")),
        message=str(fields.get("message", "")),
        traceback=str(fields.get("traceback", "")),
        session=answer.session,
    )


@functools.lru_cache(maxsize=256)
def _adapter(kind: Hashable) -> TypeAdapter[object]:
    try:
        return TypeAdapter(cast("type[object]", kind))
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        raise ConfigError(f"pydantic cannot validate a reply as {kind!r}: {error}") from error


def read_reply(answer: Answer, kind: type[T] | None) -> T | object:
    """Return the data of a reply, validated if a type is given. Raises `DecodeError`."""
    if kind is None:
        return codec.decode_data(answer.body, answer.content_type)
    if kind is bytes:
        return answer.body
    try:
        if answer.body and codec.is_json(answer.content_type):
            return _adapter(cast("Hashable", kind)).validate_json(answer.body)
        return _adapter(cast("Hashable", kind)).validate_python(codec.decode_data(answer.body, answer.content_type))
    except ValidationError as error:
        raise DecodeError(f"the reply is no {getattr(kind, '__name__', kind)}: {problems(error)}") from error

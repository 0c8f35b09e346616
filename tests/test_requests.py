"""Requests without a broker: answers become replies or errors, and what was moved is sent again."""

from __future__ import annotations

import asyncio
from typing import cast

import orjson
import pytest
from pydantic import BaseModel

from signalbus import (
    BrokerUnavailable,
    ConfigError,
    DecodeError,
    NoResponder,
    Overloaded,
    RemoteError,
    ReplyLost,
    RequestError,
    RequestTimeout,
    ResponderDown,
    Signal,
)
from signalbus.brokers.base import Answer, AnswerKind, Broker
from signalbus.codec import JSON, EncodedSignal, encode
from signalbus.requests import Requester, read_reply


class ScriptedBroker:
    """Answers as it is told, then always with the last one."""

    def __init__(self, *answers: Answer | Exception) -> None:
        self._answers = list(answers)
        self.timeouts: list[float] = []
        self.asked: list[EncodedSignal] = []

    async def request(self, request: EncodedSignal, timeout: float) -> Answer:
        self.asked.append(request)
        self.timeouts.append(timeout)
        answer = self._answers.pop(0) if len(self._answers) > 1 else self._answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


def requester(*answers: Answer | Exception) -> tuple[Requester, ScriptedBroker]:
    broker = ScriptedBroker(*answers)
    return Requester(cast("Broker", broker)), broker


REQUEST = encode(Signal(type="ask", source="test", data=1))
REPLY = Answer(AnswerKind.REPLY, b'{"x": 1}', JSON, "s")
MOVED = Answer(AnswerKind.MOVED)


async def test_a_reply_is_returned_and_counted() -> None:
    asking, broker = requester(REPLY)
    assert await asking.request(REQUEST, 5) is REPLY
    assert broker.asked == [REQUEST]
    assert (asking.stats.sent, asking.stats.replied, asking.stats.failed, asking.stats.open) == (1, 1, 0, 0)


@pytest.mark.parametrize(
    ("kind", "error"),
    {
        AnswerKind.NO_RESPONDER: NoResponder,
        AnswerKind.OVERLOADED: Overloaded,
        AnswerKind.RESPONDER_DOWN: ResponderDown,
        AnswerKind.EXPIRED: RequestTimeout,
        AnswerKind.LOST: ReplyLost,
    }.items(),
)
async def test_what_is_no_reply_is_an_error_of_its_own(kind: AnswerKind, error: type[RequestError]) -> None:
    asking, _ = requester(Answer(kind, reason="said the broker"))
    with pytest.raises(error) as caught:
        await asking.request(REQUEST, 5)
    assert type(caught.value) is error
    assert (caught.value.request_id, caught.value.request_type) == (REQUEST.id, "ask")
    assert (asking.stats.failed, asking.stats.open) == (1, 0)


async def test_a_failure_carries_the_remote_error() -> None:
    fields = {"type": "ValueError", "message": "no", "traceback": "Traceback ..."}
    asking, _ = requester(Answer(AnswerKind.FAILED, orjson.dumps(fields), JSON, "responder-1"))
    with pytest.raises(RemoteError, match="ValueError: no") as caught:
        await asking.request(REQUEST, 5)
    error = caught.value
    assert (error.type, error.message, error.traceback, error.session) == (*fields.values(), "responder-1")


async def test_a_failure_that_cannot_be_read_is_one_all_the_same() -> None:
    for body in (b"", b"not json", b"[]", b"1"):
        asking, _ = requester(Answer(AnswerKind.FAILED, body))
        with pytest.raises(RemoteError):
            await asking.request(REQUEST, 5)


async def test_what_was_moved_is_sent_again_with_the_same_id() -> None:
    asking, broker = requester(MOVED, MOVED, REPLY)
    assert await asking.request(REQUEST, 5) is REPLY
    assert {asked.id for asked in broker.asked} == {REQUEST.id}
    assert broker.timeouts == sorted(broker.timeouts, reverse=True)
    assert asking.stats.sent == 1


async def test_what_is_moved_to_the_end_has_not_run() -> None:
    asking, _ = requester(MOVED)
    started = asyncio.get_running_loop().time()
    with pytest.raises(NoResponder):
        await asking.request(REQUEST, 0.1)
    assert asyncio.get_running_loop().time() - started < 1


async def test_what_could_not_be_sent_is_the_brokers_error() -> None:
    asking, _ = requester(BrokerUnavailable("away"))
    with pytest.raises(BrokerUnavailable):
        await asking.request(REQUEST, 5)
    assert (asking.stats.failed, asking.stats.open) == (1, 0)


async def test_a_cancelled_request_is_not_open_any_more() -> None:
    class Hanging:
        async def request(self, request: EncodedSignal, timeout: float) -> Answer:
            await asyncio.Event().wait()
            raise AssertionError

    asking = Requester(cast("Broker", Hanging()))
    task = asyncio.create_task(asking.request(REQUEST, 5))
    await asyncio.sleep(0)
    assert asking.stats.open == 1
    task.cancel()
    await asyncio.wait([task])
    assert (asking.stats.open, asking.stats.failed) == (0, 1)


# Reading replies


class Quote(BaseModel):
    x: int


def test_a_reply_is_read_as_what_was_asked_for() -> None:
    assert read_reply(REPLY, None) == {"x": 1}
    assert read_reply(REPLY, Quote) == Quote(x=1)
    assert read_reply(REPLY, dict[str, int]) == {"x": 1}
    assert read_reply(REPLY, bytes) == b'{"x": 1}'
    assert read_reply(Answer(AnswerKind.REPLY), None) is None
    assert read_reply(Answer(AnswerKind.REPLY, b"text", "text/plain"), str) == "text"


def test_a_reply_that_does_not_fit_is_a_decode_error() -> None:
    with pytest.raises(DecodeError, match="Quote"):
        read_reply(Answer(AnswerKind.REPLY, b'{"x": "no"}', JSON), Quote)
    with pytest.raises(DecodeError):
        read_reply(Answer(AnswerKind.REPLY, b"{", JSON), None)


def test_a_reply_type_that_pydantic_cannot_validate_is_a_config_error() -> None:
    class Foreign: ...

    with pytest.raises(ConfigError, match="Foreign"):
        read_reply(REPLY, Foreign)

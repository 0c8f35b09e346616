"""Handlers: what they may take, checked when they are subscribed, and what they get."""

from __future__ import annotations

import asyncio
import contextvars
import functools
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from pydantic import BaseModel
from typing_extensions import TypedDict  # pydantic takes the standard library's from Python 3.12 on

from signalbus import ConfigError, DecodeError, Delivery, Signal
from signalbus.codec import EncodedSignal, encode, encode_structured
from signalbus.handlers import PROBLEM_LIMIT, Handler, compile_handler

DATA = {"order_id": "a-1", "total": 2}


class OrderModel(BaseModel):
    order_id: str
    total: float


@dataclass
class OrderData:
    order_id: str
    total: int


class OrderDict(TypedDict):
    order_id: str
    total: int


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as pool:
        yield pool


async def run(handler: Handler, delivery: Delivery, threads: ThreadPoolExecutor) -> object:
    return await handler(delivery.encoded, delivery, threads)


def delivery_of(encoded: EncodedSignal) -> Delivery:
    return Delivery(subscription="s", attempt=1, crashes=0, redelivered=False, history=(), encoded=encoded)


def encoded(data: object, content_type: str | None = None) -> EncodedSignal:
    return encode(Signal(type="a", source="s", data=data, datacontenttype=content_type))


def handler_for(annotation: object, got: list[object]) -> Callable[..., object]:
    def handle(value: object) -> None:
        got.append(value)

    handle.__annotations__["value"] = annotation
    return handle


READS: list[tuple[object, object, object]] = [
    (OrderModel, DATA, OrderModel(order_id="a-1", total=2.0)),
    (OrderData, DATA, OrderData("a-1", 2)),
    (OrderDict, DATA, DATA),
    (dict, DATA, DATA),
    (dict[str, Any], DATA, DATA),
    (object, DATA, DATA),
    (Any, DATA, DATA),
    (list[int], [1, 2], [1, 2]),
    (int, 7, 7),
    (int, 2**100, 2**100),
    (float, 1.5, 1.5),
    (bool, False, False),
    (str, "text", "text"),
    (OrderModel | None, DATA, OrderModel(order_id="a-1", total=2.0)),
    (OrderModel | None, None, None),
    (None, None, None),
    (bytes, b"\x00\xff", b"\x00\xff"),
    (bytes, DATA, b'{"order_id":"a-1","total":2}'),
]


@pytest.mark.parametrize("encode_it", [encode, encode_structured])
@pytest.mark.parametrize(("annotation", "data", "expected"), READS, ids=[f"{row[0]}-{row[1]!r}" for row in READS])
async def test_the_annotation_says_what_the_handler_gets(
    annotation: object,
    data: object,
    expected: object,
    encode_it: Callable[[Signal], EncodedSignal],
    threads: ThreadPoolExecutor,
) -> None:
    got: list[object] = []
    handler = compile_handler(handler_for(annotation, got))
    await run(handler, delivery_of(encode_it(Signal(type="a", source="s", data=data))), threads)
    assert got == [expected]
    assert type(got[0]) is type(expected)


async def test_plain_text_is_a_string(threads: ThreadPoolExecutor) -> None:
    got: list[object] = []
    await run(compile_handler(handler_for(str, got)), delivery_of(encoded("héllo", "text/plain")), threads)
    assert got == ["héllo"]


async def test_signal_gives_the_whole_envelope(threads: ThreadPoolExecutor) -> None:
    got: list[Signal] = []

    async def handle(signal: Signal) -> None:
        got.append(signal)

    sent = Signal(type="order.placed", source="shop", subject="42", data=DATA, extensions={"tenant": "acme"})
    await run(compile_handler(handle), delivery_of(encode(sent)), threads)
    assert (got[0].id, got[0].subject, got[0].data, got[0].extensions) == (sent.id, "42", DATA, {"tenant": "acme"})


MISFITS: list[tuple[object, object]] = [
    (OrderModel, {"order_id": "a"}),
    (OrderModel, {"order_id": 1, "total": 1}),
    (OrderModel, None),
    (OrderData, [1]),
    (OrderDict, {"order_id": "a", "total": "many"}),
    (dict, [1]),
    (int, "seven"),
    (str, 7),
    (list[int], {"a": 1}),
    (None, 1),
]


@pytest.mark.parametrize(("annotation", "data"), MISFITS, ids=[f"{row[0]}-{row[1]!r}" for row in MISFITS])
def test_data_that_does_not_fit_is_a_decode_error(annotation: object, data: object) -> None:
    handler = compile_handler(handler_for(annotation, []))
    with pytest.raises(DecodeError):
        handler.read(encoded(data))


def raw(body: bytes, content_type: str | None = "application/json") -> EncodedSignal:
    return EncodedSignal("i", "a", encoded(None).headers, body, content_type)


POISON = {
    "empty": b"",
    "nul": b"\x00",
    "invalid_utf8": b'{"order_id": "\xff", "total": 1}',
    "truncated": b'{"order_id": "a"',
    "deep": b"[" * 100_000,
    "nan": b'{"order_id": "a", "total": NaN}',
    "infinity": b'{"order_id": "a", "total": -Infinity}',
    "million_digits": b'{"order_id": "a", "total": ' + b"1" * 1_000_000 + b"}",
    "lone_surrogate": b'{"order_id": "\\ud800", "total": 1}',
}


@pytest.mark.parametrize("body", POISON.values(), ids=POISON)
@pytest.mark.parametrize("annotation", [OrderModel, OrderData, OrderDict, Signal])
def test_poison_is_a_decode_error(annotation: object, body: bytes) -> None:
    if annotation is Signal and not body:
        return  # an envelope with no data is a signal
    handler = compile_handler(handler_for(annotation, []))
    with pytest.raises(DecodeError) as caught:
        handler.read(raw(body))
    assert len(str(caught.value)) < PROBLEM_LIMIT + 200


def test_nan_in_a_string_is_no_nan() -> None:
    handler = compile_handler(handler_for(dict, []))
    assert handler.read(raw(b'{"a": "NaN Infinity"}')) == {"a": "NaN Infinity"}


def test_a_decode_error_names_the_place_but_not_the_data() -> None:
    handler = compile_handler(handler_for(OrderModel, []))
    with pytest.raises(DecodeError) as caught:
        handler.read(encoded({"order_id": "secret-7", "total": "secret-8"}))
    assert "total" in str(caught.value)
    assert "secret" not in str(caught.value)


# The kinds of callables


class Service:
    def __init__(self) -> None:
        self.got: list[object] = []

    async def method(self, data: dict[str, Any]) -> None:
        self.got.append(data)

    async def with_delivery(self, data: dict[str, Any], delivery: Delivery) -> None:
        self.got.append((data, delivery.id))

    @classmethod
    async def of_the_class(cls, data: dict[str, Any]) -> None:
        CALLED.append(data)

    @staticmethod
    def static(data: dict[str, Any]) -> None:
        CALLED.append(data)

    async def __call__(self, data: dict[str, Any]) -> None:
        self.got.append(("called", data))


class SyncCallable:
    def __init__(self) -> None:
        self.threads: list[str] = []

    def __call__(self, data: dict[str, Any]) -> None:
        self.threads.append(threading.current_thread().name)


CALLED: list[object] = []


async def test_methods_partials_and_callable_objects_are_handlers(threads: ThreadPoolExecutor) -> None:
    service, sync = Service(), SyncCallable()
    got: list[object] = []

    async def with_options(data: dict[str, Any], delivery: Delivery, *, prefix: str) -> None:
        got.append((prefix, data, delivery.type))

    async def last(prefix: str, data: dict[str, Any]) -> None:
        got.append((prefix, data))

    async def keyword(data: dict[str, Any], prefix: str = "default") -> None:
        got.append((prefix, data))

    event = encoded(DATA)
    CALLED.clear()
    handlers: list[Callable[..., object]] = [
        service.method,
        service.with_delivery,
        service,
        Service.of_the_class,
        Service.static,
        sync,
        functools.partial(with_options, prefix="p"),
        functools.partial(functools.partial(last, "q")),
        keyword,
    ]
    for function in handlers:
        await run(compile_handler(function), delivery_of(event), threads)
    assert service.got == [DATA, (DATA, event.id), ("called", DATA)]
    assert CALLED == [DATA, DATA]
    assert got == [("p", DATA, "a"), ("q", DATA), ("default", DATA)]
    assert sync.threads != [threading.current_thread().name]


def test_names_are_those_of_the_functions() -> None:
    assert compile_handler(Service().method).name == "method"
    assert compile_handler(Service()).name == "Service"
    assert compile_handler(functools.partial(Service().with_delivery)).name == "with_delivery"


variable: contextvars.ContextVar[str] = contextvars.ContextVar("variable", default="unset")


async def test_sync_handlers_run_in_a_thread_with_the_context_of_the_caller(threads: ThreadPoolExecutor) -> None:
    seen: list[object] = []

    def handle(data: dict[str, Any]) -> None:
        seen.append((threading.current_thread() is threading.main_thread(), variable.get()))

    variable.set("set")
    await run(compile_handler(handle), delivery_of(encoded(DATA)), threads)
    assert seen == [(False, "set")]


async def test_an_awaitable_from_a_sync_handler_is_awaited(threads: ThreadPoolExecutor) -> None:
    done = asyncio.Event()

    async def work() -> None:
        done.set()

    def handle(data: dict[str, Any]) -> object:
        return work()

    await run(compile_handler(handle), delivery_of(encoded(DATA)), threads)
    assert done.is_set()


async def test_what_a_handler_raises_passes(threads: ThreadPoolExecutor) -> None:
    def handle(data: dict[str, Any]) -> None:
        raise SystemExit(3)

    with pytest.raises(SystemExit):
        await run(compile_handler(handle), delivery_of(encoded(DATA)), threads)


# What cannot be a handler


async def no_parameter() -> None: ...


async def no_annotation(data) -> None:  # type: ignore[no-untyped-def]
    ...


async def three(data: dict[str, Any], delivery: Delivery, other: int) -> None: ...


async def keyword_only(*, data: dict[str, Any]) -> None: ...


async def needs_keyword(data: dict[str, Any], *, other: int) -> None: ...


async def unresolved(data: NoSuchType) -> None:  # type: ignore[name-defined]  # noqa: F821
    ...


class Unvalidatable: ...


async def unvalidatable(data: Unvalidatable) -> None: ...


@pytest.mark.parametrize(
    ("function", "says"),
    [
        (no_parameter, "takes no parameter"),
        (no_annotation, "'data' has no annotation"),
        (lambda data: None, "has no annotation"),
        (three, "other"),
        (keyword_only, "takes no parameter"),
        (needs_keyword, "other"),
        (unresolved, "NoSuchType"),
        (unvalidatable, "Unvalidatable"),
        ("text", "str"),
        (None, "NoneType"),
    ],
)
def test_what_cannot_be_a_handler_is_a_config_error_that_says_why(function: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        compile_handler(function)


def test_the_delivery_shows_the_signal_and_hides_the_body() -> None:
    delivery = delivery_of(encoded({"secret": "x" * 50}))
    assert (delivery.id, delivery.type) == (delivery.signal.id, "a")
    assert "secret" not in repr(delivery)

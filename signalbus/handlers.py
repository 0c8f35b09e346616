"""A user's function as a handler: what it takes, checked once; how a delivery becomes its arguments.

Knows annotations and threads, but neither brokers nor settlements.
"""

from __future__ import annotations

import asyncio
import contextvars
import functools
import inspect
import typing
from collections.abc import Awaitable, Callable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import cast

from pydantic import PydanticSchemaGenerationError, PydanticUserError, TypeAdapter, ValidationError

from . import codec
from .codec import EncodedSignal
from .delivery import Failure
from .errors import ConfigError, DecodeError
from .signals import Signal

HandlerFunction = Callable[..., object]

#: What the running handler was given; None outside of handlers. What it publishes and requests is caused by it.
CAUSE: contextvars.ContextVar[EncodedSignal | None] = contextvars.ContextVar("signalbus_cause", default=None)

PROBLEM_LIMIT = 2_000  # characters of a validation error that are kept


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """One signal handed to one handler, for its optional second parameter.

    ``attempt`` counts runs of the handler from 1. ``redelivered``: it may have been handed out before, to this
    subscriber or another. ``crashes`` counts subscribers that died while holding it. ``history`` has the failures
    of earlier attempts, oldest first.
    """

    subscription: str
    attempt: int
    crashes: int
    redelivered: bool
    history: tuple[Failure, ...]
    encoded: EncodedSignal = field(repr=False)

    @property
    def id(self) -> str:
        """The signal's id; the same in every redelivery."""
        return self.encoded.id

    @property
    def type(self) -> str:
        """The signal's type."""
        return self.encoded.type

    @property
    def signal(self) -> Signal:
        """The whole signal, decoded at each call. Raises `DecodeError`."""
        return codec.decode(self.encoded)


@dataclass(frozen=True, slots=True)
class Handler:
    """A checked handler. ``read`` turns a signal into its first argument and raises `DecodeError`."""

    function: HandlerFunction
    name: str
    read: Callable[[EncodedSignal], object]
    takes_delivery: bool
    is_async: bool

    def __call__(self, encoded: EncodedSignal, delivery: Delivery | None, threads: Executor) -> Awaitable[object]:
        """Begin a run on a signal, and return what to await for its result; a sync function runs in one of ``threads``.

        ``delivery``: for those that take one. Raises what reading the argument does.
        """
        argument = self.read(encoded)
        CAUSE.set(encoded)  # seen by this run alone: each has a task of its own
        arguments = (argument, delivery) if self.takes_delivery else (argument,)
        if self.is_async:
            return cast("Awaitable[object]", self.function(*arguments))
        return self._in_thread(arguments, threads)

    async def _in_thread(self, arguments: tuple[object, ...], threads: Executor) -> object:
        context = contextvars.copy_context()

        def call() -> object:
            return context.run(_call, self.function, arguments)

        result = await asyncio.get_running_loop().run_in_executor(threads, call)
        return await result if inspect.isawaitable(result) else result


def _call(function: HandlerFunction, arguments: tuple[object, ...]) -> object:
    try:
        return function(*arguments)
    except (StopIteration, GeneratorExit) as error:
        # No future can carry these two: the first leaves it pending for ever, the second closes who awaits it.
        raise RuntimeError(f"the handler raised {type(error).__name__}") from error


def compile_handler(function: HandlerFunction) -> Handler:
    """Check a function once, so that a wrong one fails at start. Raises `ConfigError` saying how to mend it."""
    if not callable(function):
        raise ConfigError(f"a handler must be callable, not {type(function).__name__}")
    name = _name(function)
    parameters = _positional(function, name)
    annotation = _annotation(function, parameters[0], name)
    return Handler(
        function=function,
        name=name,
        read=_reader(annotation, name),
        takes_delivery=len(parameters) > 1,
        is_async=inspect.iscoroutinefunction(function)
        or inspect.iscoroutinefunction(getattr(function, "__call__", None)),  # noqa: B004 - its kind, not whether
    )


def _name(function: HandlerFunction) -> str:
    while isinstance(function, functools.partial):
        function = cast("HandlerFunction", function.func)
    return getattr(function, "__name__", type(function).__name__)


def _positional(function: HandlerFunction, name: str) -> list[inspect.Parameter]:
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    signature = inspect.signature(function)
    parameters = [parameter for parameter in signature.parameters.values() if parameter.kind in kinds]
    usage = f"async def {name}(order: Order, delivery: Delivery) -> None"
    if not parameters:
        raise ConfigError(f"handler {name!r} takes no parameter; write {usage}, the second one is optional")
    extra = [
        parameter.name
        for parameter in signature.parameters.values()
        if parameter.default is inspect.Parameter.empty
        and parameter.kind not in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
        and parameter not in parameters[:2]
    ]
    if extra:
        raise ConfigError(f"handler {name!r} needs {', '.join(extra)} as well, which nobody passes; write {usage}")
    # A second parameter with a default is the user's own business, not ours.
    return [p for index, p in enumerate(parameters[:2]) if index == 0 or p.default is inspect.Parameter.empty]


def _annotation(function: HandlerFunction, parameter: inspect.Parameter, name: str) -> object:
    if parameter.annotation is inspect.Parameter.empty:
        raise ConfigError(
            f"handler {name!r}: parameter {parameter.name!r} has no annotation, so its data cannot be validated; "
            f"write {parameter.name}: dict, a pydantic model, bytes, or Signal for the whole envelope"
        )
    target: object = function
    while isinstance(target, functools.partial):
        target = cast("object", target.func)
    if not inspect.isroutine(target):
        target = getattr(target, "__call__")  # noqa: B004, B009 - an object with __call__: its hints are there
    try:
        hints = typing.get_type_hints(target, include_extras=True)
    except NameError as error:
        raise ConfigError(
            f"handler {name!r}: annotation {parameter.annotation!r} cannot be resolved ({error}); "
            "define the type at module level"
        ) from error
    return hints[parameter.name]


def _reader(annotation: object, name: str) -> Callable[[EncodedSignal], object]:
    if annotation is Signal:
        return codec.decode
    if annotation is bytes:
        return lambda encoded: codec.payload(encoded)[0]
    try:
        adapter: TypeAdapter[object] = TypeAdapter(cast("type[object]", annotation))
    except (PydanticSchemaGenerationError, PydanticUserError) as error:
        raise ConfigError(f"handler {name!r}: pydantic cannot validate {annotation!r}: {error}") from error

    def read(encoded: EncodedSignal) -> object:
        body, content_type = codec.payload(encoded)
        try:
            if body and codec.is_json(content_type):
                if b"NaN" in body or b"Infinity" in body:
                    codec.decode_data(body, content_type)  # refuses them outside of strings; pydantic does not
                return adapter.validate_json(body)
            return adapter.validate_python(codec.decode_data(body, content_type))
        except ValidationError as error:
            raise DecodeError(f"the data does not fit handler {name!r}: {problems(error)}") from error

    return read


def problems(error: ValidationError) -> str:
    """Name the places and the reasons, but not the data: it may be secret, or huge."""
    found = [
        f"{'.'.join(str(step) for step in problem['loc']) or 'data'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_input=False, include_context=False)
    ]
    return "; ".join(found)[:PROBLEM_LIMIT]


async def absorb_cancellation(task: asyncio.Task[object]) -> None:
    """Undo a cancellation with which a handler meant itself: what is to be done after it must not be cancelled too."""
    while task.uncancel():
        pass
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        pass  # asked for as the handler's last act, it was still to come

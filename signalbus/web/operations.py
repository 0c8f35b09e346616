"""What may be asked: a table of operations, from which the routes and the OpenAPI document are made.

An operation reads its input (path and query, or path and body) into a model, calls a function, and writes its answer.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, TypeAdapter, ValidationError

from ..inspection import Inspection
from .looks import Looks
from .problems import Problem, Refused

Given = TypeVar("Given", bound="Input")
R = TypeVar("R")
R_in = TypeVar("R_in", contravariant=True)

PREFIX = "/api/v1"
SHOWN = 160  # characters of what was wrong
DETAILS = 20  # values that are told to be wrong

#: A query string: each name with its values, in order.
Query = Mapping[str, Sequence[str]]


class Input(BaseModel):
    """What an operation is given. Members that it does not know are an error, as a misspelt filter finds too much."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Nothing(Input):
    """Of operations without any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What functions of operations work with. ``by``: who asks, for the audit."""

    inspection: Inspection
    looks: Looks
    by: str


@dataclass(frozen=True, slots=True)
class Reply:
    """Plain data with its status. ``location`` is a path below `PREFIX`."""

    value: object
    status: int = 200
    location: str = ""


class Described(Protocol):
    """What the OpenAPI document is told of a result."""

    @property
    def adapter(self) -> TypeAdapter[Any]:
        """An adapter of a tuple of one, see `Shape`."""
        ...


class Writer(Described, Protocol[R_in]):
    """How a result is written: a `Shape`, or `Plain`."""

    def dump(self, value: R_in) -> object:
        """Return it as plain data."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation. ``path`` is below `PREFIX`; ``results`` by status.

    ``answer`` takes what stands in the path, and the query or the body.
    """

    method: str
    path: str
    summary: str
    input: type[Input]
    results: Mapping[int, Described]
    answer: Callable[[Context, Mapping[str, str], Query | bytes], Awaitable[Reply]]

    @property
    def name(self) -> str:
        """What the OpenAPI document calls it."""
        words = [word for word in self.path.replace("{", "").replace("}", "").replace("-", "_").split("/") if word]
        return "_".join([self.method.lower(), *words])

    @property
    def in_path(self) -> Sequence[str]:
        """The members that stand in the path."""
        return [part[1:-1] for part in self.path.split("/") if part.startswith("{")]


def read(
    path: str,
    model: type[Given],
    shape: Writer[R],
    answer: Callable[[Context, Given], Awaitable[R]],
    summary: str,
) -> Operation:
    """Return an operation that changes nothing."""
    repeated = _repeated(model)

    async def call(context: Context, in_path: Mapping[str, str], query: Query | bytes) -> Reply:
        assert not isinstance(query, bytes)
        given = {name: texts if name in repeated else _single(name, texts) for name, texts in query.items()}
        return Reply(shape.dump(await answer(context, _checked(lambda: model.model_validate({**given, **in_path})))))

    return Operation(method="GET", path=path, summary=summary, input=model, results={200: shape}, answer=call)


def change(
    path: str,
    model: type[Given],
    results: Mapping[int, Described],
    answer: Callable[[Context, Given], Awaitable[Reply]],
    summary: str,
) -> Operation:
    """Return an operation that changes something. Its input is JSON, and taken at its word: ``0`` is not false."""

    async def call(context: Context, in_path: Mapping[str, str], body: Query | bytes) -> Reply:
        assert isinstance(body, bytes)
        return await answer(
            context, _checked(lambda: _with_path(model.model_validate_json(body or b"{}", strict=True), in_path))
        )

    return Operation(method="POST", path=path, summary=summary, input=model, results=results, answer=call)


def _with_path(given: Given, in_path: Mapping[str, str]) -> Given:
    return given.model_copy(update=dict(in_path)) if in_path else given


def _repeated(model: type[Input]) -> frozenset[str]:
    """Return the members of the query that may come several times."""
    properties: Mapping[str, Mapping[str, object]] = model.model_json_schema().get("properties", {})
    return frozenset(name for name, schema in properties.items() if schema.get("type") == "array")


def _single(name: str, texts: Sequence[str]) -> str:
    if len(texts) != 1:
        raise Refused(_unreadable([(name, f"it is given {len(texts)} times, and may be only once")]))
    return texts[0]


def _checked(validate: Callable[[], Given]) -> Given:
    try:
        return validate()
    except ValidationError as error:
        details = [(".".join(str(part) for part in each["loc"]), each["msg"]) for each in error.errors()[:DETAILS]]
        raise Refused(_unreadable(details)) from error


def _unreadable(details: Sequence[tuple[str, str]]) -> Problem:
    where, why = details[0]
    return Problem(
        status=422,
        error=f"{where[:SHOWN]}: {why[:SHOWN]}" if where else why[:SHOWN],
        advice="correct the request; see /api/v1/openapi.json",
        type="Unreadable",
        details=[(where[:SHOWN], why[:SHOWN]) for where, why in details],
    )

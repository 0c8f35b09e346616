"""What signals and dead letters may be asked for, as it stands in a query string."""

from __future__ import annotations

import time
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, WithJsonSchema

from ..deadletters import LetterQuery, LetterState
from ..deadletters.model import OPEN_STATES
from ..errors import ConfigError
from ..moments import moment_of
from ..patterns import parse
from ..trace.fields import ATTRIBUTES
from ..trace.listing import MIN_PREFIX, Query
from ..trace.model import State
from .operations import Input

SIGNALS = 500  # on one page, at most
LETTERS = 500
VALUES = 100  # of a filter that may be given several times


def _moment(value: object) -> object:
    if not isinstance(value, str):
        return value
    try:
        return float(value)
    except ValueError:
        return moment_of(value, time.time())


def _pattern(text: str) -> str:
    try:
        parse(text)
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return text


def _where(text: str) -> str:
    path, equals, _ = text.partition("=")
    if not equals or not (path.startswith("data.") or path in ATTRIBUTES):
        raise ValueError("write data.order_id=A-1, subject=..., correlationid=... or source=...")
    return text


def _words(value: object) -> object:
    return value.replace("-", " ") if isinstance(value, str) else value


Text = Annotated[str, StringConstraints(max_length=1_000)]
Prefix = Annotated[str, StringConstraints(min_length=MIN_PREFIX, max_length=1_000, strip_whitespace=True)]
Pattern = Annotated[Text, AfterValidator(_pattern)]
Where = Annotated[Text, AfterValidator(_where)]
Moment = Annotated[
    float,
    BeforeValidator(_moment),
    Field(description="Seconds since 1970, RFC 3339, or how long ago: 15m, 2h, 3d."),
    WithJsonSchema({"anyOf": [{"type": "number"}, {"type": "string"}]}),
]
SignalState = Annotated[State, BeforeValidator(_words)]


class Signals(Input):
    """Filters of signals; all must fit. ``facts``: tell what each is made of as well, for another reader."""

    since: Moment | None = None
    until: Moment | None = None
    type: list[Pattern] = Field(default_factory=list, max_length=VALUES, description="Patterns; one must match.")
    subscription: Text | None = None
    state: list[SignalState] = Field(default_factory=list[SignalState], max_length=VALUES)
    failed: bool = False
    where: list[Where] = Field(default_factory=list, max_length=VALUES, description="Like data.order_id=A-1.")
    before: int | None = Field(default=None, ge=0, lt=2**63, description="Go on from `next` of the last page.")
    limit: int = Field(default=50, ge=1, le=SIGNALS)
    facts: bool = False

    def query(self) -> Query:
        """Return the question to the store."""
        return Query(
            since=self.since,
            until=self.until,
            patterns=tuple(self.type),
            subscription=self.subscription or None,
            states=frozenset(self.state),
            failed=self.failed,
            where=tuple((path, value) for path, _, value in (text.partition("=") for text in self.where)),
            before=self.before,
            limit=self.limit,
        )


class LettersBy(Input):
    """Filters of dead letters; all must fit."""

    id: list[Text] = Field(default_factory=list, max_length=VALUES)
    group: Text = ""
    subscription: Text = ""
    type: list[Pattern] = Field(default_factory=list, max_length=VALUES, description="Patterns; one must match.")
    error: Text = ""
    signal: Text = ""
    state: list[LetterState] = Field(
        default_factory=list[LetterState], max_length=VALUES, description="By default, open ones."
    )
    since: Moment | None = None
    until: Moment | None = None

    def query(self) -> LetterQuery:
        """Return the question to their keeper."""
        return LetterQuery(
            ids=tuple(self.id),
            group=self.group,
            subscription=self.subscription,
            patterns=tuple(self.type),
            error=self.error,
            signal=self.signal,
            states=frozenset(self.state) or OPEN_STATES,
            since=self.since,
            until=self.until,
        )


class LettersOnPage(LettersBy):
    """Filters of dead letters, and which page of what fits."""

    after: Text = Field(default="", description="Go on from `next` of the last page.")
    limit: int = Field(default=50, ge=1, le=LETTERS)

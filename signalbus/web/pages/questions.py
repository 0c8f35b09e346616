"""What a query string or a form asks for. Pure; raises `ConfigError` with the field, what is wrong, and what would do.

A question is kept as it was written, so that a form can show it again and a link can repeat it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from enum import StrEnum
from typing import Protocol, TypeVar

from ...deadletters import LetterQuery, LetterState
from ...deadletters.model import DEFAULT_RATE, OPEN_STATES
from ...errors import ConfigError
from ...moments import moment_of
from ...trace.listing import Query
from ...trace.model import State
from .links import Fields

PAGE_SIZE = 50
MAX_VALUES = 50  # of one field that may be repeated
MAX_IDS = 200
MAX_RATE = 1_000.0  # replays a second
MAX_NOTE = 500  # characters

_EXACT = ("group", "id", "after")  # written by us, not by hand
_WHERE = ("subject", "correlationid", "source")

S = TypeVar("S", bound=StrEnum)


class Given(Protocol):
    """Fields of a query string or a form."""

    def getlist(self, key: str, /) -> Sequence[str]:
        """Return all values of a field."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class TraceQuestion:
    """Which signals to list. ``type``: patterns with spaces between."""

    since: str = ""
    until: str = ""
    type: str = ""
    subscription: str = ""
    state: tuple[str, ...] = ()
    failed: bool = False
    where: tuple[str, ...] = ()
    before: str = ""

    @classmethod
    def read(cls, given: Given) -> TraceQuestion:
        """Take what belongs to the question."""
        return cls(
            **{name: _one(given, name) for name in ("since", "until", "type", "subscription", "before")},
            state=_many(given, "state"),
            failed=bool(_one(given, "failed")),
            where=_many(given, "where"),
        )

    def query(self) -> Query:
        """Return the question to the store."""
        now = time.time()
        return Query(
            since=_moment("since", self.since, now),
            until=_moment("until", self.until, now),
            patterns=tuple(self.type.replace(",", " ").split())[:MAX_VALUES],
            subscription=self.subscription or None,
            states=frozenset(_state(State, text) for text in self.state),
            failed=self.failed,
            where=tuple(_field(text) for text in self.where),
            before=_place(self.before),
            limit=PAGE_SIZE,
        )

    def fields(self, **changed: str) -> Fields:
        """Return the question as fields of an address."""
        return {**_fields(self), "failed": "1" if self.failed else "", **changed}

    @property
    def narrows(self) -> bool:
        """Whether anything is asked for but the newest."""
        return self != TraceQuestion(before=self.before)


@dataclass(frozen=True, slots=True, kw_only=True)
class LetterQuestion:
    """Which dead letters. ``type``: patterns with spaces between. ``state``: none means those that are open."""

    group: str = ""
    subscription: str = ""
    type: str = ""
    error: str = ""
    signal: str = ""
    state: tuple[str, ...] = ()
    since: str = ""
    until: str = ""
    id: tuple[str, ...] = ()
    after: str = ""

    @classmethod
    def read(cls, given: Given) -> LetterQuestion:
        """Take what belongs to the question."""
        single = ("group", "subscription", "type", "error", "signal", "since", "until", "after")
        return cls(
            **{name: _one(given, name) for name in single},
            state=_many(given, "state"),
            id=_many(given, "id", MAX_IDS),
        )

    def query(self, states: frozenset[LetterState] | None = None, limit: int = PAGE_SIZE) -> LetterQuery:
        """Return the question to the keeper of dead letters; ``states`` instead of those that are asked for."""
        now = time.time()
        asked = frozenset(_state(LetterState, text) for text in self.state)
        return LetterQuery(
            ids=self.id,
            group=self.group,
            subscription=self.subscription,
            patterns=tuple(self.type.replace(",", " ").split())[:MAX_VALUES],
            error=self.error,
            signal=self.signal,
            states=states or asked or OPEN_STATES,
            since=_moment("since", self.since, now),
            until=_moment("until", self.until, now),
            after=self.after,
            limit=limit,
        )

    def frozen(self) -> LetterQuestion:
        """Return the question as it is meant now: times in full, and nothing that dies after this moment."""
        now = time.time()
        since, until = _moment("since", self.since, now), _moment("until", self.until, now)
        until = now if until is None and not self.id else until
        return replace(self, since=_written(since), until=_written(until))

    def pairs(self) -> list[tuple[str, str]]:
        """Return the question as hidden fields of a form that asks for an action: which states follows from that."""
        fields = replace(self, after="", state=()).fields()
        return [
            (name, value)
            for name, values in fields.items()
            for value in ((values,) if isinstance(values, str) else values)
            if value
        ]

    def fields(self, **changed: str) -> Fields:
        """Return the question as fields of an address or a form."""
        return {**_fields(self), **changed}

    @property
    def narrows(self) -> bool:
        """Whether anything is asked for but all that are open."""
        return self != LetterQuestion(after=self.after)


def read_rate(text: str) -> float:
    """Return replays a second."""
    if not text:
        return DEFAULT_RATE
    try:
        rate = float(text)
    except ValueError as error:
        raise ConfigError(f"rate is {text[:40]!a}, no number; write replays a second, like 50") from error
    if not 0 < rate <= MAX_RATE:
        raise ConfigError(f"rate is {text[:40]}; it must be above 0 and at most {MAX_RATE:g} replays a second")
    return rate


def read_note(text: str) -> str:
    """Return a note for the audit."""
    if len(text) > MAX_NOTE:
        raise ConfigError(f"the note has {len(text)} characters; at most {MAX_NOTE} are kept")
    return text.strip()


def _one(given: Given, name: str) -> str:
    return next(iter(_many(given, name)), "")


def _many(given: Given, name: str, most: int = MAX_VALUES) -> tuple[str, ...]:
    texts = given.getlist(name) if name in _EXACT else (text.strip(" \t") for text in given.getlist(name))
    values = tuple(dict.fromkeys(text for text in texts if text))
    if len(values) > most:
        raise ConfigError(f"{name} is given {len(values)} times; at most {most} are taken")
    return values


def _fields(question: TraceQuestion | LetterQuestion) -> dict[str, str | Iterable[str]]:
    return {field.name: getattr(question, field.name) for field in fields(question)}


def _moment(name: str, text: str, now: float) -> float | None:
    if not text:
        return None
    try:
        return moment_of(text, now)
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error


def _written(at: float | None) -> str:
    return "" if at is None else datetime.fromtimestamp(at, UTC).isoformat()


def _place(text: str) -> int | None:
    if not text:
        return None
    place = _read("before", text, lambda: int(text[:40]), "the number of a link on this page")
    return min(max(place, 0), 2**63 - 1)


T = TypeVar("T")


def _read(name: str, text: str, how: Callable[[], T], valid: str) -> T:
    try:
        return how()
    except (ValueError, OverflowError) as error:
        raise ConfigError(f"{name} is {text[:60]!a}; write {valid}") from error


def _state(kind: type[S], text: str) -> S:
    return _read("state", text, lambda: kind(text), "one of " + ", ".join(each.value for each in kind))


def _field(text: str) -> tuple[str, str]:
    path, equals, value = text.partition("=")
    if not equals or not (path.startswith("data.") or path in _WHERE):
        raise ConfigError(
            f"payload is {text[:80]!a}; write data.order_id=A-1, subject=..., correlationid=... or source=..."
        )
    return path, value

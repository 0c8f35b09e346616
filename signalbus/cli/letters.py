"""What the ``dead`` commands share: who keeps the dead letters, which are meant, and how they are shown."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ..brokers.sqlite.broker import SqliteBroker
from ..config import Settings, SqliteUrl, parse_url
from ..deadletters import DeadLetters, LetterQuery, LetterState, LetterSummary
from ..deadletters.model import OPEN_STATES
from ..escapes import escape
from ..moments import rfc3339
from ..trace.rendering import clock
from ..web.remote_letters import RemoteLetters
from .connect import command_bus, command_name, require_store
from .daemon import find_daemon
from .failures import CommandError, Exit
from .moments import read_moment
from .options import Options, flag
from .prefixes import check_prefix, the_one
from .questions import ask

if TYPE_CHECKING:
    from rich.table import Table

GLYPHS = {
    LetterState.DEAD: "✗",
    LetterState.WAITING: "…",
    LetterState.REPLAYING: "↻",
    LetterState.ACKED: "✓",
    LetterState.DISCARDED: "⌫",
}
LISTING = "signalbus dead list --each"
DETAIL_CHARACTERS = 90  # in a table


@asynccontextmanager
async def keeper(options: Options, router: str | None) -> AsyncGenerator[DeadLetters]:
    """Yield the dead letters of a router, or of the embedded broker's file."""
    daemon = await find_daemon(options, router)
    if daemon is not None:
        yield RemoteLetters(daemon)
        return
    if not isinstance(parse_url(Settings.read(url=options.url).url), SqliteUrl):
        raise CommandError(
            "dead letters of a bus on RabbitMQ are kept by a router, and none answers; until one runs they wait "
            "safely in their queue",
            code=Exit.UNREACHABLE,
            advice="signalbus router --store ledger.db --listen 127.0.0.1:8642, or say where it is: --router URL",
        )
    require_store(options)
    async with command_bus(options) as bus:
        assert isinstance(bus.broker, SqliteBroker)
        letters = await bus.broker.letters(options.connect_seconds)
        try:
            yield letters
        finally:
            await letters.aclose()


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Which:
    """Which dead letters. Ids may be given by how they begin; also those of signals."""

    group: Annotated[str | None, Parameter(help="Of this group, as `signalbus dead list` shows it.")] = None
    subscription: Annotated[str | None, Parameter(help="Of this subscription.")] = None
    type: Annotated[tuple[str, ...], Parameter(negative=(), help="Whose type fits this pattern. May be repeated.")] = ()
    error: Annotated[str | None, Parameter(help="That died of this exception.")] = None
    since: Annotated[str | None, Parameter(help="That died from then on: 15m, 2h, 3d ago, or RFC 3339.")] = None
    until: Annotated[str | None, Parameter(help="That died up to then.")] = None
    all: Annotated[bool, flag("--all", "All of them.")] = False

    def query(self, ids: Sequence[str] = (), states: frozenset[LetterState] = OPEN_STATES) -> LetterQuery:
        """Return the question. Raises `CommandError` for what cannot be read."""
        now = time.time()
        return LetterQuery(
            ids=tuple(ids),
            group=self.group or "",
            subscription=self.subscription or "",
            patterns=self.type,
            error=self.error or "",
            since=None if self.since is None else read_moment(self.since, "--since", now),
            until=None if self.until is None else read_moment(self.until, "--until", now),
            states=states,
        )

    @property
    def narrows(self) -> bool:
        """Whether any of them was given."""
        return self.query() != LetterQuery()


EVERY_ONE = Which()


async def chosen(
    letters: DeadLetters, ids: Sequence[str], which: Which, states: frozenset[LetterState]
) -> tuple[LetterQuery, int]:
    """Return what a changing command is about, and how many fit now. Raises `CommandError` if that is not said."""
    if not ids and not which.narrows and not which.all:
        raise CommandError(
            "say which: ids, --group, another filter, or --all", code=Exit.USAGE, advice="signalbus dead list"
        )
    whole = [await one_letter(letters, prefix) for prefix in ids]
    query = which.query([letter.id for letter in whole], states)
    page = await letters.page(replace(query, limit=1))
    return query, page.total


async def one_letter(letters: DeadLetters, prefix: str) -> LetterSummary:
    """Return the dead letter that a prefix of its id, or of its signal's, stands for. Raises `CommandError`."""
    found = await letters.find(check_prefix(prefix, LISTING))
    return the_one(
        found, prefix, "dead letter", LISTING, lambda each: f"{each.id} ({each.type} at {each.subscription})"
    )


def confirm(question: str, count: int, ids: Sequence[str], options: Options) -> None:
    """Ask whoever sits there, if more is meant than one that was named.

    Raises `CommandError` where nobody sits, and after a no.
    """
    if count > 1 or (count == 1 and not ids):
        ask(question, options, otherwise="pass --yes, or --dry-run")


def asked_by() -> str:
    """Return who asks, for the audit."""
    return command_name()


def summary_fields(letter: LetterSummary) -> dict[str, object]:
    """Return a dead letter as JSON data."""
    return {**asdict(letter), "died": rfc3339(letter.died), "changed": rfc3339(letter.changed)}


def state_words(state: LetterState) -> str:
    """Return a state as a glyph and a word."""
    return f"{GLYPHS[state]} {state.value}"


def letters_table(letters: Sequence[LetterSummary]) -> Table:
    """Return dead letters as a table, one a row."""
    from rich import box
    from rich.table import Table

    table = Table("state", "died", "id", "type", "subscription", "attempt", "why", box=box.SIMPLE_HEAD)
    for letter in letters:
        table.add_row(
            state_words(letter.state),
            clock(letter.died.timestamp(), date=True),
            escape(letter.id),
            escape(letter.type),
            escape(letter.subscription),
            str(letter.attempt),
            escape(shortened(letter.note or letter.detail or letter.reason.value)),
        )
    return table


def shortened(text: str) -> str:
    """Return a text that fits into a table; `dead show` has the whole one."""
    line = " ".join(text.split())
    return line if len(line) <= DETAIL_CHARACTERS else f"{line[: DETAIL_CHARACTERS - 1]}…"


def letters_word(count: int) -> str:
    """Return how many dead letters, in words."""
    return f"{count} dead {'letter' if count == 1 else 'letters'}"

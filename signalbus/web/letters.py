"""Operations on dead letters: looking, and deciding what becomes of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from pydantic import Field, TypeAdapter

from ..deadletters import (
    AuditEntry,
    DeadLetters,
    Letter,
    LetterGroup,
    LetterPage,
    LetterQuery,
    LetterState,
    LetterSummary,
    Replay,
)
from ..deadletters.model import DEFAULT_RATE
from .filters import LettersBy, LettersOnPage, Prefix, Text
from .operations import Context, Input, Operation, Reply, change, read
from .problems import not_found
from .values import AUDIT, GROUPS, LETTER, LETTER_PAGE, LETTERS, REPLAY, REPLAYS, WIRE, Shape

PATH = "/dead-letters"
MAX_RATE = 10_000.0  # a second
DEAD = frozenset({LetterState.DEAD})


class ByPrefix(Input):
    """Whose id, or whose signal's id, begins like this: six characters or more."""

    prefix: Prefix


class OneId(Input):
    """A whole id."""

    id: Text


class Newest(Input):
    """How many, at most."""

    limit: int = Field(default=100, ge=1, le=1_000)


class ReplayOrder(Input):
    """Which to replay: those of them that are dead. ``rate``: a second. ``dry_run``: only count them."""

    query: LetterQuery
    rate: float = Field(default=DEFAULT_RATE, gt=0, le=MAX_RATE)
    dry_run: bool = False


class DiscardOrder(Input):
    """Which to discard: those of them that are dead."""

    query: LetterQuery
    note: Text = ""
    dry_run: bool = False


class RestoreOrder(Input):
    """Which to restore. ``query.states`` says which of the two: discarded, or replaying (by whole ids)."""

    query: LetterQuery
    dry_run: bool = False


class CancelOrder(Input):
    """Nothing but the replay in the path."""

    id: Text = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """To how many it was done; in a dry run, to how many it would be."""

    count: int
    dry_run: bool = False


COUNT = Shape(TypeAdapter(tuple[Count], config=WIRE))


# Looking


async def _page(context: Context, asked: LettersOnPage) -> LetterPage:
    return await context.inspection.letters.page(replace(asked.query(), after=asked.after, limit=asked.limit))


async def _groups(context: Context, asked: LettersBy) -> Sequence[LetterGroup]:
    return await context.inspection.letters.groups(asked.query())


async def _find(context: Context, asked: ByPrefix) -> Sequence[LetterSummary]:
    return await context.inspection.letters.find(asked.prefix)


async def _get(context: Context, asked: OneId) -> Letter:
    letter = await context.inspection.letters.get(asked.id)
    if letter is None:
        raise not_found(f"there is no dead letter {asked.id[:80]!a}", "list them: /api/v1/dead-letters")
    return letter


async def _replays(context: Context, asked: Newest) -> Sequence[Replay]:
    return await context.inspection.letters.replays(asked.limit)


async def _progress(context: Context, asked: OneId) -> Replay:
    replay = await context.inspection.letters.progress(asked.id)
    if replay is None:
        raise _no_replay(asked.id)
    return replay


async def _audit(context: Context, asked: Newest) -> Sequence[AuditEntry]:
    return await context.inspection.letters.audit(asked.limit)


# Deciding


async def _replay(context: Context, order: ReplayOrder) -> Reply:
    letters = context.inspection.letters
    if order.dry_run:
        return await _would(letters, replace(order.query, states=DEAD))
    replay = await letters.replay(order.query, by=context.by, rate=order.rate)
    return Reply(REPLAY.dump(replay), 202, location=f"/replays/{replay.id}")


async def _discard(context: Context, order: DiscardOrder) -> Reply:
    letters = context.inspection.letters
    if order.dry_run:
        return await _would(letters, replace(order.query, states=DEAD))
    return _done(await letters.discard(order.query, by=context.by, note=order.note))


async def _restore(context: Context, order: RestoreOrder) -> Reply:
    letters = context.inspection.letters
    if order.dry_run:
        return await _would(letters, order.query)
    return _done(await letters.restore(order.query, by=context.by))


async def _cancel(context: Context, order: CancelOrder) -> Reply:
    letters = context.inspection.letters
    if await letters.progress(order.id) is None:
        raise _no_replay(order.id)
    return _done(await letters.cancel(order.id, by=context.by))


async def _would(letters: DeadLetters, query: LetterQuery) -> Reply:
    page = await letters.page(replace(query, after="", limit=1))
    return Reply(COUNT.dump(Count(count=page.total, dry_run=True)))


def _done(count: int) -> Reply:
    return Reply(COUNT.dump(Count(count=count)))


def _no_replay(replay: str) -> Exception:
    return not_found(f"there is no replay {replay[:80]!a}", "list them: /api/v1/replays")


OPERATIONS: tuple[Operation, ...] = (
    read(PATH, LettersOnPage, LETTER_PAGE, _page, "List dead letters, newest first."),
    read(f"{PATH}/groups", LettersBy, GROUPS, _groups, "Group dead letters by what they died of, and where."),
    read(f"{PATH}/find", ByPrefix, LETTERS, _find, "Find up to 20 dead letters by how ids begin."),
    read(f"{PATH}/{{id}}", OneId, LETTER, _get, "Show a dead letter: its signal, every attempt, what was done to it."),
    change(f"{PATH}/replay", ReplayOrder, {202: REPLAY, 200: COUNT}, _replay, "Begin to replay dead letters."),
    change(f"{PATH}/discard", DiscardOrder, {200: COUNT}, _discard, "Discard dead letters; they can be restored."),
    change(f"{PATH}/restore", RestoreOrder, {200: COUNT}, _restore, "Make dead letters dead again."),
    read("/replays", Newest, REPLAYS, _replays, "List replays, newest first."),
    read("/replays/{id}", OneId, REPLAY, _progress, "Say how far a replay is."),
    change("/replays/{id}/cancel", CancelOrder, {200: COUNT}, _cancel, "Do not send what a replay has not sent yet."),
    read("/audit", Newest, AUDIT, _audit, "List what was done to dead letters, newest first."),
)

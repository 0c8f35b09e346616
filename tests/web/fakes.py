"""A keeper of dead letters in memory, with the rules of the real ones but for sending: `send` and `settle` do that."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime

from signalbus.codec import EncodedSignal
from signalbus.deadletters import (
    AuditEntry,
    Letter,
    LetterGroup,
    LetterPage,
    LetterQuery,
    LetterState,
    LetterSummary,
    Replay,
)
from signalbus.deadletters.model import DEFAULT_RATE, MIN_PREFIX
from signalbus.delivery import DeadReason, Failure
from signalbus.errors import ConfigError
from signalbus.patterns import parse
from signalbus.signals import new_id, utc_now

FOUND = 20
TRACEBACK = 'Traceback (most recent call last):\n  File "billing.py", line 12, in charge\nTimeoutError: gateway\n'


class FakeLetters:
    """Implements `DeadLetters`."""

    def __init__(self, letters: Iterable[Letter] = ()) -> None:
        self.letters = {letter.summary.id: letter for letter in letters}
        self.closed = False
        self._audit: list[AuditEntry] = []
        self._replays: dict[str, Replay] = {}
        self._members: dict[str, set[str]] = {}  # ids of the dead letters of each replay

    # Asking

    async def groups(self, query: LetterQuery) -> Sequence[LetterGroup]:
        """See `DeadLetters`."""
        found: dict[str, list[LetterSummary]] = {}
        for summary in self._fitting(query):
            found.setdefault(summary.group, []).append(summary)
        groups = [_group(name, summaries) for name, summaries in found.items()]
        return sorted(groups, key=lambda group: group.newest, reverse=True)

    async def page(self, query: LetterQuery) -> LetterPage:
        """See `DeadLetters`."""
        fitting = self._fitting(query)
        start = 0
        if query.after:
            ids = [summary.id for summary in fitting]
            if query.after not in ids:
                raise ConfigError(f"{query.after[:80]!a} is no place to go on from; begin with the first page")
            start = ids.index(query.after) + 1
        shown = fitting[start : start + query.limit]
        more = len(fitting) > start + len(shown)
        return LetterPage(letters=tuple(shown), total=len(fitting), next=shown[-1].id if more and shown else "")

    async def find(self, prefix: str) -> Sequence[LetterSummary]:
        """See `DeadLetters`."""
        if len(prefix) < MIN_PREFIX:
            raise ConfigError(f"{prefix!a} is too short for an id; give at least {MIN_PREFIX} characters of it")
        summaries = self._newest_first()
        return [each for each in summaries if each.id.startswith(prefix) or each.signal.startswith(prefix)][:FOUND]

    async def get(self, letter: str) -> Letter | None:
        """See `DeadLetters`."""
        found = self.letters.get(letter)
        if found is None:
            return None
        return replace(found, audit=tuple(entry for entry in self._audit if entry.letter == letter))

    # Deciding

    async def replay(self, query: LetterQuery, *, by: str, rate: float = DEFAULT_RATE) -> Replay:
        """See `DeadLetters`. What is claimed waits for `send`."""
        if not rate > 0:
            raise ConfigError(f"the rate is {rate}; it must be above 0")
        wanted = self._fitting(replace(query, states=frozenset(LetterState)))
        dead = [each for each in wanted if each.state is LetterState.DEAD]
        under_way = (LetterState.WAITING, LetterState.REPLAYING)
        made = Replay(
            id=new_id(),
            by=by,
            started=utc_now(),
            rate=rate,
            total=len(dead),
            waiting=len(dead),
            pending=0,
            acked=0,
            died_again=0,
            returned=0,
            cancelled=0,
            taken=sum(each.state in under_way for each in wanted),
        )
        self._replays[made.id] = made
        self._members[made.id] = {each.id for each in dead}
        for each in dead:
            self._change(each.id, LetterState.WAITING, by)
            self._note(by, "replay", letter=each.id, replay=made.id)
        return made

    async def progress(self, replay: str) -> Replay | None:
        """See `DeadLetters`."""
        return self._replays.get(replay)

    async def replays(self, limit: int = 20) -> Sequence[Replay]:
        """See `DeadLetters`."""
        return list(reversed(self._replays.values()))[:limit]

    async def cancel(self, replay: str, *, by: str) -> int:
        """See `DeadLetters`."""
        waiting = [each for each in self._members.get(replay, ()) if self._state(each) is LetterState.WAITING]
        for letter in waiting:
            self._change(letter, LetterState.DEAD, by)
            self._note(by, "cancel", letter=letter, replay=replay)
        self._count(replay, waiting=-len(waiting), cancelled=len(waiting))
        return len(waiting)

    async def discard(self, query: LetterQuery, *, by: str, note: str = "") -> int:
        """See `DeadLetters`."""
        return self._decide(replace(query, states=frozenset({LetterState.DEAD})), LetterState.DISCARDED, by, note)

    async def restore(self, query: LetterQuery, *, by: str) -> int:
        """See `DeadLetters`."""
        if query.states == {LetterState.DISCARDED}:
            return self._decide(query, LetterState.DEAD, by, "")
        if query.states == {LetterState.REPLAYING} and query.ids:
            return self._decide(query, LetterState.DEAD, by, "")
        raise ConfigError("say which to restore: states discarded, or replaying with whole ids")

    async def audit(self, limit: int = 100) -> Sequence[AuditEntry]:
        """See `DeadLetters`."""
        return list(reversed(self._audit))[:limit]

    async def aclose(self) -> None:
        """See `DeadLetters`."""
        self.closed = True

    # What a broker does

    def send(self, replay: str, count: int = 1) -> None:
        """Send so many of those that wait."""
        waiting = [each for each in self._members[replay] if self._state(each) is LetterState.WAITING][:count]
        for letter in waiting:
            self._change(letter, LetterState.REPLAYING, self._replays[replay].by)
        self._count(replay, waiting=-len(waiting), pending=len(waiting))

    def settle(self, replay: str, *, died_again: bool = False) -> None:
        """Let all that were sent be acked, or die again."""
        sent = [each for each in self._members[replay] if self._state(each) is LetterState.REPLAYING]
        for letter in sent:
            self._change(letter, LetterState.DEAD if died_again else LetterState.ACKED, "")
        self._count(replay, pending=-len(sent), **{"died_again" if died_again else "acked": len(sent)})

    # Beneath

    def _newest_first(self) -> list[LetterSummary]:
        summaries = (letter.summary for letter in self.letters.values())
        return sorted(summaries, key=lambda each: (each.died, each.id), reverse=True)

    def _fitting(self, query: LetterQuery) -> list[LetterSummary]:
        return [summary for summary in self._newest_first() if _fits(summary, query)]

    def _state(self, letter: str) -> LetterState:
        return self.letters[letter].summary.state

    def _decide(self, query: LetterQuery, state: LetterState, by: str, note: str) -> int:
        fitting = self._fitting(query)
        for each in fitting:
            self._change(each.id, state, by, note)
            self._note(by, "discard" if state is LetterState.DISCARDED else "restore", letter=each.id, note=note)
        return len(fitting)

    def _change(self, letter: str, state: LetterState, by: str, note: str = "") -> None:
        found = self.letters[letter]
        summary = replace(found.summary, state=state, by=by, note=note, changed=utc_now())
        self.letters[letter] = replace(found, summary=summary)

    def _count(self, replay: str, **changes: int) -> None:
        found = self._replays.get(replay)
        if found is not None:
            counts: dict[str, int] = {name: getattr(found, name) + change for name, change in changes.items()}
            self._replays[replay] = replace(found, **counts)  # type: ignore[arg-type]  # counts, by name

    def _note(self, by: str, action: str, *, letter: str, replay: str = "", note: str = "") -> None:
        self._audit.append(AuditEntry(at=utc_now(), by=by, action=action, letter=letter, replay=replay, note=note))


def _fits(summary: LetterSummary, query: LetterQuery) -> bool:
    died = summary.died.timestamp()
    return (
        (not query.ids or summary.id in query.ids)
        and (not query.group or summary.group == query.group)
        and (not query.subscription or summary.subscription == query.subscription)
        and (not query.patterns or any(parse(pattern).matches(summary.type) for pattern in query.patterns))
        and (not query.error or query.error in (summary.error, summary.error.rpartition(".")[2]))
        and (not query.signal or summary.signal == query.signal)
        and (not query.states or summary.state in query.states)
        and (query.since is None or died >= query.since)
        and (query.until is None or died <= query.until)
    )


def _group(name: str, summaries: Sequence[LetterSummary]) -> LetterGroup:
    newest = summaries[0]
    return LetterGroup(
        id=name,
        subscription=newest.subscription,
        reason=newest.reason,
        error=newest.error,
        place=newest.place,
        counts=dict(Counter(summary.state for summary in summaries)),
        types=tuple(sorted({summary.type for summary in summaries})),
        oldest=summaries[-1].died,
        newest=newest.died,
        sample=newest.detail,
    )


def letter(
    number: int,
    *,
    subscription: str = "billing",
    type: str = "order.placed",  # noqa: A002
    error: str = "TimeoutError",
    detail: str = "5 attempts, the last: TimeoutError: gateway",
    place: str = "billing.py:12 in charge",
    died: datetime | None = None,
    state: LetterState = LetterState.DEAD,
    body: bytes = b'{"order_id": "A-1"}',
) -> Letter:
    """Return a dead letter."""
    at = utc_now() if died is None else died
    summary = LetterSummary(
        id=f"letter-{number:06}",
        state=state,
        subscription=subscription,
        signal=f"signal-{number:06}",
        type=type,
        reason=DeadReason.ATTEMPTS,
        detail=detail,
        error=error,
        place=place,
        group=f"{subscription}-{error}",
        attempt=5,
        crashes=0,
        deaths=1,
        died=at,
        changed=at,
    )
    failure = Failure(attempt=5, error=error, message="gateway", at=at, session="s-1", traceback=TRACEBACK)
    headers = {"cloudEvents_id": summary.signal, "cloudEvents_type": type, "cloudEvents_source": "shop"}
    content = EncodedSignal(summary.signal, type, headers, body, "application/json")
    return Letter(summary=summary, content=content, history=(failure,), audit=())

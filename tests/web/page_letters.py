"""Dead letters kept in memory, with the rules of `signalbus.deadletters.model`; what sends is the test itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta

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
from signalbus.deadletters.model import DEFAULT_RATE
from signalbus.delivery import DeadReason, Failure
from signalbus.patterns import parse


def letter(
    number: int = 1,
    *,
    subscription: str = "billing",
    type: str = "order.placed",  # noqa: A002
    error: str = "TimeoutError",
    place: str = "billing.py:12 in charge",
    detail: str = "gateway",
    body: bytes = b'{"order_id":"A-1","total":12345678901234567890123}',
    content_type: str | None = "application/json",
    state: LetterState = LetterState.DEAD,
    text: str = "",
) -> Letter:
    """Return a dead letter; ``text`` goes into every place that takes text from outside."""
    signal = f"01929f00-0000-7000-8000-{number:012d}{text}"
    died = datetime.now(UTC) - timedelta(seconds=number)
    last = f"{error}: {detail}{text}"
    failure = Failure(
        attempt=5,
        error=error + text,
        message=detail + text,
        at=died,
        session="s-1" + text,
        traceback=f'Traceback (most recent call last):\n  File "billing.py", line 12, in charge\n{last}',
    )
    summary = LetterSummary(
        id=f"d-{number:06d}{text}",
        state=state,
        subscription=subscription + text,
        signal=signal,
        type=type + text,
        reason=DeadReason.ATTEMPTS,
        detail=f"5 attempts, the last: {last}",
        error=error + text,
        place=place + text,
        group=f"g-{subscription}-{error}{text}",
        attempt=5,
        crashes=1,
        deaths=2,
        died=died,
        changed=died,
        by=text,
        note=text,
    )
    content = EncodedSignal(
        signal, type + text, {"cloudEvents_id": signal, "cloudEvents_source": "shop" + text}, body, content_type
    )
    audit = (AuditEntry(at=died, by="ops" + text, action="dead again" + text, letter=summary.id, note=text),)
    return Letter(
        summary=summary,
        content=content,
        history=(replace(failure, attempt=4, traceback=""), failure),
        audit=audit if text else (),
    )


@dataclass
class _Replaying:
    """A replay, and which dead letters belong to it."""

    info: Replay
    letters: list[str]


@dataclass
class MemoryLetters:
    """Keeps dead letters. `send` and `settle` are what a sender and a subscription would do."""

    kept: dict[str, Letter] = field(default_factory=dict[str, Letter])
    done: list[AuditEntry] = field(default_factory=list[AuditEntry])
    running: dict[str, _Replaying] = field(default_factory=dict[str, _Replaying])

    def add(self, *letters: Letter) -> None:
        """Keep them."""
        self.kept |= {each.summary.id: each for each in letters}

    def state(self, letter: str) -> LetterState:
        """Return where one stands."""
        return self.kept[letter].summary.state

    def send(self, replay: str, count: int) -> None:
        """Send what waits, so many."""
        waiting = [each for each in self.running[replay].letters if self.state(each) is LetterState.WAITING]
        for each in waiting[:count]:
            self._move(each, LetterState.REPLAYING)

    def settle(self, letter: str, state: LetterState = LetterState.ACKED) -> None:
        """Let its subscription settle it: acked, or dead again."""
        assert self.state(letter) is LetterState.REPLAYING
        self._move(letter, state)

    # What a keeper of dead letters does

    async def groups(self, query: LetterQuery) -> Sequence[LetterGroup]:
        by_group: dict[str, list[LetterSummary]] = {}
        for summary in self._fitting(query):
            by_group.setdefault(summary.group, []).append(summary)
        groups = [_group(members) for members in by_group.values()]
        return sorted(groups, key=lambda group: group.newest, reverse=True)

    async def page(self, query: LetterQuery) -> LetterPage:
        found = self._fitting(query)
        start = int(query.after or 0)
        shown = found[start : start + query.limit]
        after = start + len(shown)
        return LetterPage(letters=tuple(shown), total=len(found), next=str(after) if after < len(found) else "")

    async def find(self, prefix: str) -> Sequence[LetterSummary]:
        found = [each.summary for each in self.kept.values()]
        return [each for each in found if each.id.startswith(prefix) or each.signal.startswith(prefix)][:20]

    async def get(self, letter: str) -> Letter | None:
        return self.kept.get(letter)

    async def replay(self, query: LetterQuery, *, by: str, rate: float = DEFAULT_RATE) -> Replay:
        claimed = self._fitting(replace(query, states=frozenset({LetterState.DEAD})))
        taken = self._fitting(replace(query, states=frozenset({LetterState.WAITING, LetterState.REPLAYING})))
        identity = f"r-{len(self.running) + 1}"
        for summary in claimed:
            self._move(summary.id, LetterState.WAITING, by=by)
        info = Replay(
            id=identity,
            by=by,
            started=datetime.now(UTC),
            rate=rate,
            total=len(claimed),
            waiting=len(claimed),
            pending=0,
            acked=0,
            died_again=0,
            returned=0,
            cancelled=0,
            taken=len(taken),
        )
        self.running[identity] = _Replaying(info, [summary.id for summary in claimed])
        self._note(by, "replay", replay=identity, count=len(claimed))
        return info

    async def progress(self, replay: str) -> Replay | None:
        if replay not in self.running:
            return None
        found = self.running[replay]
        counts = Counter(self.state(each) for each in found.letters)
        return replace(
            found.info,
            waiting=counts[LetterState.WAITING],
            pending=counts[LetterState.REPLAYING],
            acked=counts[LetterState.ACKED],
            died_again=counts[LetterState.DEAD] - found.info.cancelled,
        )

    async def replays(self, limit: int = 20) -> Sequence[Replay]:
        newest = list(reversed(self.running))[:limit]
        return [found for each in newest if (found := await self.progress(each)) is not None]

    async def cancel(self, replay: str, *, by: str) -> int:
        found = self.running[replay]
        waiting = [each for each in found.letters if self.state(each) is LetterState.WAITING]
        for each in waiting:
            self._move(each, LetterState.DEAD, by=by)
        found.info = replace(found.info, cancelled=found.info.cancelled + len(waiting))
        self._note(by, "cancel", replay=replay, count=len(waiting))
        return len(waiting)

    async def discard(self, query: LetterQuery, *, by: str, note: str = "") -> int:
        found = self._fitting(replace(query, states=frozenset({LetterState.DEAD})))
        for summary in found:
            self._move(summary.id, LetterState.DISCARDED, by=by, note=note)
        self._note(by, "discard", count=len(found), note=note)
        return len(found)

    async def restore(self, query: LetterQuery, *, by: str) -> int:
        assert query.ids
        found = self._fitting(query)
        for summary in found:
            self._move(summary.id, LetterState.DEAD, by=by)
        self._note(by, "restore", count=len(found))
        return len(found)

    async def audit(self, limit: int = 100) -> Sequence[AuditEntry]:
        return list(reversed(self.done))[:limit]

    async def aclose(self) -> None:
        """Nothing is open."""

    # Inside

    def _fitting(self, query: LetterQuery) -> list[LetterSummary]:
        found = [each.summary for each in self.kept.values() if _fits(each.summary, query)]
        return sorted(found, key=lambda summary: summary.died, reverse=True)

    def _move(self, letter: str, state: LetterState, *, by: str = "", note: str = "") -> None:
        kept = self.kept[letter]
        summary = replace(kept.summary, state=state, by=by, note=note, changed=datetime.now(UTC))
        self.kept[letter] = replace(kept, summary=summary)

    def _note(self, by: str, action: str, *, replay: str = "", count: int = 1, note: str = "") -> None:
        self.done.append(AuditEntry(at=datetime.now(UTC), by=by, action=action, replay=replay, count=count, note=note))


def _fits(summary: LetterSummary, query: LetterQuery) -> bool:
    died = summary.died.timestamp()
    return all(
        (
            not query.ids or summary.id in query.ids,
            not query.group or summary.group == query.group,
            not query.subscription or summary.subscription == query.subscription,
            not query.patterns or any(parse(pattern).matches(summary.type) for pattern in query.patterns),
            not query.error or query.error in (summary.error, summary.error.rpartition(".")[2]),
            not query.signal or summary.signal == query.signal,
            summary.state in query.states,
            query.since is None or died >= query.since,
            query.until is None or died <= query.until,
        )
    )


def _group(members: Sequence[LetterSummary]) -> LetterGroup:
    newest = members[0]
    return LetterGroup(
        id=newest.group,
        subscription=newest.subscription,
        reason=newest.reason,
        error=newest.error,
        place=newest.place,
        counts=dict(Counter(member.state for member in members)),
        types=tuple(sorted({member.type for member in members})),
        oldest=members[-1].died,
        newest=newest.died,
        sample=newest.detail,
    )

"""From the facts of one delivery to its attempts and its state. Pure; takes any facts, in any order.

Attempt numbers and crash counts order before clocks do, and facts of one recorder are ordered by their sequence.
Nothing is concluded but what must have been:

- what settles an attempt had it before; a later attempt ended the earlier ones; a replay follows a dead letter
- an attempt without an end is lost if its session ended, or if a later run of it counts one more crash
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from ..ledger import Acked, Dead, Delivered, Fact, Released, Replayed, Retried
from .model import Attempt, Delivery, End, Gap, State

_ENDS = {Acked: End.ACKED, Retried: End.RETRIED, Dead: End.DEAD, Released: End.RELEASED}
_FINAL = ((End.ACKED, State.ACKED), (End.DEAD, State.DEAD), (End.RETRIED, State.RETRYING))

Downs = Mapping[str, Fact]  # by session


@dataclass(slots=True, eq=False)
class _Run:
    """An attempt while it is put together; ``order``: steady time, see `steady`."""

    number: int
    crashes: int
    order: float
    began: Fact | None = None
    ended: Fact | None = None
    end: End = End.RUNNING


@dataclass(slots=True)
class _Round:
    """What happened until the dead letter was replayed, or until now."""

    runs: dict[int, list[_Run]] = field(default_factory=dict[int, list[_Run]])

    @property
    def last(self) -> int:
        return max(self.runs, default=0)


def steady(facts: Iterable[Fact]) -> dict[str, float]:
    """Return the times of facts by id, such that they never decrease within a recorder, whatever its clock did."""
    times: dict[str, float] = {}
    latest: dict[str, float] = {}
    for fact in sorted(facts, key=lambda each: each.sequence):
        recorder = fact.origin.recorder
        times[fact.id] = latest[recorder] = max(fact.at, latest.get(recorder, fact.at))
    return times


def delivery(subscription: str, facts: Sequence[Fact], downs: Downs, *, published: Fact | None) -> Delivery:
    """Return what became of a signal at a subscription. ``facts``: its delivery steps, each once."""
    times = steady(facts)
    ordered = sorted(facts, key=lambda fact: (times[fact.id], fact.origin.recorder, fact.sequence))
    replays = [fact for fact in ordered if isinstance(fact.step, Replayed)]
    rounds = [_Round() for _ in range(len(replays) + 1)]
    for number, steps in enumerate(_by_round(ordered, replays, times)):
        _collect(rounds[number], steps, times)
    for number, each in enumerate(rounds):
        _conclude(each, downs, replayed=number < len(replays))
    attempts = tuple(_attempt(run, number, published) for number, each in enumerate(rounds) for run in _in_order(each))
    state = _state(rounds[-1])
    found = Delivery(
        subscription=subscription,
        state=state,
        attempts=attempts,
        gaps=_gaps(rounds),
        replays=tuple(replays),
        crashes=_unseen_crashes(rounds),
    )
    return _dated(found, published)


def _by_round(ordered: list[Fact], replays: list[Fact], times: dict[str, float]) -> list[list[Fact]]:
    """Split facts by the replays before them; of one recorder, a later fact is never in an earlier round."""
    rounds: list[list[Fact]] = [[] for _ in range(len(replays) + 1)]
    reached: dict[str, int] = {}
    for fact in sorted(ordered, key=lambda each: each.sequence):
        if isinstance(fact.step, Replayed):
            number = replays.index(fact) + 1
        else:
            number = sum(_precedes(times[replay.id], fact, times[fact.id]) for replay in replays)
        number = reached[fact.origin.recorder] = max(number, reached.get(fact.origin.recorder, 0))
        if not isinstance(fact.step, Replayed):
            rounds[number].append(fact)
    return rounds


def _precedes(replay: float, fact: Fact, at: float) -> bool:
    """Tell whether a replay came before a fact; at the same instant, deliveries follow it."""
    return replay <= at if isinstance(fact.step, Delivered) else replay < at


def _collect(into: _Round, facts: list[Fact], times: dict[str, float]) -> None:
    """Turn facts, by sequence, into runs."""
    for fact in facts:
        step = fact.step
        if isinstance(step, Delivered):
            run = _Run(step.attempt, step.crashes, times[fact.id], began=fact)
            into.runs.setdefault(step.attempt, []).append(run)
    for fact in facts:
        step = fact.step
        if isinstance(step, Acked | Retried | Dead | Released):
            runs = into.runs.setdefault(step.attempt, [])
            begun = _begun(runs, fact, step.crashes)
            if begun is None:
                begun = _Run(step.attempt, step.crashes, times[fact.id])
                runs.append(begun)
            begun.ended, begun.end = fact, _ENDS[type(step)]


def _begun(runs: list[_Run], settled: Fact, crashes: int) -> _Run | None:
    """Return the newest run that a settlement can be the end of: told by the same recorder before, and still open."""
    candidates = [
        run
        for run in runs
        if run.began is not None
        and run.ended is None
        and run.began.origin.recorder == settled.origin.recorder
        and run.began.sequence < settled.sequence
    ]
    exact = [run for run in candidates if run.crashes == crashes]
    return max(exact or candidates, key=lambda run: cast("Fact", run.began).sequence, default=None)


def _conclude(each: _Round, downs: Downs, *, replayed: bool) -> None:
    """Find out how runs ended that nobody told the end of."""
    for number, runs in each.runs.items():
        runs.sort(key=lambda run: (run.crashes, run.order))
        for index, run in enumerate(runs):
            if run.end is End.RUNNING:
                run.end, run.ended = _end_of(run, runs[index + 1 :], downs)
        moved_on = replayed or number < each.last
        if moved_on and runs and all(run.end in (End.RUNNING, End.UNKNOWN) for run in runs[-1:]):
            runs[-1].end = End.RETRIED if number < each.last else End.DEAD


def _end_of(run: _Run, later: list[_Run], downs: Downs) -> tuple[End, Fact | None]:
    assert run.began is not None
    if down := downs.get(run.began.origin.session):
        return End.LOST, down
    if any(other.crashes > run.crashes for other in later):
        return End.LOST, None
    return (End.UNKNOWN if later else End.RUNNING), None


def _in_order(each: _Round) -> Iterable[_Run]:
    return (run for number in sorted(each.runs) for run in each.runs[number])


def _state(each: _Round) -> State:
    """The highest attempt tells; within it, what is final."""
    runs = each.runs.get(each.last, [])
    ends = {run.end for run in runs}
    for end, state in _FINAL:
        if end in ends:
            return state
    return State.IN_HAND if End.RUNNING in ends else State.WAITING


def _gaps(rounds: list[_Round]) -> tuple[Gap, ...]:
    """Attempts that nobody told of, though later ones are known; a replay may go on counting, or begin anew."""
    found: list[Gap] = []
    known = 0
    for number in sorted(rounds[0].runs):
        if number > known + 1:
            found.append(Gap(first=known + 1, last=number - 1))
        known = max(known, number)
    return tuple(found)


def _unseen_crashes(rounds: list[_Round]) -> int:
    """Losses that were counted in the first round, less those that are seen as attempts."""
    runs = list(_in_order(rounds[0]))
    counted = max((run.crashes for run in runs), default=0)
    return max(counted - sum(run.end is End.LOST for run in runs), 0)


def _attempt(run: _Run, replay: int, published: Fact | None) -> Attempt:
    teller = run.began or run.ended
    ended = run.ended.step if run.ended else None
    return Attempt(
        number=run.number,
        end=run.end,
        origin=teller.origin if teller else None,
        began=run.began,
        ended=run.ended,
        crashes=run.crashes,
        replay=replay,
        queued=_queued(run, published if replay == 0 else None),
        work=_work(run),
        error=_error(ended),
        delay=ended.delay if isinstance(ended, Retried) else None,
    )


def _queued(run: _Run, published: Fact | None) -> float | None:
    if run.began is None:
        return None
    step = run.began.step
    if isinstance(step, Delivered) and step.queued is not None:
        return max(step.queued, 0.0)
    first = run.number == 1 and run.crashes == 0
    if first and published is not None and published.origin.host == run.began.origin.host:
        return max(run.began.at - published.at, 0.0)
    return None  # of another machine's clock, the difference says nothing


def _work(run: _Run) -> float | None:
    step = run.ended.step if run.ended else None
    if isinstance(step, Acked | Retried | Dead) and step.seconds is not None:
        return max(step.seconds, 0.0)
    if run.began and run.ended and run.began.origin.recorder == run.ended.origin.recorder:
        return max(run.ended.at - run.began.at, 0.0)
    return None


def _error(step: object) -> str:
    match step:
        case Retried(error=error, message=message):
            return ": ".join(part for part in (error, message) if part)
        case Dead(reason=reason, detail=detail):
            return ": ".join(part for part in (reason, detail) if part)
        case Released(reason=reason):
            return reason
        case _:
            return ""


def _dated(found: Delivery, published: Fact | None) -> Delivery:
    """Add since when it is so, and when it goes on."""
    last = found.last
    if last is None or last.replay < len(found.replays):
        start = found.replays[-1] if found.replays else published
        return replace(found, since=start.at if start else None)
    fact = last.began if found.state is State.IN_HAND else last.ended
    since = fact.at if fact else None
    due = since + last.delay if since is not None and last.delay is not None else None
    return replace(found, since=since, due=due)

"""The account: what every subscription should have got, by the file, against what it recorded. Knows no broker."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .flights import AIRLINES, ARRIVED, CANCELLED, DEPARTED, PATTERNS, Event, expected, read_events
from .place import Manifest
from .results import Counts, Totals, read_counts, read_done, read_totals


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """One subscription. ``lost`` ids were published, and neither handled nor dead-lettered; ``strange`` ids were
    handled, but never published to it."""

    name: str
    expected: int
    handled: int
    dead: int
    lost: frozenset[str]
    strange: frozenset[str]
    counts: Counts


@dataclass(frozen=True, slots=True, kw_only=True)
class AirlineDelay:
    """Mean delays of an airline in minutes, None if nothing is known."""

    carrier: str
    name: str
    flights: int
    departure: float | None
    arrival: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Balance:
    """The whole demo. ``wrong`` names statistics that differ from those worked out from the file directly."""

    published: int
    accounts: tuple[Account, ...]
    airlines: tuple[AirlineDelay, ...]
    wrong: tuple[str, ...]

    @property
    def lost(self) -> int:
        """Signals that a subscription should have got, and did not."""
        return sum(len(account.lost) for account in self.accounts)

    @property
    def dead(self) -> int:
        """Dead letters."""
        return sum(account.dead for account in self.accounts)

    @property
    def good(self) -> bool:
        """Whether nothing is lost, dead, strange or wrong."""
        strange = any(account.strange for account in self.accounts)
        return not (self.lost or self.dead or strange or self.wrong)


def reconcile(directory: Path) -> Balance:
    """Compare the result files in ``directory`` with the flights. Raises `FileNotFoundError` if it holds no demo."""
    manifest = Manifest.read(directory)
    events = read_events(manifest.rows)
    wanted = expected(manifest.run, events)
    files = {name: directory / f"{name}.results.db" for name in PATTERNS}
    accounts = tuple(
        _account(name, wanted[name], files[name], frozenset(manifest.dead.get(name, ()))) for name in PATTERNS
    )
    delays = read_totals(files["delays"])
    return Balance(
        published=manifest.published,
        accounts=accounts,
        airlines=tuple(_airlines(delays)),
        wrong=tuple(_wrong(events, {name: read_totals(path) for name, path in files.items()})),
    )


def direct_totals(events: Sequence[Event]) -> dict[str, Totals]:
    """Work out from the file, with no bus, what the subscriptions have to arrive at."""
    totals: dict[str, Totals] = {name: {} for name in PATTERNS}
    for event in events:
        movement, kind = event.movement, event.kind
        delay = None if kind == CANCELLED else movement.delay
        airport = movement.dest if kind == ARRIVED else movement.origin
        _add(totals["board"], (airport, kind), delay)
        if kind == CANCELLED:
            _add(totals["cancellations"], (f"{movement.carrier} {movement.origin}", kind), delay)
        else:
            _add(totals["delays"], (movement.carrier, kind), delay)
    return totals


def _account(name: str, wanted: set[str], path: Path, dead: frozenset[str]) -> Account:
    done = read_done(path)
    return Account(
        name=name,
        expected=len(wanted),
        handled=len(done),
        dead=len(dead - done),
        lost=frozenset(wanted - done - dead),
        strange=frozenset(done - wanted),
        counts=read_counts(path),
    )


def _airlines(totals: Totals) -> Iterable[AirlineDelay]:
    """The slowest airline first."""
    rows = [
        AirlineDelay(
            carrier=carrier,
            name=AIRLINES.get(carrier, carrier),
            flights=totals.get((carrier, DEPARTED), (0, 0, 0))[0],
            departure=_mean(totals.get((carrier, DEPARTED))),
            arrival=_mean(totals.get((carrier, ARRIVED))),
        )
        for carrier in sorted({carrier for carrier, _ in totals})
    ]
    return sorted(rows, key=lambda row: row.departure if row.departure is not None else float("-inf"), reverse=True)


def _wrong(events: Sequence[Event], found: dict[str, Totals]) -> Iterable[str]:
    for name, totals in direct_totals(events).items():
        for subject, kind in sorted(totals.keys() | found[name].keys()):
            key = (subject, kind)
            if totals.get(key) != found[name].get(key):
                yield f"{name}: {subject} {kind} is {found[name].get(key)}, the file says {totals.get(key)}"


def _add(totals: Totals, key: tuple[str, str], delay: int | None) -> None:
    flights, known, minutes = totals.get(key, (0, 0, 0))
    totals[key] = (flights + 1, known + (delay is not None), minutes + (delay or 0))


def _mean(total: tuple[int, int, int] | None) -> float | None:
    return total[2] / total[1] if total and total[1] else None

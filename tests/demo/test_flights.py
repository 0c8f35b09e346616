from __future__ import annotations

from collections import Counter

from signalbus.demo.flights import AIRLINES, PATTERNS, expected, read_events, signals
from signalbus.patterns import parse


def test_the_whole_month_is_there() -> None:
    kinds = Counter(event.kind for event in read_events())
    # Worked out from the file with awk: departures and arrivals that are not NA, and the rest.
    assert kinds == {"departed": 26_483, "arrived": 26_468, "cancelled": 521}


def test_every_airline_has_a_name() -> None:
    assert {event.movement.carrier for event in read_events()} <= AIRLINES.keys()


def test_ids_are_the_same_for_a_run_and_new_for_another() -> None:
    events = read_events(50)
    first = [signal.id for signal in signals("a", events)]
    assert first == [signal.id for signal in signals("a", events)]
    assert len(set(first)) == len(events)
    assert not set(first) & {signal.id for signal in signals("b", events)}


def test_what_is_expected_is_what_the_patterns_match() -> None:
    events = read_events(5_000)
    matched: dict[str, set[str]] = {name: set() for name in PATTERNS}
    for signal in signals("a", events):
        for name, patterns in PATTERNS.items():
            if any(parse(pattern).matches(signal.type) for pattern in patterns):
                matched[name].add(signal.id)
    assert expected("a", events) == matched

"""Where a signal of a type would go, and why not elsewhere. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from .brokers.base import QueueInfo
from .patterns import parse


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Whether a subscription gets a type, and why. ``patterns``: those that match."""

    queue: QueueInfo
    patterns: tuple[str, ...]
    reason: str


def explain(signal_type: str, queue: QueueInfo) -> Match:
    """Return whether a subscription gets signals of a type, and why."""
    fitting = tuple(pattern for pattern in queue.patterns if parse(pattern).matches(signal_type))
    if fitting:
        reason = f"{' and '.join(fitting)} {'match' if len(fitting) > 1 else 'matches'}"
    else:
        reason = "; ".join(mismatch(pattern, signal_type) for pattern in queue.patterns) or "it has no patterns"
    return Match(queue=queue, patterns=fitting, reason=reason)


def mismatch(pattern: str, signal_type: str) -> str:
    """Say why a pattern does not match a type."""
    wanted, given = pattern.split("."), signal_type.split(".")
    if "#" not in wanted:
        if len(wanted) != len(given):
            return f"{pattern} is for {len(wanted)} words, and there are {len(given)}"
        return _different(pattern, wanted, given) or f"{pattern} does not match"
    at_least = len([word for word in wanted if word != "#"])
    if at_least > len(given):
        return f"{pattern} is for {at_least} words or more, and there are {len(given)}"
    before = wanted[: wanted.index("#")]
    after = wanted[len(wanted) - wanted[::-1].index("#") :]
    ending = given[len(given) - len(after) :]
    return (
        _different(pattern, before, given)
        or _different(pattern, after, ending, skipped=len(given) - len(after))
        or f"{pattern} does not match"
    )


def _different(pattern: str, wanted: Sequence[str], given: Sequence[str], skipped: int = 0) -> str:
    for number, (want, word) in enumerate(zip(wanted, given, strict=False), skipped + 1):
        if want not in ("*", word):
            return f"{pattern} wants {want!r} as word {number}, not {word!r}"
    return ""


def match_fields(match: Match) -> dict[str, object]:
    """Return the members of the JSON object."""
    queue = match.queue
    return {
        "name": queue.name,
        "matches": bool(match.patterns),
        "patterns": list(queue.patterns),
        "matching_patterns": list(match.patterns),
        "reason": match.reason,
        "durable": queue.durable,
        "consumers": queue.consumers,
        "ready": queue.ready,
    }

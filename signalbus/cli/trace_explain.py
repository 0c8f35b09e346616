"""``signalbus trace explain``: where a signal of a type would go, and why not elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from cyclopts import Parameter

from ..brokers.base import QueueInfo
from ..escapes import escape
from ..patterns import check_type, parse
from .connect import command_bus, require_store
from .failures import Exit
from .interrupts import run_interruptible
from .options import NO_OPTIONS, Options
from .output import Output, log_to_stderr

EXAMPLES = """Examples:
  signalbus trace explain order.placed
  signalbus trace explain order.placed --json | jq '.subscriptions[] | select(.matches) | .name'"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Match:
    """Whether a subscription gets a type, and why. ``patterns``: those that match."""

    queue: QueueInfo
    patterns: tuple[str, ...]
    reason: str


def trace_explain(
    type: Annotated[str, Parameter(help="A type, like order.placed.")],  # noqa: A002
    *,
    options: Options = NO_OPTIONS,
) -> int:
    """Say which subscriptions a signal of a type would go to, and why it would not go to the others.

    Publishes nothing. The exit code is 6 if there are none: publishing it would be unroutable.
    """
    log_to_stderr(options)
    check_type(type)
    require_store(options)

    async def look() -> int:
        async with command_bus(options, ledger="off") as bus:
            queues = await bus.broker.queues(options.connect_seconds)
        matches = [explain(type, queue) for queue in queues]
        _show(type, matches, Output(options), as_json=options.json)
        return Exit.OK if any(match.patterns for match in matches) else Exit.BAD_OUTCOME

    return run_interruptible(look)


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


def _show(signal_type: str, matches: Sequence[Match], output: Output, *, as_json: bool) -> None:
    if as_json:
        found = [_fields(match) for match in matches]
        output.json(type=signal_type, routable=any(match.patterns for match in matches), subscriptions=found)
        return
    for match in sorted(matches, key=lambda match: not match.patterns):
        queue = match.queue
        serving = "" if queue.consumers or not match.patterns else "; it waits there, as nobody serves it"
        mark = "✓ goes to" if match.patterns else "✗ not to"
        output.line(escape(f"{mark} {queue.name}: {match.reason}{serving}"))
    if not any(match.patterns for match in matches):
        output.line(escape(f"∅ {signal_type} is unroutable: no subscription matches"))


def _fields(match: Match) -> dict[str, object]:
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

"""``signalbus trace explain``: where a signal of a type would go, and why not elsewhere."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from cyclopts import Parameter

from ..escapes import escape
from ..explanation import Match, explain, match_fields
from ..patterns import check_type
from .connect import command_bus, require_store
from .failures import Exit
from .interrupts import run_interruptible
from .options import NO_OPTIONS, Options
from .output import Output, log_to_stderr

EXAMPLES = """Examples:
  signalbus trace explain order.placed
  signalbus trace explain order.placed --json | jq '.subscriptions[] | select(.matches) | .name'"""


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


def _show(signal_type: str, matches: Sequence[Match], output: Output, *, as_json: bool) -> None:
    if as_json:
        found = [match_fields(match) for match in matches]
        output.json(type=signal_type, routable=any(match.patterns for match in matches), subscriptions=found)
        return
    for match in sorted(matches, key=lambda match: not match.patterns):
        queue = match.queue
        serving = "" if queue.consumers or not match.patterns else "; it waits there, as nobody serves it"
        mark = "✓ goes to" if match.patterns else "✗ not to"
        output.line(escape(f"{mark} {queue.name}: {match.reason}{serving}"))
    if not any(match.patterns for match in matches):
        output.line(escape(f"∅ {signal_type} is unroutable: no subscription matches"))

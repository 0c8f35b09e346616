"""``signalbus dead audit``: who did what to dead letters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ..deadletters import AuditEntry
from ..escapes import escape
from ..moments import rfc3339
from ..trace.rendering import clock
from .daemon import RouterOption
from .failures import CommandError, Exit
from .interrupts import run_interruptible
from .letters import keeper
from .options import NO_OPTIONS, Options
from .output import Output, log_to_stderr

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLES = """Examples:
  signalbus dead audit
  signalbus dead audit --limit 1000 --json | jq '.entries[] | select(.action == "discard")'"""


def dead_audit(
    *,
    limit: Annotated[int, Parameter(help="How many, at most.")] = 50,
    router: RouterOption = None,
    options: Options = NO_OPTIONS,
) -> int:
    """List what was done to dead letters, the newest first: replays, cancellations, discards, and how they ended."""
    if limit < 1:
        raise CommandError(f"--limit is {limit}; it must be at least 1", code=Exit.USAGE)
    log_to_stderr(options)

    async def show() -> int:
        output = Output(options)
        async with keeper(options, router) as letters:
            entries = await letters.audit(limit)
        if options.json:
            output.json(entries=[audit_fields(entry) for entry in entries])
        elif not entries:
            output.note("signalbus: nothing was done to dead letters")
        else:
            output.table(_table(entries))
        return Exit.OK

    return run_interruptible(show)


def audit_fields(entry: AuditEntry) -> dict[str, object]:
    """Return an entry as JSON data."""
    return {**asdict(entry), "at": rfc3339(entry.at)}


def _table(entries: Sequence[AuditEntry]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table("at", "by", "action", "count", "dead letter", "replay", "note", box=box.SIMPLE_HEAD)
    for entry in entries:
        row = (entry.by, entry.action, str(entry.count), entry.letter, entry.replay, entry.note)
        table.add_row(clock(entry.at.timestamp(), date=True), *(escape(text) for text in row))
    return table

"""``signalbus trace list``: signals, newest first, with where they stand."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ..escapes import escape
from ..trace.listing import Listed, Page
from ..trace.rendering import clock
from ..trace.rendering_json import listed_fields
from .daemon import RouterOption
from .failures import CommandError, Exit
from .interrupts import run_interruptible
from .options import NO_OPTIONS, Options
from .output import Output, log_to_stderr
from .traces import NO_FILTERS, Filters, StoreOption, inspection, note_behind

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLES = """Examples:
  signalbus trace list
  signalbus trace list 'order.*' --failed --since 2h
  signalbus trace list --subscription billing --state dead --json | jq '.signals[].id'
  signalbus trace list --where data.order_id=A-1"""


def trace_list(
    *patterns: Annotated[str, Parameter(help="Patterns of types, like order.*; all by default.")],
    limit: Annotated[int, Parameter(help="How many, at most.")] = 20,
    filters: Filters = NO_FILTERS,
    store: StoreOption = None,
    router: RouterOption = None,
    options: Options = NO_OPTIONS,
) -> int:
    """List signals, newest first: what they are, who published them, and what became of them.

    ✗ marks those of which something failed, now or ever. `signalbus trace show ID` shows one in full.
    """
    if limit < 1:
        raise CommandError(f"--limit is {limit}; it must be at least 1", code=Exit.USAGE)
    log_to_stderr(options)
    query = filters.query(patterns, limit)

    async def show() -> int:
        output = Output(options)
        async with inspection(options, store, router) as found:
            page = await found.traces.page(query)
            note_behind(found.traces, output)
        _show(page, output, as_json=options.json)
        return Exit.OK

    return run_interruptible(show)


def _show(page: Page, output: Output, *, as_json: bool) -> None:
    if as_json:
        output.json(signals=[listed_fields(listed) for listed in page.signals], complete=page.complete)
        return
    if not page.signals:
        output.note("signalbus: no signal fits")
    else:
        output.table(_table(page.signals))
    if not page.complete:
        output.note("signalbus: this is not all that was recorded; narrow it down with --since, types or --where")
    elif page.next is not None:
        output.note("signalbus: there are more; see --limit and --until")


def _table(signals: Sequence[Listed]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table("", "published", "type", "id", "from", "what became of it", box=box.SIMPLE_HEAD)
    for listed in signals:
        signal = listed.signal
        table.add_row(
            "✗" if listed.failed else "",
            clock(listed.at, date=True),
            escape(signal.type),
            escape(signal.id),
            escape(signal.source),
            signal.summary,
        )
    return table

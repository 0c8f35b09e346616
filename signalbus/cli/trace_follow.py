"""``signalbus trace follow``: signals as they come, and again whenever they got further."""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter

from ..escapes import escape
from ..trace.listing import Listed, Query
from ..trace.reader import TraceReader
from ..trace.rendering import clock
from ..trace.rendering_json import listed_fields
from .daemon import RouterOption
from .failures import CommandError, Exit
from .interrupts import run_interruptible
from .options import NO_OPTIONS, Options
from .output import Output, log_to_stderr
from .traces import NO_FILTERS, Filters, StoreOption, inspection

EXAMPLES = """Examples:
  signalbus trace follow
  signalbus trace follow 'order.*' --failed
  signalbus trace follow --json | jq .summary"""

LOOKED_AT = 200  # signals of one look
PAGES = 10  # of one look
REMEMBERED = 10_000  # signals whose state was shown
BACK_SECONDS = 300.0  # signals younger than that are looked at again


def trace_follow(
    *patterns: Annotated[str, Parameter(help="Patterns of types, like order.*; all by default.")],
    interval: Annotated[float, Parameter(help="Seconds between looks.")] = 1.0,
    filters: Filters = NO_FILTERS,
    store: StoreOption = None,
    router: RouterOption = None,
    options: Options = NO_OPTIONS,
) -> int:
    """Show signals as they are published, a line each, and again whenever they got further; until Ctrl-C.

    Begins with now, or with --since. Signals that are older than five minutes are not looked at any more. With
    --timeout it ends after so many seconds, with exit code 7.
    """
    if interval <= 0:
        raise CommandError(f"--interval is {interval}; it must be above 0", code=Exit.USAGE)
    log_to_stderr(options)
    start = time.time()
    query = filters.query(patterns, LOOKED_AT)
    begin = query.since if query.since is not None else start

    async def follow() -> int:
        following = _Following(query, begin, Output(options), as_json=options.json)
        async with inspection(options, store, router) as found:
            following.output.note("signalbus: following")
            try:
                async with asyncio.timeout(options.timeout):
                    while True:
                        await following.look(found.traces)
                        await asyncio.sleep(interval)
            except TimeoutError:
                return Exit.TIMED_OUT

    return run_interruptible(follow)


class _Following:
    """Remembers what was shown of each signal."""

    def __init__(self, query: Query, begin: float, output: Output, *, as_json: bool) -> None:
        self.output = output
        self._query = query
        self._begin = begin
        self._since = begin
        self._as_json = as_json
        self._shown: OrderedDict[str, tuple[str, bool]] = OrderedDict()

    async def look(self, traces: TraceReader) -> None:
        """Show what is new, oldest first."""
        looked = time.time()
        fresh: list[Listed] = []
        before: int | None = None
        for _ in range(PAGES):
            page = await traces.page(replace(self._query, since=self._since, before=before))
            fresh += [listed for listed in page.signals if self._is_new(listed)]
            before = page.next
            if before is None:
                break
        for listed in reversed(fresh):
            self._show(listed)
        self._since = max(self._begin, looked - BACK_SECONDS)

    def _is_new(self, listed: Listed) -> bool:
        return self._shown.get(listed.signal.id) != (listed.signal.summary, listed.failed)

    def _show(self, listed: Listed) -> None:
        signal = listed.signal
        self._shown[signal.id] = (signal.summary, listed.failed)
        if len(self._shown) > REMEMBERED:
            self._shown.popitem(last=False)
        if self._as_json:
            self.output.json(**listed_fields(listed))
            return
        mark = "✗ " if listed.failed else ""
        parts = (clock(listed.at), signal.type, signal.id, f"from {signal.source}", f"{mark}{signal.summary}")
        self.output.line("  ".join(escape(part) for part in parts))

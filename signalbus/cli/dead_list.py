"""``signalbus dead list``: dead letters in groups, or one by one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ..deadletters import LetterGroup, LetterPage, LetterState
from ..deadletters.model import OPEN_STATES
from ..escapes import escape
from ..moments import rfc3339
from ..trace.rendering import clock
from .daemon import RouterOption
from .failures import CommandError, Exit
from .interrupts import run_interruptible
from .letters import EVERY_ONE, GLYPHS, Which, keeper, letters_table, shortened, summary_fields
from .options import NO_OPTIONS, Options, flag
from .output import Output, log_to_stderr

if TYPE_CHECKING:
    from rich.table import Table

EXAMPLES = """Examples:
  signalbus dead list
  signalbus dead list --group 5f0c2a91
  signalbus dead list --each --subscription billing --since 2h
  signalbus dead list --state discarded --json | jq '.groups[].id'"""

_STATES = {state.value: state for state in LetterState}


def dead_list(
    *,
    each: Annotated[bool, flag("--each", "One a row instead of groups; so does --group.")] = False,
    state: Annotated[
        tuple[str, ...],
        Parameter(negative=(), help=f"In these states: {', '.join(_STATES)}; by default the first three."),
    ] = (),
    limit: Annotated[int, Parameter(help="How many rows with --each, at most.")] = 50,
    which: Which = EVERY_ONE,
    router: RouterOption = None,
    options: Options = NO_OPTIONS,
) -> int:
    """List dead letters, grouped by subscription, error, and place where that was raised.

    dead: nobody has decided yet. waiting, replaying: sent again, and not settled. acked: a replay went well.
    discarded: somebody decided to do without; `signalbus dead restore` brings them back.
    """
    if limit < 1:
        raise CommandError(f"--limit is {limit}; it must be at least 1", code=Exit.USAGE)
    log_to_stderr(options)
    states = frozenset(_state(text) for text in state) or (frozenset(LetterState) if which.all else OPEN_STATES)
    query = which.query(states=states)

    async def show() -> int:
        output = Output(options)
        async with keeper(options, router) as letters:
            if each or which.group:
                _show_page(await letters.page(replace(query, limit=limit)), output, as_json=options.json)
            else:
                _show_groups(await letters.groups(query), output, as_json=options.json)
        return Exit.OK

    return run_interruptible(show)


def _state(text: str) -> LetterState:
    state = _STATES.get(text.strip().lower())
    if state is None:
        raise CommandError(f"--state is {text[:40]!a}; valid are {', '.join(_STATES)}", code=Exit.USAGE)
    return state


def _show_page(page: LetterPage, output: Output, *, as_json: bool) -> None:
    if as_json:
        output.json(letters=[summary_fields(letter) for letter in page.letters], total=page.total)
    elif not page.letters:
        output.note("signalbus: no dead letter fits")
    else:
        output.table(letters_table(page.letters))
        if page.total > len(page.letters):
            output.note(f"signalbus: {len(page.letters)} of {page.total}; see --limit, --since and --until")


def _show_groups(groups: Sequence[LetterGroup], output: Output, *, as_json: bool) -> None:
    if as_json:
        output.json(groups=[_fields(group) for group in groups])
    elif not groups:
        output.note("signalbus: no dead letters")
    else:
        output.table(_table(groups))
        output.note("signalbus: look at a group: signalbus dead list --group ID; replay it: dead replay --group ID")


def _table(groups: Sequence[LetterGroup]) -> Table:
    from rich import box
    from rich.table import Table

    table = Table("group", "count", "subscription", "error", "where", "newest", "like", box=box.SIMPLE_HEAD)
    for group in groups:
        counts = "  ".join(f"{count} {GLYPHS[state]} {state}" for state, count in sorted(group.counts.items()))
        table.add_row(
            escape(group.id),
            counts,
            escape(group.subscription),
            escape(group.error or group.reason.value),
            escape(group.place),
            clock(group.newest.timestamp(), date=True),
            escape(shortened(group.sample)),
        )
    return table


def _fields(group: LetterGroup) -> dict[str, object]:
    return {
        "id": group.id,
        "subscription": group.subscription,
        "reason": group.reason.value,
        "error": group.error,
        "place": group.place,
        "count": group.count,
        "counts": {state.value: count for state, count in group.counts.items()},
        "types": list(group.types),
        "oldest": rfc3339(group.oldest),
        "newest": rfc3339(group.newest),
        "sample": group.sample,
    }

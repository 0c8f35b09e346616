"""``signalbus dead restore``: make discarded dead letters, or a replay that never ended, dead again."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from ..deadletters import LetterState
from .daemon import RouterOption
from .failures import CommandError, Exit
from .interrupts import run_interruptible
from .letters import EVERY_ONE, Which, asked_by, chosen, confirm, keeper, letters_word
from .options import NO_OPTIONS, Options, flag
from .output import Output, log_to_stderr

EXAMPLES = """Examples:
  signalbus dead restore 01929f
  signalbus dead restore --subscription billing --since 1h
  signalbus dead restore 01929f --stuck"""


def dead_restore(
    *ids: Annotated[str, Parameter(help="Ids, or how they begin.")],
    stuck: Annotated[
        bool,
        flag("--stuck", "Those whose replay was sent, and whose end nobody told; they may have been handled."),
    ] = False,
    dry_run: Annotated[bool, flag("--dry-run", "Say how many it would be, and change nothing.")] = False,
    which: Which = EVERY_ONE,
    router: RouterOption = None,
    options: Options = NO_OPTIONS,
) -> int:
    """Bring discarded dead letters back."""
    if stuck and not ids:
        raise CommandError("--stuck is for dead letters named by their ids", code=Exit.USAGE)
    log_to_stderr(options)

    async def restore() -> int:
        output = Output(options)
        state = LetterState.REPLAYING if stuck else LetterState.DISCARDED
        async with keeper(options, router) as letters:
            query, count = await chosen(letters, ids, which, frozenset({state}))
            if not dry_run:
                confirm(f"Restore {letters_word(count)}?", count, ids, options)
                count = await letters.restore(query, by=asked_by())
        if count == 0 and not dry_run:
            raise CommandError(f"nothing to restore: none that fits is {state} now", code=Exit.BAD_OUTCOME)
        if options.json:
            output.json(dry_run=dry_run, restored=0 if dry_run else count, fitting=count)
        else:
            output.line(f"{'would restore' if dry_run else 'restored'} {letters_word(count)}")
        return Exit.OK

    return run_interruptible(restore)

"""``signalbus dead discard``: decide to do without; nothing is deleted."""

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
  signalbus dead discard 01929f --note 'refunded by hand'
  signalbus dead discard --group 5f0c2a91 --dry-run"""


def dead_discard(
    *ids: Annotated[str, Parameter(help="Ids, or how they begin.")],
    note: Annotated[str, Parameter(help="Why, for who looks later.")] = "",
    dry_run: Annotated[bool, flag("--dry-run", "Say how many it would be, and change nothing.")] = False,
    which: Which = EVERY_ONE,
    router: RouterOption = None,
    options: Options = NO_OPTIONS,
) -> int:
    """Discard dead letters. They are kept, out of the way; `signalbus dead restore` brings them back."""
    log_to_stderr(options)

    async def discard() -> int:
        output = Output(options)
        async with keeper(options, router) as letters:
            query, count = await chosen(letters, ids, which, frozenset({LetterState.DEAD}))
            if not dry_run:
                confirm(f"Discard {letters_word(count)}?", count, ids, options)
                count = await letters.discard(query, by=asked_by(), note=note)
        if count == 0 and not dry_run:
            raise CommandError("nothing to discard: none that fits is dead now", code=Exit.BAD_OUTCOME)
        if options.json:
            output.json(dry_run=dry_run, discarded=0 if dry_run else count, fitting=count)
        else:
            output.line(f"{'would discard' if dry_run else 'discarded'} {letters_word(count)}")
        return Exit.OK

    return run_interruptible(discard)

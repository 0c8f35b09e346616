"""``signalbus dead export``: whole dead letters as JSON lines."""

from __future__ import annotations

from dataclasses import replace

from ..deadletters import DeadLetters, LetterQuery, LetterState
from .daemon import RouterOption
from .dead_show import letter_fields
from .failures import Exit
from .interrupts import run_interruptible
from .letters import EVERY_ONE, Which, keeper, letters_word
from .options import NO_OPTIONS, Options
from .output import Output, log_to_stderr

EXAMPLES = """Examples:
  signalbus dead export > dead.jsonl
  signalbus dead export --subscription billing | jq -c .event > events.jsonl
  signalbus publish --lines @events.jsonl"""

PAGE = 200


def dead_export(
    *,
    which: Which = EVERY_ONE,
    router: RouterOption = None,
    options: Options = NO_OPTIONS,
) -> int:
    """Write dead letters to standard output, one JSON object a line: the event, its history, what was done.

    Changes nothing. --all also takes those that were acked by a replay, or discarded.
    """
    log_to_stderr(options)
    query = which.query(states=frozenset(LetterState)) if which.all else which.query()

    async def export() -> int:
        output = Output(options)
        async with keeper(options, router) as letters:
            count = await _write(letters, replace(query, limit=PAGE), output)
        output.note(f"signalbus: {letters_word(count)} exported")
        return Exit.OK

    return run_interruptible(export)


async def _write(letters: DeadLetters, query: LetterQuery, output: Output) -> int:
    count = 0
    while True:
        page = await letters.page(query)
        for summary in page.letters:
            letter = await letters.get(summary.id)
            if letter is not None:
                output.json(**letter_fields(letter))
                count += 1
        if not page.next:
            return count
        query = replace(query, after=page.next)

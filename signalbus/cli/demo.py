"""``signalbus demo``: the command; the demo itself is `signalbus.demo`."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from .failures import CommandError, Exit
from .interrupts import run_interruptible
from .options import NO_OPTIONS, Options, flag
from .output import Output, log_to_stderr

EXAMPLES = """Examples:
  signalbus demo
  signalbus demo --url amqp://user:password@localhost/
  signalbus demo --rows 1000 --json
  signalbus demo --rows 3000 --stay
  signalbus demo --keep /tmp/flights && signalbus demo --check /tmp/flights"""

STALL_SECONDS = 30.0


def demo(
    *,
    rows: Annotated[int | None, Parameter(help="Use only the first rows of the file; it has 27,004.")] = None,
    keep: Annotated[Path | None, Parameter(help="Keep the result files in this new directory.")] = None,
    check: Annotated[Path | None, Parameter(help="Only reconcile the result files of a directory kept before.")] = None,
    stay: Annotated[bool, flag("--stay", "Leave the page there when all is done, until Ctrl-C.")] = False,
    dry_run: Annotated[bool, flag("--dry-run", "Say what would happen.")] = False,
    options: Options = NO_OPTIONS,
) -> int:
    """Send a month of flights through real processes, kill one of them, and account for every signal.

    Without --url on a fresh SQLite file that is deleted afterwards, whatever SIGNALBUS_URL says. On RabbitMQ under a
    prefix of its own. The exit code is 6 if a signal is lost or dead.
    """
    log_to_stderr(options)
    output = Output(options)
    if rows is not None and rows < 1:
        raise CommandError(f"--rows is {rows}; it must be at least 1", code=Exit.USAGE)
    if keep is not None and keep.exists():
        raise CommandError(f"{keep} exists; --keep wants a new directory", code=Exit.USAGE)
    if check is not None:
        return _check(check, output, options)
    if dry_run:
        output.line(
            f"would publish the flights of {rows or 27_004} rows to three subscriptions of their own, "
            "kill one subscriber and delete the subscriptions afterwards"
        )
        return Exit.OK
    return run_interruptible(lambda: _demo(rows, keep, output, options, stay=stay))


async def _demo(rows: int | None, keep: Path | None, output: Output, options: Options, *, stay: bool) -> int:
    from ..demo.demonstration import demonstrated
    from ..demo.report import outcome_fields, print_outcome
    from ..demo.tally import Show

    async with demonstrated(
        Show(output),
        url=options.url,
        rows=rows,
        keep=keep,
        stall_seconds=options.timeout or STALL_SECONDS,
        verbose=options.verbose,
    ) as outcome:
        if options.json:
            output.json(**outcome_fields(outcome))
        else:
            print_outcome(outcome, output)
        if stay:
            output.note(f"signalbus: the page is at {outcome.page} until Ctrl-C")
            await asyncio.Event().wait()
    return Exit.OK if outcome.good else Exit.BAD_OUTCOME


def _check(directory: Path, output: Output, options: Options) -> int:
    from ..demo.reconcile import reconcile
    from ..demo.report import balance_fields, print_balance, verdict

    try:
        balance = reconcile(directory)
    except FileNotFoundError as error:
        raise CommandError(
            f"{directory} holds no demo", code=Exit.NOT_FOUND, advice=f"signalbus demo --keep {directory}"
        ) from error
    if options.json:
        output.json(**balance_fields(balance))
    else:
        print_balance(balance, output)
        output.line(verdict(balance))
    return Exit.OK if balance.good else Exit.BAD_OUTCOME

"""``signalbus dead replay``: send dead letters to the subscriptions that failed on them, once more."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Generator
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from ..deadletters import DeadLetters, LetterState, Replay
from ..deadletters.model import DEFAULT_RATE
from ..escapes import escape
from ..moments import rfc3339
from .daemon import RouterOption
from .failures import CommandError, Exit
from .interrupts import run_interruptible
from .letters import EVERY_ONE, Which, asked_by, chosen, confirm, keeper, letters_word
from .options import NO_OPTIONS, Options, flag
from .output import Output, log_to_stderr

if TYPE_CHECKING:
    from rich.progress import Progress

EXAMPLES = """Examples:
  signalbus dead replay 01929f
  signalbus dead replay --group 5f0c2a91 --rate 20
  signalbus dead replay --subscription billing --error TimeoutError --dry-run
  signalbus dead replay --all --yes --no-wait"""

LOOK_SECONDS = 0.2
CANCEL_SECONDS = 5.0


def dead_replay(
    *ids: Annotated[str, Parameter(help="Ids, or how they begin.")],
    rate: Annotated[float, Parameter(help="How many a second, at most.")] = DEFAULT_RATE,
    wait: Annotated[bool, Parameter(help="Wait until each is acked, or dead again.")] = True,
    dry_run: Annotated[bool, flag("--dry-run", "Say how many it would be, and change nothing.")] = False,
    which: Which = EVERY_ONE,
    router: RouterOption = None,
    options: Options = NO_OPTIONS,
) -> int:
    """Replay dead letters: each goes to the subscription that failed on it, and no other, with its own id.

    What fits now is claimed at once; who asks a second time hears that it is replaying already. Ctrl-C makes what is
    not sent yet dead again. The exit code is 6 if some died again or could not be sent, 7 if --timeout passed first.
    """
    if not rate > 0:
        raise CommandError(f"--rate is {rate:g}; it must be above 0", code=Exit.USAGE)
    log_to_stderr(options)

    async def replay() -> int:
        output = Output(options)
        async with keeper(options, router) as letters:
            query, count = await chosen(letters, ids, which, frozenset({LetterState.DEAD}))
            if dry_run:
                _tell_dry(count, output, as_json=options.json)
                return Exit.OK
            confirm(f"Replay {letters_word(count)} at up to {rate:g} a second?", count, ids, options)
            begun = await letters.replay(query, by=asked_by(), rate=rate)
            if begun.total == 0:
                raise CommandError(_nothing(begun), code=Exit.BAD_OUTCOME, advice="signalbus dead list --each --all")
            done = await _wait(letters, begun, output, options, settled=wait)
        return _tell(done, output, as_json=options.json, wait=wait)

    return run_interruptible(replay)


async def _wait(letters: DeadLetters, begun: Replay, output: Output, options: Options, *, settled: bool) -> Replay:
    """Wait until all are sent, or settled; on Ctrl-C nothing more is sent."""
    now = begun
    try:
        with _progress(output, begun.total) as advance:
            async with asyncio.timeout(options.timeout):
                while not (now.settled if settled else not now.sending):
                    await asyncio.sleep(LOOK_SECONDS)
                    now = await letters.progress(begun.id) or now
                    advance(now)
    except TimeoutError:
        return now
    except asyncio.CancelledError:
        async with asyncio.timeout(CANCEL_SECONDS):
            cancelled = await letters.cancel(begun.id, by=asked_by())
        output.note(f"signalbus: stopped; {letters_word(cancelled)} not sent, and dead as before")
        raise
    return now


def _nothing(replay: Replay) -> str:
    if replay.taken:
        return f"already replaying: {letters_word(replay.taken)}"
    return "nothing to replay: none that fits is dead now"


def _tell_dry(count: int, output: Output, *, as_json: bool) -> None:
    if as_json:
        output.json(dry_run=True, would_replay=count)
    else:
        output.line(f"would replay {letters_word(count)}")


def _tell(replay: Replay, output: Output, *, as_json: bool, wait: bool) -> int:
    bad = replay.died_again + replay.returned
    if as_json:
        output.json(**{**asdict(replay), "started": rfc3339(replay.started)})
    else:
        parts = {
            "acked": replay.acked,
            "died again": replay.died_again,
            "could not be sent": replay.returned,
            "cancelled": replay.cancelled,
            "not settled yet": replay.pending,
            "not sent yet": replay.waiting,
            "in another replay": replay.taken,
        }
        told = ", ".join(f"{count} {what}" for what, count in parts.items() if count)
        output.line(escape(f"replay {replay.id}: {letters_word(replay.total)}: {told}"))
        if bad:
            output.note("signalbus: why: signalbus dead list --each")
    if bad:
        return Exit.BAD_OUTCOME
    return Exit.TIMED_OUT if wait and not replay.settled else Exit.OK


@contextlib.contextmanager
def _progress(output: Output, total: int) -> Generator[Callable[[Replay], None]]:
    """Show how far it is, on a terminal."""
    if not output.animated:
        yield lambda _: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("replaying"), BarColumn(), TextColumn("{task.completed}/{task.total} settled"))
    progress: Progress
    with Progress(*columns, TimeRemainingColumn(), console=output.console(stderr=True), transient=True) as progress:
        task = progress.add_task("replay", total=total)
        yield lambda now: progress.update(task, completed=now.total - now.waiting - now.pending)

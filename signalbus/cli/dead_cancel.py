"""``signalbus dead cancel``: stop a replay; what it has not sent is dead as before."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

from .daemon import RouterOption
from .failures import CommandError, Exit
from .interrupts import run_interruptible
from .letters import asked_by, keeper, letters_word
from .options import NO_OPTIONS, Options
from .output import Output, log_to_stderr

EXAMPLES = """Examples:
  signalbus dead cancel 01929f"""


def dead_cancel(
    replay: Annotated[str, Parameter(help="The replay's id, or how it begins.")],
    *,
    router: RouterOption = None,
    options: Options = NO_OPTIONS,
) -> int:
    """Cancel a replay. What was sent already goes its way; the rest is dead as before."""
    log_to_stderr(options)

    async def cancel() -> int:
        async with keeper(options, router) as letters:
            fitting = [each.id for each in await letters.replays(1_000) if each.id.startswith(replay)]
            if len(fitting) != 1:
                raise CommandError(
                    f"{len(fitting)} replays have an id that begins with {replay[:80]!a}",
                    code=Exit.NOT_FOUND,
                    advice="signalbus dead audit",
                )
            count = await letters.cancel(fitting[0], by=asked_by())
        output = Output(options)
        if options.json:
            output.json(replay=fitting[0], cancelled=count)
        else:
            output.line(f"{letters_word(count)} not sent, and dead as before")
        return Exit.OK

    return run_interruptible(cancel)

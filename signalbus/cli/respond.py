"""``signalbus respond``: answers requests with their own data, or with what a program makes of it."""

from __future__ import annotations

import asyncio
import shlex
from typing import Annotated

from cyclopts import Parameter

from ..errors import Reject
from ..escapes import escape
from ..handlers import Delivery
from ..signals import Signal
from .connect import command_bus
from .failures import CommandError, Exit
from .interrupts import run_interruptible
from .options import NO_OPTIONS, Options, flag
from .output import Output, log_to_stderr

EXAMPLES = """Examples:
  signalbus respond ping --echo
  signalbus respond text.sort --command sort
  signalbus respond quote.get --command 'python3 quote.py' --concurrency 4"""

ERROR_CHARACTERS = 500
TERMINATE_SECONDS = 2.0


def respond(
    type: Annotated[str, Parameter(help="The type of the requests, like quote.get.")],  # noqa: A002 - the word for it
    /,
    *,
    echo: Annotated[bool, flag("--echo", "Reply with the data of the request.")] = False,
    command: Annotated[
        str | None, Parameter(help="A program: gets the data on standard input, replies on standard output.")
    ] = None,
    concurrency: Annotated[int, Parameter(help="Requests at a time.")] = 16,
    idempotent: Annotated[bool, flag("--idempotent", "A request whose responder died may run again here.")] = False,
    options: Options = NO_OPTIONS,
) -> int:
    """Respond to requests until Ctrl-C, or for --timeout seconds.

    A program that ends with another code than 0 fails the request, with the end of its standard error as the reason.
    It is ended when its requester waits no longer.
    """
    if echo == (command is not None):
        raise CommandError(
            "say how to respond: --echo or --command", code=Exit.USAGE, advice="signalbus respond --help"
        )
    program = shlex.split(command) if command is not None else []
    if command is not None and not program:
        raise CommandError("--command is empty", code=Exit.USAGE, advice="signalbus respond --help")
    log_to_stderr(options)
    return run_interruptible(lambda: _respond(type, program, concurrency, idempotent=idempotent, options=options))


async def _respond(
    request_type: str, program: list[str], concurrency: int, *, idempotent: bool, options: Options
) -> int:
    output = Output(options)
    bus = command_bus(options)

    async def answer(signal: Signal, delivery: Delivery) -> object:
        if options.json:
            output.json(request=signal.id, type=signal.type, source=signal.source)
        elif not options.quiet:
            output.line(f"{escape(signal.type)}  {escape(signal.id)}  from {escape(signal.source)}")
        return await _run(program, delivery.encoded.body) if program else signal.data

    bus.respond(request_type, answer, concurrency=concurrency, idempotent=idempotent)
    async with bus:
        output.note(f"signalbus: responding to {request_type} at {bus!r}")
        try:
            async with asyncio.timeout(options.timeout):
                await bus.wait_failed()
        except TimeoutError:
            pass  # as long as was asked for
    return Exit.OK


async def _run(program: list[str], data: bytes) -> bytes:
    """Return what the program prints. Raises `Reject` if it fails; it does not outlive the handler."""
    process = await asyncio.create_subprocess_exec(
        *program, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
    )
    try:
        printed, complaints = await process.communicate(data)
    except asyncio.CancelledError:
        await _end(process)
        raise
    if process.returncode:
        reason = complaints.decode(errors="replace").strip()[-ERROR_CHARACTERS:]
        raise Reject(f"{program[0]} ended with code {process.returncode}: {reason}")
    return printed


async def _end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is not None:
        return
    process.terminate()
    try:
        async with asyncio.timeout(TERMINATE_SECONDS):
            await process.wait()
    except TimeoutError:
        process.kill()
        await process.wait()

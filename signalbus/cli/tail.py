"""``signalbus tail``: signals as they are published, through a subscription that ends with the command."""

from __future__ import annotations

import asyncio
import base64
import json
import secrets
from typing import Annotated

from cyclopts import Parameter

from ..codec import encode_structured
from ..errors import DecodeError
from ..escapes import escape
from ..handlers import Delivery
from ..policy import RetryPolicy
from .bodies import shown
from .connect import command_bus
from .failures import CommandError, Exit
from .interrupts import run_interruptible
from .options import NO_OPTIONS, Options
from .output import Output, log_to_stderr

EXAMPLES = """Examples:
  signalbus tail
  signalbus tail 'order.*' 'invoice.#' --count 10
  signalbus tail --json | jq .event.data"""


def tail(
    *patterns: Annotated[str, Parameter(help="Patterns like order.* or order.#; all signals by default.")],
    count: Annotated[int | None, Parameter(help="End after this many signals.")] = None,
    options: Options = NO_OPTIONS,
) -> int:
    """Show signals as they are published, from now on.

    Changes nothing for other subscriptions. Ends with Ctrl-C, after --count signals, or with exit code 7 when
    --timeout seconds are over.
    """
    if count is not None and count < 1:
        raise CommandError(f"--count is {count}; it must be at least 1", code=Exit.USAGE)
    log_to_stderr(options)
    return run_interruptible(lambda: _tail(patterns or ("#",), count, options))


async def _tail(patterns: tuple[str, ...], count: int | None, options: Options) -> int:
    output = Output(options)
    bus = command_bus(options)
    ended: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    left = count

    async def show(_data: bytes, delivery: Delivery) -> None:
        nonlocal left
        if ended.done():
            return
        try:
            _show(delivery, output, as_json=options.json)
        except BrokenPipeError as error:
            ended.set_exception(error)
            return
        if left is not None:
            left -= 1
            if left == 0:
                ended.set_result(None)

    bus.subscribe(
        *patterns,
        handler=show,
        name=f"tail-{secrets.token_hex(6)}",
        durable=False,
        retry=RetryPolicy(max_attempts=1),
        prefetch=200,
    )
    async with bus:
        output.note(f"signalbus: following {', '.join(patterns)} at {bus!r}")
        try:
            async with asyncio.timeout(options.timeout):
                await ended
        except TimeoutError as error:
            if count is None:
                return Exit.TIMED_OUT
            seen = count - (left or 0)
            raise CommandError(f"{seen} of {count} signals after {options.timeout:g} s", code=Exit.TIMED_OUT) from error
    return Exit.OK


def _show(delivery: Delivery, output: Output, *, as_json: bool) -> None:
    try:
        signal = delivery.signal
    except DecodeError as error:
        if as_json:
            body = base64.b64encode(delivery.encoded.body).decode()
            output.json(undecodable=str(error), id=delivery.id, type=delivery.type, body_base64=body)
        else:
            output.line(f"{escape(delivery.type)}  {escape(delivery.id)}  ✗ undecodable: {escape(str(error))}")
        return
    if as_json:
        output.json(event=json.loads(encode_structured(signal).body))
        return
    parts = [signal.time.strftime("%H:%M:%S.%f")[:-3], signal.type, signal.id]
    if signal.subject:
        parts.append(signal.subject)
    parts += [f"from {signal.source}", shown(signal.data)]
    output.line("  ".join(escape(part) for part in parts))

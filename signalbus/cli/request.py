"""``signalbus request``: one request from the command line, and its reply."""

from __future__ import annotations

import base64
from typing import Annotated

from cyclopts import Parameter

from ..codec import JSON
from ..errors import RemoteError
from ..escapes import escape
from ..signals import Signal
from .bodies import checked, read_body, shown
from .connect import command_bus
from .failures import Exit
from .interrupts import run_interruptible
from .options import NO_OPTIONS, Options
from .output import Output, log_to_stderr

EXAMPLES = """Examples:
  signalbus request quote.get '{"symbol": "ABC"}'
  signalbus request quote.get @request.json --timeout 2 --json
  echo '{"symbol": "ABC"}' | signalbus request quote.get -"""


def request(
    type: Annotated[str, Parameter(help="The type, like quote.get.")],  # noqa: A002 - the word for it
    body: Annotated[str | None, Parameter(help="The data: JSON, - for standard input, @file for a file.")] = None,
    /,
    *,
    content_type: Annotated[str | None, Parameter(help="Type of the data, if it is not JSON.")] = None,
    options: Options = NO_OPTIONS,
) -> int:
    """Send a request and print the reply, or say why there is none.

    The exit code is 5 if nobody responds, 6 if the handler failed or its responder died, 7 if no reply came in time.
    """
    log_to_stderr(options)
    data = read_body(body)
    signal = Signal(
        type=type,
        data=checked(data, content_type),
        datacontenttype=content_type or (JSON if data else None),
    )
    return run_interruptible(lambda: _request(signal, options))


async def _request(signal: Signal, options: Options) -> int:
    output = Output(options)
    async with command_bus(options) as bus:
        try:
            reply = await bus.request(signal, timeout=options.connect_seconds)
        except RemoteError as error:
            if options.verbose:
                output.warn(error.traceback)
            raise
    if options.json:
        if isinstance(reply, bytes):
            output.json(id=signal.id, type=signal.type, reply_base64=base64.b64encode(reply).decode())
        else:
            output.json(id=signal.id, type=signal.type, reply=reply)
    else:
        output.line(escape(shown(reply)))
    return Exit.OK

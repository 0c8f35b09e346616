"""``signalbus run``: serve a bus until it is told to stop."""

from __future__ import annotations

import logging
import os
import sys
import threading
from typing import Annotated

from cyclopts import Parameter

from .failures import CommandError, Exit
from .options import NO_OPTIONS, Options, flag
from .output import Output, log_to_stderr

EXAMPLES = """Examples:
  signalbus run shop.signals:bus
  signalbus run shop.signals:bus --workers 4
  signalbus run shop.signals:bus --reload
  SIGNALBUS_URL=amqp://user:password@host/ signalbus run consumers.recorder:bus"""


def run(
    target: Annotated[str, Parameter(help="module:bus, a Bus or a function that makes one.")],
    /,
    *,
    workers: Annotated[int, Parameter(help="Processes to serve it with; one that dies is started again.")] = 1,
    reload: Annotated[bool, flag("--reload", "Start again when a source file changes.")] = False,
    listen: Annotated[
        str | None,
        Parameter(
            help="Serve the page and the API of an embedded broker there, or off; by default 127.0.0.1:8642, or "
            "another port if that is taken."
        ),
    ] = None,
    supervised: Annotated[bool, Parameter(show=False, negative=())] = False,
    options: Options = NO_OPTIONS,
) -> int:
    """Serve the subscriptions of a bus.

    The first Ctrl-C or SIGTERM lets running handlers end (SIGNALBUS_DRAIN_TIMEOUT, 30 seconds) and exits with 0;
    the second stops now. On the embedded broker the page at --listen shows what happens. With --workers, a worker that
    dies is started again; more than 3 deaths in 5 seconds end all.
    """
    if workers < 1:
        raise CommandError(f"--workers is {workers}; it must be at least 1", code=Exit.USAGE)
    log_to_stderr(options, usual=logging.WARNING)
    from .target import apply_options

    apply_options(options)
    if workers > 1:
        from .workers import serve_with_workers

        return serve_with_workers(target, workers, reload=reload, listen=listen, options=options)
    from .serve import serve_here

    code = serve_here(target, reload=reload, supervised=supervised, listen=listen, options=options)
    _end_despite_threads(code, Output(options))
    return code


def _end_despite_threads(code: int, output: Output) -> None:
    """Exit here if threads of sync handlers still run: the interpreter would wait for them for ever."""
    left = [thread for thread in threading.enumerate() if thread is not threading.main_thread() and not thread.daemon]
    if left:
        output.note(f"signalbus: leaving {len(left)} threads behind that did not end")
        sys.stdout.flush()
        os._exit(code)

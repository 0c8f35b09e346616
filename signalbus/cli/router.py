"""``signalbus router``: the daemon beside RabbitMQ that keeps the ledger."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..bus import Bus
from ..router.daemon import Router
from ..trace.listing import Retention
from .failures import CommandError, Exit
from .interrupts import run_interruptible
from .options import NO_OPTIONS, Options
from .output import Output, log_to_stderr
from .traces import STORE

EXAMPLES = """Examples:
  signalbus router --url amqp://user:password@host/ --store /var/lib/signalbus/ledger.db
  SIGNALBUS_STORE=ledger.db signalbus router --keep-days 30"""

_STOPPED = {128 + signal.SIGINT, 128 + signal.SIGTERM}


def router(
    *,
    store: Annotated[
        Path | None, Parameter(help="The file to keep the ledger in; made if it is not there [env: SIGNALBUS_STORE].")
    ] = None,
    keep_days: Annotated[float, Parameter(help="Forget what is older.")] = 7.0,
    keep_mib: Annotated[int, Parameter(help="Forget the oldest beyond this size, roughly.")] = 4_096,
    options: Options = NO_OPTIONS,
) -> int:
    """Collect what all buses on a RabbitMQ record, and keep it for `signalbus trace`, until SIGTERM or Ctrl-C.

    Nothing depends on it: while it is away facts wait at RabbitMQ, in a bounded queue, and signals do not. On the
    embedded broker there is nothing to run. Being stopped is what a daemon ends with: the exit code is 0 then.
    """
    path = store or (Path(os.environ[STORE]) if os.environ.get(STORE) else None)
    if path is None:
        raise CommandError("no store is named", code=Exit.USAGE, advice="signalbus router --store ledger.db")
    if keep_days <= 0 or keep_mib < 1:
        raise CommandError("--keep-days and --keep-mib must be above 0", code=Exit.USAGE)
    log_to_stderr(options, usual=logging.WARNING)
    retention = Retention(seconds=keep_days * 86_400, bytes=keep_mib << 20)
    code = run_interruptible(lambda: _serve(path, retention, options))
    return Exit.OK if code in _STOPPED else code


async def _serve(path: Path, retention: Retention, options: Options) -> int:
    output = Output(options)
    bus = Bus(options.url, name="signalbus-router", connect_timeout=options.connect_seconds, ledger="off")
    serving = Router(bus, path, retention)
    telling = asyncio.create_task(_tell_ready(serving, bus, path, output))
    try:
        await serving.serve()
    finally:
        telling.cancel()
        await asyncio.wait([telling])
    return Exit.OK


async def _tell_ready(serving: Router, bus: Bus, path: Path, output: Output) -> None:
    await serving.ready.wait()
    output.note(f"signalbus: router keeps the ledger of {bus!r} in {path}, pid {os.getpid()}")

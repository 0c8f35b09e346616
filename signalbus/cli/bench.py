"""``signalbus bench``: the command; the measuring itself is `signalbus.bench`."""

from __future__ import annotations

import os
import platform
from contextlib import aclosing
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from .failures import CommandError, Exit
from .interrupts import run_interruptible
from .options import NO_OPTIONS, Options
from .output import Output, log_to_stderr

if TYPE_CHECKING:
    from ..bench.series import Series

EXAMPLES = """Examples:
  signalbus bench
  signalbus bench --url amqp://user:password@localhost/ --seconds 60
  signalbus bench --size 16384 --json"""

SECONDS = 20.0
SIZE = 256
REMOVE_SECONDS = 30.0


def bench(
    *,
    seconds: Annotated[float, Parameter(help="How long to measure, in all.")] = SECONDS,
    size: Annotated[int, Parameter(help="Bytes of data in each signal.")] = SIZE,
    options: Options = NO_OPTIONS,
) -> int:
    """Measure what the broker does from here: publishing, handling, a steady stream, requests.

    On SQLite in a new directory beside the file, on RabbitMQ under a prefix of its own; nothing is left behind, and
    nobody's signals are touched. A broker in use is slower for the others meanwhile.
    """
    from ..bench.measuring import SMALLEST

    log_to_stderr(options)
    if not 0.5 <= seconds <= 3600.0:
        raise CommandError(f"--seconds is {seconds:g}; it must be from 0.5 to 3600", code=Exit.USAGE)
    if not SMALLEST <= size <= 8 * 1024 * 1024:
        raise CommandError(f"--size is {size}; it must be from {SMALLEST} to 8388608", code=Exit.USAGE)
    return run_interruptible(lambda: _bench(seconds, size, options))


async def _bench(seconds: float, size: int, options: Options) -> int:
    from ..bench.measuring import measure
    from ..bench.place import place
    from ..config import Settings, masked

    output = Output(options)
    found: list[Series] = []
    given = masked(Settings.read(url=options.url).url)
    output.note(f"signalbus: measuring {given} for {seconds:g} s, with {size} bytes a signal")
    try:
        async with place(options.url, REMOVE_SECONDS) as url:
            measuring = measure(url, seconds=seconds, size=size, timeout=options.connect_seconds)
            async with aclosing(measuring):  # its bus is to be closed before the place is removed
                async for series in measuring:
                    found.append(series)
                    if not options.json:
                        output.line(_line(series))
    except FileNotFoundError as error:
        raise CommandError(
            f"there is no directory for {given}: {error.filename}", code=Exit.NOT_FOUND, advice="make it: mkdir -p"
        ) from error
    if options.json:
        output.json(url=given, bytes=size, **_machine(), series=[series.fields() for series in found])
    return Exit.OK


def _line(series: Series) -> str:
    rate = "" if series.rate is None else f"{series.rate:,.0f}/s"
    times = ""
    if (p50 := series.milliseconds(0.5)) is not None:
        times = f"p50 {p50:,.2f} ms  p99 {series.milliseconds(0.99) or 0.0:,.2f} ms"
    return f"{series.title:<40} {rate:>10}   {series.cpu_microseconds:>7,.0f} µs CPU   {times}".rstrip()


def _machine() -> dict[str, object]:
    return {
        "python": platform.python_version(),
        "machine": f"{platform.system()} {platform.machine()}",
        "processors": os.cpu_count(),
        "load": os.getloadavg()[0],
    }

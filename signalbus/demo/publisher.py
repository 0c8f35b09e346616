"""A process of the demo: publishes the flights, in order and in chunks. ``python -m signalbus.demo.publisher``."""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys

from signalbus import Bus, SignalBusError

from .flights import read_events, signals
from .lifeline import run_to_end
from .reports import tell

CHUNK = 500


async def publish(run: str, rows: int | None) -> None:
    """Publish the signals of a run and report how far it is."""
    source = signals(run, read_events(rows))
    done = 0
    async with Bus(name="signalbus-demo/publisher") as bus:
        tell("ready", 0)
        while chunk := list(itertools.islice(source, CHUNK)):
            await bus.publish_many(chunk, timeout=60)
            done += len(chunk)
            tell("progress", done)
    tell("finished", done)


def main() -> int:
    """Run the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("run")
    parser.add_argument("--rows", type=int)
    options = parser.parse_args()
    try:
        return asyncio.run(run_to_end(publish(options.run, options.rows)))
    except SignalBusError as error:
        print(f"publisher: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

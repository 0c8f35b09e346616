"""A process of the demo: has a request, and never answers. ``python -m signalbus.demo.tower TYPE``."""

from __future__ import annotations

import asyncio
import sys

from signalbus import Bus, SignalBusError

from .lifeline import run_to_end
from .reports import tell


async def respond(request_type: str) -> None:
    """Respond until cancelled."""
    bus = Bus(name="signalbus-demo/tower", drain_timeout=0.5)

    @bus.respond(request_type)
    async def clear(flight: str) -> None:
        tell("held", 1, bus.session.id)
        await asyncio.get_running_loop().create_future()

    async with bus:
        tell("ready", 0, bus.session.id)
        await bus.wait_failed()


def main() -> int:
    """Run the process."""
    try:
        return asyncio.run(run_to_end(respond(sys.argv[1])))
    except SignalBusError as error:
        print(f"tower: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())

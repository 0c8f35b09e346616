"""A publisher and a subscriber in one program: ``python examples/quickstart.py``."""

import asyncio

from signalbus import Bus

bus = Bus()  # SIGNALBUS_URL, else the file signalbus.db
billed = asyncio.Event()


@bus.subscribe("quickstart.order.*", name="quickstart")
async def bill(order: dict[str, float]) -> None:
    print(f"billing {order['total']:.2f}")
    billed.set()


async def main() -> None:
    async with bus:
        await bus.publish("quickstart.order.placed", {"total": 9.5})  # returns when it is on disk
        await billed.wait()


asyncio.run(main())

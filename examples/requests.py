"""A call that returns a reply, or says why not. ``python examples/requests.py``."""

from __future__ import annotations

import asyncio

from pydantic import BaseModel

from signalbus import Bus, NoResponder, RemoteError

bus = Bus()


class QuoteRequest(BaseModel):
    """What is asked."""

    symbol: str


class Quote(BaseModel):
    """What is answered."""

    symbol: str
    price: float


PRICES = {"ABC": 12.5}


@bus.respond("quote.get")
async def quote(request: QuoteRequest) -> Quote:
    return Quote(symbol=request.symbol, price=PRICES[request.symbol])


async def main() -> None:
    async with bus:
        print(await bus.request("quote.get", QuoteRequest(symbol="ABC"), reply=Quote, timeout=2))
        for request_type, symbol in (("quote.get", "XYZ"), ("quote.buy", "ABC")):
            try:
                await bus.request(request_type, QuoteRequest(symbol=symbol), timeout=2)
            except (RemoteError, NoResponder) as error:
                print(f"{type(error).__name__}: {error}")


asyncio.run(main())

"""Two subscriptions to serve with ``signalbus run examples.orders:bus``.

Then publish to them: ``signalbus publish order.placed '{"order_id": "A1", "total": 9.5}'``.
"""

from __future__ import annotations

import logging

from pydantic import BaseModel

from signalbus import Bus, Delivery

log = logging.getLogger(__name__)

bus = Bus(name="shop")


class Order(BaseModel):
    """The data of ``order.*``."""

    order_id: str
    total: float


@bus.subscribe("order.placed", name="orders-billing", concurrency=16)
async def bill(order: Order) -> None:
    """Bill each order; the same signal may come twice, so a real one would keep the ids of those it billed."""
    print(f"billing {order.order_id}: {order.total:.2f}", flush=True)


@bus.subscribe("order.#", name="orders-audit")
async def audit(order: dict[str, object], delivery: Delivery) -> None:
    """See a copy of everything that happens to orders."""
    print(f"audit {delivery.type} {delivery.id}", flush=True)

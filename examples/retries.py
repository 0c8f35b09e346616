"""What becomes of failures: a retry, a dead letter and a success. ``python examples/retries.py``."""

from __future__ import annotations

import asyncio
from datetime import timedelta

from pydantic import BaseModel

from signalbus import Bus, Delivery, Reject, RetryPolicy

bus = Bus()


class Payment(BaseModel):
    """The data of a signal, validated before the handler sees it."""

    order_id: str
    amount: float


@bus.subscribe(
    "payment.due",
    name="payments",
    retry=RetryPolicy(max_attempts=3, initial=timedelta(milliseconds=200)),
)
async def pay(payment: Payment, delivery: Delivery) -> None:
    if payment.amount <= 0:
        raise Reject("nothing to pay")  # a dead letter now
    if delivery.attempt == 1:
        raise TimeoutError("the bank does not answer")  # comes again, by the policy
    print(f"{payment.order_id}: paid {payment.amount:.2f} on attempt {delivery.attempt}")


async def main() -> None:
    async with bus:
        await bus.publish("payment.due", Payment(order_id="A1", amount=9.5))
        await bus.publish("payment.due", Payment(order_id="A2", amount=0.0))
        payments = pay.stats()
        while payments.acked + payments.dead < 2:  # noqa: ASYNC110 - counters have no event
            await asyncio.sleep(0.05)
        letters = await bus.broker.dead_letters(limit=10, timeout=5)
    print(f"acked {payments.acked}, retried {payments.retried}; dead letters: {[letter.detail for letter in letters]}")


asyncio.run(main())

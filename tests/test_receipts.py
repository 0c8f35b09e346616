"""Values that each signal makes one of: written for speed, and to be used like any other."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, asdict, replace
from datetime import UTC, datetime

import pytest
from pydantic import TypeAdapter

from signalbus import Receipt
from signalbus.codec import EncodedSignal
from signalbus.receipts import Outcome, SubscriptionOutcome

AT = datetime(2026, 1, 31, 12, tzinfo=UTC)
RECEIPT = Receipt(id="1", type="order.placed", stored_at=AT)
ENCODED = EncodedSignal("1", "order.placed", {"cloudEvents_id": "1"}, b"{}", "application/json")


def test_a_receipt_is_frozen_and_compared_by_value() -> None:
    assert Receipt(id="1", type="order.placed", stored_at=AT) == RECEIPT
    assert hash(Receipt(id="1", type="order.placed", stored_at=AT)) == hash(RECEIPT)
    with pytest.raises(FrozenInstanceError):
        RECEIPT.id = "2"  # type: ignore[misc]
    assert (RECEIPT.routed, RECEIPT.attempts, RECEIPT.subscriptions, RECEIPT.acked) == (True, 1, (), False)


def test_a_receipt_can_be_changed_into_another() -> None:
    outcome = SubscriptionOutcome(subscription="billing", outcome=Outcome.ACKED)
    changed = replace(RECEIPT, subscriptions=(outcome,), attempts=2)
    assert (changed.id, changed.attempts, changed.acked) == ("1", 2, True)


def test_a_receipt_is_an_object_in_json() -> None:
    """As web frameworks write what an endpoint returns."""
    written = TypeAdapter(Receipt).dump_python(RECEIPT, mode="json")
    assert written == {**asdict(RECEIPT), "stored_at": "2026-01-31T12:00:00Z", "subscriptions": []}
    assert TypeAdapter(Receipt).validate_python(written) == RECEIPT


def test_an_encoded_signal_is_frozen_and_compared_by_value() -> None:
    assert replace(ENCODED, body=b"[]") == EncodedSignal(
        "1", "order.placed", ENCODED.headers, b"[]", ENCODED.content_type
    )
    with pytest.raises(FrozenInstanceError):
        ENCODED.body = b""  # type: ignore[misc]
    assert repr(ENCODED).startswith("EncodedSignal(id='1', type='order.placed', headers=")

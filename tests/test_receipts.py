"""Values that each signal makes one of: written for speed, and to be used like any other."""

from __future__ import annotations

import copy
import inspect
import pickle
from dataclasses import MISSING, FrozenInstanceError, asdict, fields, replace
from datetime import UTC, datetime

import pytest
from pydantic import TypeAdapter

from signalbus import Receipt
from signalbus.codec import EncodedSignal
from signalbus.receipts import Outcome, SubscriptionOutcome

AT = datetime(2026, 1, 31, 12, tzinfo=UTC)
ACKED = SubscriptionOutcome(subscription="billing", outcome=Outcome.ACKED)
RECEIPT = Receipt(id="1", type="order.placed", stored_at=AT)
GIVEN: dict[type[Receipt | EncodedSignal], dict[str, object]] = {
    Receipt: {
        "id": "1",
        "type": "order.placed",
        "stored_at": AT,
        "routed": False,
        "attempts": 2,
        "subscriptions": (ACKED,),
    },
    EncodedSignal: {
        "id": "1",
        "type": "order.placed",
        "headers": {"cloudEvents_id": "1"},
        "body": b"{}",
        "content_type": "application/json",
    },
}


@pytest.fixture(params=GIVEN, ids=lambda kind: kind.__name__)
def kind(request: pytest.FixtureRequest) -> type[Receipt | EncodedSignal]:
    found: type[Receipt | EncodedSignal] = request.param
    return found


def test_each_field_has_what_was_given(kind: type[Receipt | EncodedSignal]) -> None:
    made = kind(**GIVEN[kind])  # type: ignore[arg-type]  # by name
    assert {name: getattr(made, name) for name in GIVEN[kind]} == GIVEN[kind]
    assert [field.name for field in fields(kind)] == list(GIVEN[kind])


def test_what_makes_it_takes_its_fields_with_their_defaults(kind: type[Receipt | EncodedSignal]) -> None:
    parameters = inspect.signature(kind).parameters.values()
    nothing = inspect.Parameter.empty
    assert [(each.name, MISSING if each.default is nothing else each.default) for each in parameters] == [
        (field.name, field.default) for field in fields(kind)
    ]


def test_it_is_frozen_and_compared_by_value(kind: type[Receipt | EncodedSignal]) -> None:
    made, same = (kind(**GIVEN[kind]) for _ in range(2))  # type: ignore[arg-type]  # by name
    assert made == same
    assert made != replace(made, id="2")
    with pytest.raises(FrozenInstanceError):
        made.id = "2"  # type: ignore[misc]
    assert pickle.loads(pickle.dumps(made)) == copy.deepcopy(made) == made


def test_a_receipt_can_be_changed_into_another() -> None:
    changed = replace(RECEIPT, subscriptions=(ACKED,), attempts=2)
    assert (changed.id, changed.attempts, changed.acked, RECEIPT.acked) == ("1", 2, True, False)


def test_a_receipt_is_an_object_in_json() -> None:
    """As web frameworks write what an endpoint returns."""
    written = TypeAdapter(Receipt).dump_python(RECEIPT, mode="json")
    assert written == {**asdict(RECEIPT), "stored_at": "2026-01-31T12:00:00Z", "subscriptions": []}
    assert TypeAdapter(Receipt).validate_python(written) == RECEIPT

"""What policies and other arguments do to our queues is found."""

from __future__ import annotations

from collections.abc import Mapping

import pytest

from signalbus.brokers.rabbitmq.audit import CHANGES, audit
from signalbus.brokers.rabbitmq.topology import LEDGER_BYTES, Queue, Topology

TOPOLOGY = Topology("signalbus", "quorum")


def as_found(queue: Queue, **members: object) -> Mapping[str, object]:
    """Return a queue as the management API tells of it."""
    return {"name": queue.name, "arguments": dict(queue.arguments), "effective_policy_definition": [], **members}


def ours() -> list[Queue]:
    declared = [*TOPOLOGY.base(), TOPOLOGY.subscription("billing"), *TOPOLOGY.delay_step(4)]
    return [each for each in declared if isinstance(each, Queue)]


def test_queues_as_we_declare_them_are_fine() -> None:
    assert len(ours()) == 5
    assert audit(TOPOLOGY, [as_found(queue) for queue in ours()]) == []


@pytest.mark.parametrize("queue", ours(), ids=lambda queue: queue.name)
def test_row_41_a_policy_that_drops_messages_is_told(queue: Queue) -> None:
    [drift] = audit(
        TOPOLOGY, [as_found(queue, policy="short", effective_policy_definition={"max-length": 10, "priority": 1})]
    )
    assert (drift.queue, drift.cause) == (queue.name, "policy 'short' sets max-length to 10")
    assert drift.effect == CHANGES["max-length"]


@pytest.mark.parametrize(
    ("name", "policy", "counts"),
    [
        ("signalbus.ledger", {"max-length-bytes": LEDGER_BYTES - 1}, True),
        ("signalbus.ledger", {"max-length-bytes": LEDGER_BYTES}, False),  # our own limit is as low
        ("signalbus.ledger", {"overflow": "reject-publish"}, False),  # an argument wins
        ("signalbus.ledger", {"message-ttl": 1}, True),
        ("signalbus.q.billing", {"dead-letter-exchange": "elsewhere"}, False),
        ("signalbus.q.billing", {"delivery-limit": 3}, True),
        ("signalbus.q.billing", {"expires": 1}, True),
        ("signalbus.q.billing", {"queue-leader-locator": "balanced"}, False),
    ],
)
def test_row_41_what_an_argument_of_ours_overrules_is_left_out(
    name: str, policy: dict[str, object], counts: bool
) -> None:
    [queue] = [each for each in ours() if each.name == name]
    found = audit(TOPOLOGY, [as_found(queue, operator_policy="op", effective_policy_definition=policy)])
    assert bool(found) is counts


def test_other_arguments_are_told_and_queues_of_others_are_not() -> None:
    [ledger] = [each for each in ours() if each.name == TOPOLOGY.ledger]
    arguments = {name: value for name, value in ledger.arguments.items() if name != "x-single-active-consumer"}
    [drift] = audit(TOPOLOGY, [as_found(ledger, arguments=arguments)])
    assert drift.cause == "x-single-active-consumer is None instead of True"
    others: list[Mapping[str, object]] = [
        {"name": "theirs", "effective_policy_definition": {"message-ttl": 1}},
        {"name": "signalbus.delay.soon", "effective_policy_definition": {"message-ttl": 1}},
        {"name": 7},
        {},
    ]
    assert audit(TOPOLOGY, others) == []

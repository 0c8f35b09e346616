"""What is declared: pure."""

from __future__ import annotations

import pytest

from signalbus.brokers.rabbitmq.topology import DELIVERY_LIMIT, Binding, Exchange, Queue, Topology
from signalbus.config import QueueType
from signalbus.errors import ConfigError

QUORUM = Topology("signalbus", "quorum")
CLASSIC = Topology("signalbus", "classic")


def _queues(topology: Topology) -> list[Queue]:
    declarations = [*topology.base(), topology.subscription("billing"), topology.words(), *topology.delay_step(8)]
    return [declaration for declaration in declarations if isinstance(declaration, Queue)]


@pytest.mark.parametrize("topology", [QUORUM, CLASSIC])
def test_every_durable_queue_says_its_type_and_refuses_when_it_is_full(topology: Topology) -> None:
    for queue in _queues(topology):
        assert queue.arguments["x-queue-type"] == topology.queue_type
        if queue.name == topology.ledger:
            assert queue.arguments["x-overflow"] == "drop-head"  # facts hold nobody up
            assert queue.arguments["x-max-length-bytes"]
            continue
        assert queue.arguments["x-overflow"] == "reject-publish"


def test_whatever_dead_letters_does_so_at_least_once() -> None:
    for queue in _queues(QUORUM):
        if "x-dead-letter-exchange" in queue.arguments:
            assert queue.arguments["x-dead-letter-strategy"] == "at-least-once"


def test_classic_queues_get_no_argument_that_they_do_not_know() -> None:
    for queue in _queues(CLASSIC):
        assert "x-delivery-limit" not in queue.arguments
        assert "x-dead-letter-strategy" not in queue.arguments


def test_a_subscription_names_its_limit_its_dead_letters_and_itself() -> None:
    queue = QUORUM.subscription("billing")
    assert queue.name == "signalbus.q.billing"
    assert queue.arguments["x-delivery-limit"] == DELIVERY_LIMIT
    assert queue.arguments["x-dead-letter-exchange"] == "signalbus.dead"
    assert queue.arguments["x-dead-letter-routing-key"] == "signalbus.q.billing"


def test_dead_letters_can_be_looked_at_any_number_of_times() -> None:
    (dead,) = [queue for queue in _queues(QUORUM) if queue.name == "signalbus.dead"]
    limit = dead.arguments["x-delivery-limit"]
    assert isinstance(limit, int)
    assert limit > 10**9


def test_routers_are_told_as_if_they_were_a_session_and_by_a_queue_that_outlives_them() -> None:
    words = QUORUM.words()
    assert words.name == QUORUM.inbox("router")
    assert not words.exclusive
    assert words.arguments["x-max-length-bytes"]


def test_a_temporary_queue_is_exclusive_and_new_each_time() -> None:
    name = QUORUM.temporary_queue("watch", "a1")
    assert name != QUORUM.temporary_queue("watch", "a2")
    assert QUORUM.temporary(name).exclusive


def test_a_delay_step_returns_by_the_routing_key() -> None:
    exchange, queue, binding = QUORUM.delay_step(8)
    assert exchange == Exchange(name="signalbus.delay.8", kind="fanout")
    assert isinstance(queue, Queue)
    assert queue.arguments["x-message-ttl"] == 8000
    assert queue.arguments["x-dead-letter-exchange"] == "signalbus.return"
    assert "x-dead-letter-routing-key" not in queue.arguments
    assert binding == Binding(queue="signalbus.delay.8", exchange="signalbus.delay.8")


def test_the_way_back_has_an_alternative_for_targets_that_are_gone() -> None:
    (returns,) = [item for item in QUORUM.base() if isinstance(item, Exchange) and item.name == "signalbus.return"]
    assert returns.arguments == {"alternate-exchange": "signalbus.lost"}


@pytest.mark.parametrize("queue_type", ["quorum", "classic"])
def test_names_carry_the_prefix(queue_type: QueueType) -> None:
    topology = Topology("shop.eu", queue_type)
    names = [item.name for item in topology.base() if not isinstance(item, Binding)]
    assert all(name.startswith("shop.eu.") for name in [*names, topology.registry, topology.queue("x")])


@pytest.mark.parametrize("name", ["<img>", "a\nb", "ü", "a" * 200, "x\x00"])
def test_a_name_that_cannot_be_a_queue_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="subscription name"):
        QUORUM.subscription(name)


def test_a_session_has_two_queues_that_go_with_its_connection_and_a_lease_that_tells_of_it() -> None:
    declared = QUORUM.session("s1", "info")
    queues = {item.name: item for item in declared}
    assert list(queues) == ["signalbus.s.s1", "signalbus.here.s1.info", "signalbus.lease.s1"]
    inbox, presence, lease = queues.values()
    assert all(queue.arguments["x-queue-type"] == "classic" for queue in queues.values())
    assert inbox.exclusive
    assert presence.exclusive
    assert not lease.exclusive
    assert lease.arguments["x-message-ttl"] == presence.arguments["x-message-ttl"] == 0
    assert lease.arguments["x-dead-letter-exchange"] == "signalbus.sessions"
    assert lease.arguments["x-dead-letter-routing-key"] == "down.s1"
    # Back to who asked: its inbox is the routing key.
    assert presence.arguments["x-dead-letter-exchange"] == ""
    assert "x-dead-letter-routing-key" not in presence.arguments
    bindings = QUORUM.answering("s1", "info")
    assert [(item.queue, item.exchange) for item in bindings] == [
        (inbox.name, "signalbus.roll"),
        (presence.name, "signalbus.roll"),
    ]


def test_only_exclusive_and_durable_queues_are_declared() -> None:
    # RabbitMQ 4.3 refuses transient queues that others may use; `Queue` cannot say anything else.
    assert not QUORUM.request_queue("quote.get", 7).exclusive


def test_a_request_queue_refuses_what_is_too_much_and_goes_with_its_last_responder() -> None:
    queue = QUORUM.request_queue("quote.get", 7)
    assert queue.name == "signalbus.r.quote.get"
    assert queue.auto_delete
    assert queue.arguments["x-max-length"] == 7
    assert queue.arguments["x-overflow"] == "reject-publish"
    assert "x-expires" in queue.arguments
    with pytest.raises(ConfigError, match="request type"):
        QUORUM.request_queue("x" * 128, 7)

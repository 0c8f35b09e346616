"""What an operator changed behind our back: queues whose arguments or policies are not what signalbus counts on. Pure.

AMQP tells nobody of policies; what is compared here comes from RabbitMQ's management API, see
https://www.rabbitmq.com/docs/management and https://www.rabbitmq.com/docs/policies.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from .topology import Argument, Queue, Topology

#: Keys of policies that change what becomes of messages, and how.
CHANGES = {
    "message-ttl": "messages that wait longer are dropped",
    "expires": "the queue is deleted when it is not used for a while",
    "max-length": "messages beyond the limit are dropped or refused",
    "max-length-bytes": "messages beyond the limit are dropped or refused",
    "overflow": "a full queue does something else with messages",
    "delivery-limit": "messages that come back too often are dropped or dead-lettered",
    "dead-letter-exchange": "messages that are given up go elsewhere",
    "dead-letter-routing-key": "messages that are given up go elsewhere",
    "dead-letter-strategy": "messages that are given up may be lost",
}
#: Where a policy and an argument both set a limit, the lower one counts; elsewhere the argument does.
LIMITS = ("message-ttl", "expires", "max-length", "max-length-bytes", "delivery-limit")


@dataclass(frozen=True, slots=True, kw_only=True)
class Drift:
    """One thing that is not as it should be. ``cause``: the policy, or the arguments of the queue."""

    queue: str
    cause: str
    effect: str


def audit(topology: Topology, found: Iterable[Mapping[str, object]]) -> list[Drift]:
    """Compare queues as the management API tells of them with what signalbus declares; what is not ours is left out."""
    drifts: list[Drift] = []
    for queue in found:
        name = queue.get("name")
        if isinstance(name, str) and (expected := _expected(topology, name)) is not None:
            drifts += [*_of_policies(name, expected, queue), *_of_arguments(name, expected, queue)]
    return drifts


def _expected(topology: Topology, name: str) -> Queue | None:
    """Return how we declare a durable queue of that name; None for what is not ours, or lives as long as a session."""
    known = {each.name: each for each in topology.base() if isinstance(each, Queue)}
    prefix = topology.queue("")
    if name.startswith(prefix):
        return topology.subscription(name.removeprefix(prefix))
    step = name.removeprefix(topology.delay(0)[:-1])
    if step.isdecimal():
        return next(each for each in topology.delay_step(int(step)) if isinstance(each, Queue))
    return known.get(name)


def _of_policies(name: str, expected: Queue, queue: Mapping[str, object]) -> Iterable[Drift]:
    policies = [each for each in (queue.get("policy"), queue.get("operator_policy")) if each]
    cause = f"policy {' and '.join(map(repr, policies))}" if policies else "a policy"
    for key, value in _table(queue, "effective_policy_definition").items():
        if key in CHANGES and _counts(key, value, expected.arguments.get(f"x-{key}")):
            yield Drift(queue=name, cause=f"{cause} sets {key} to {value}", effect=CHANGES[key])


def _counts(key: str, policy: object, argument: Argument | None) -> bool:
    """Whether a policy changes anything about a queue with this argument."""
    if argument is None:
        return True
    return key in LIMITS and isinstance(policy, int) and isinstance(argument, int) and policy < argument


def _of_arguments(name: str, expected: Queue, queue: Mapping[str, object]) -> Sequence[Drift]:
    found = _table(queue, "arguments")
    wrong = [
        f"{key} is {found.get(key)!r} instead of {expected.arguments.get(key)!r}"
        for key in sorted(found.keys() | expected.arguments.keys())
        if found.get(key) != expected.arguments.get(key)
    ]
    if not wrong:
        return ()
    return [
        Drift(queue=name, cause=", ".join(wrong), effect="signalbus cannot declare the queue, and does not serve it")
    ]


def _table(queue: Mapping[str, object], name: str) -> Mapping[str, object]:
    """Return a table of the answer; an empty one comes as an empty list."""
    value = queue.get(name)
    return cast("Mapping[str, object]", value) if isinstance(value, dict) else {}

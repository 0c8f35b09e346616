"""``signalbus topology``: the subscriptions, what their queues hold, and what we declare at RabbitMQ; deleting one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from ..brokers.base import QueueInfo
from ..config import RabbitUrl, parse_url
from ..escapes import escape
from .connect import command_bus, require_store
from .failures import CommandError, Exit
from .interrupts import run_interruptible
from .options import NO_OPTIONS, Options
from .output import Output, log_to_stderr
from .questions import ask

EXAMPLES = """Examples:
  signalbus topology
  signalbus topology --url amqp://user:password@host/ --json
  signalbus topology --delete audit"""


def topology(
    *,
    delete: Annotated[
        str | None, Parameter(help="Delete this subscription for good, with the signals that wait in its queue.")
    ] = None,
    options: Options = NO_OPTIONS,
) -> int:
    """List the subscriptions with their patterns, and what their queues hold now.

    With --json also the exchanges, queues and bindings that signalbus declares at RabbitMQ for them. A durable
    subscription that nobody serves any more goes on collecting signals until it is deleted.
    """
    log_to_stderr(options)
    require_store(options)
    return run_interruptible(lambda: _topology(options) if delete is None else _delete(delete, options))


async def _delete(name: str, options: Options) -> int:
    """Delete a subscription that nobody serves: who does would make it again."""
    output = Output(options)
    async with command_bus(options) as bus:
        queues = await bus.broker.queues(options.connect_seconds)
        found = next((queue for queue in queues if queue.name == name), None)
        if found is None:
            raise CommandError(f"there is no subscription {name!r}", code=Exit.NOT_FOUND, advice="signalbus topology")
        if found.consumers:
            raise CommandError(
                f"subscription {name!r} is served by {found.consumers} subscribers, which would make it again",
                code=Exit.FAILED,
                advice="end them, or take it out of their program; signalbus subscribers says who they are",
            )
        waiting = (found.ready or 0) + (found.unsettled or 0) + (found.delayed or 0)
        question = f"Delete subscription {name!r} with {waiting} signals that wait in it?"
        ask(question, options, otherwise="pass --yes")
        await bus.broker.delete(name, options.connect_seconds)
    if options.json:
        output.json(deleted=name, signals=waiting)
    else:
        output.line(f"deleted {escape(name)}, with {waiting} signals")
    return Exit.OK


async def _topology(options: Options) -> int:
    output = Output(options)
    async with command_bus(options) as bus:
        queues = await bus.broker.queues(options.connect_seconds)
        url = bus.settings.url
    if options.json:
        output.json(
            subscriptions=[asdict(queue) for queue in queues],
            declarations=_declarations(url, queues),
        )
    elif not queues:
        output.note("signalbus: no subscriptions; serve one: signalbus run module:bus")
    else:
        _print(queues, output)
    return Exit.OK


def _print(queues: Sequence[QueueInfo], output: Output) -> None:
    from rich import box
    from rich.table import Table

    table = Table("subscription", "patterns", "lives", box=box.SIMPLE_HEAD)
    for heading in ("ready", "in hand", "delayed", "subscribers"):
        table.add_column(heading, justify="right")
    for queue in queues:
        table.add_row(
            escape(queue.name),
            escape(" ".join(queue.patterns)),
            "for good" if queue.durable else "with its session",
            *(("?" if count is None else str(count)) for count in (queue.ready, queue.unsettled, queue.delayed)),
            str(queue.consumers) if queue.consumers else "✗ none",
        )
    output.table(table)


def _declarations(url: str, queues: Sequence[QueueInfo]) -> list[dict[str, object]]:
    """Return what signalbus declares at RabbitMQ, as data; nothing for the embedded broker."""
    place = parse_url(url)
    if not isinstance(place, RabbitUrl):
        return []
    from ..brokers.rabbitmq.topology import Topology

    topology = Topology(place.prefix, place.queue_type)
    declarations = [*topology.base(), topology.registry_stream()]
    for queue in queues:
        if queue.durable:
            declared = topology.subscription(queue.name)
            declarations.append(declared)
            declarations += topology.bindings(declared.name, queue.patterns, return_key=declared.name)
    return [{"kind": type(declaration).__name__.lower(), **_plain(declaration)} for declaration in declarations]


def _plain(declaration: object) -> dict[str, object]:
    slots: Sequence[str] = getattr(type(declaration), "__slots__", ())
    # An exchange's own kind is its type, in RabbitMQ's words.
    return {"type" if name == "kind" else name: getattr(declaration, name) for name in slots}

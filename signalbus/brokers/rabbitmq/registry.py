"""The durable subscriptions of the vhost, kept in a stream: a record for each change, read without consuming.

A binding cannot be listed over AMQP, so a process that changes the patterns of a subscription has to know the earlier
ones. A record is written before its bindings are made: every binding that exists is in some record.

A stream tells neither its length nor its end, and a broker that stands still for a moment looks like an empty one. So
who finds no record soon writes one that says nothing, and waits until a record comes: there is one from then on, as
retention never takes the newest.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import cast

from aiormq.abc import AbstractChannel, AbstractConnection
from pamqp import commands
from pamqp.common import FieldTable

from .control import opened
from .deliveries import consume
from .driver import INTERNAL_ERROR, NOT_FOUND, NOT_IMPLEMENTED, DriverFailure, FrameWriter, call
from .lane import Received
from .topology import Topology
from .wire import ack

log = logging.getLogger(__name__)

STEP_SECONDS = 10.0
EMPTY_SECONDS = 0.5  # no record after this long: it may be empty
TAIL_SECONDS = 0.05  # records of the last chunk arrive together
PREFETCH = 1_000
NOTHING: Mapping[str, object] = {}  # a record that says nothing: every reader ever passed over what has no name


@dataclass(frozen=True, slots=True)
class Registered:
    """A durable subscription. ``ever``: all patterns it may still be bound with."""

    name: str
    patterns: tuple[str, ...]
    ever: frozenset[str]


class Registry:
    """Reads and writes the stream. ``unavailable`` says why there is none (streams are a feature flag)."""

    def __init__(self, topology: Topology) -> None:
        self.unavailable: str | None = None
        self._disabled = False
        self._filled = False  # a record was there on this connection, so an empty stream is no longer to be expected
        self._topology = topology

    async def prepare(self, connection: AbstractConnection) -> None:
        """Make the stream, well before anybody reads it.

        RabbitMQ closes the whole connection (506) when a stream is read that is only just being made.
        """
        self._filled = False
        async with opened(connection) as channel:
            await self._declare(channel)

    async def read(self, connection: AbstractConnection) -> Mapping[str, Registered]:
        """Return the durable subscriptions by name; nothing when there is no stream. Raises `DriverFailure`."""
        if self._disabled:
            return {}
        try:
            async with opened(connection) as channel:
                return _fold([_record(message) for message in await self._messages(connection, channel)])
        except DriverFailure as failure:
            if failure.code is None:
                raise
            if failure.code != NOT_FOUND:
                self._missing(failure)
            return {}

    async def write(
        self, connection: AbstractConnection, name: str, patterns: tuple[str, ...] | None, session: str
    ) -> None:
        """Append a record; no patterns mean deleted. Raises `DriverFailure`."""
        await self._append(connection, {"name": name, "patterns": patterns, "session": session})

    async def _append(self, connection: AbstractConnection, record: Mapping[str, object]) -> bool:
        """Append a record; False if there is no stream. Raises `DriverFailure`."""
        if self._disabled:
            return False
        channel = await call(connection.channel(), STEP_SECONDS)
        try:
            await self._declare(channel)
            if self.unavailable is not None:
                return False
            answer = await call(
                channel.basic_publish(
                    json.dumps(record).encode(),
                    routing_key=self._topology.registry,
                    properties=commands.Basic.Properties(delivery_mode=2, content_type="application/json"),
                ),
                STEP_SECONDS,
            )
            if not isinstance(answer, commands.Basic.Ack):
                raise DriverFailure("the registry of subscriptions takes no records")
            self._filled = True
            return True
        finally:
            if not channel.is_closed:
                await call(channel.close(), STEP_SECONDS)

    async def _declare(self, channel: AbstractChannel) -> None:
        if self._disabled:
            return
        stream = self._topology.registry_stream()
        try:
            await call(
                channel.queue_declare(stream.name, durable=True, arguments=cast("FieldTable", dict(stream.arguments))),
                STEP_SECONDS,
            )
        except DriverFailure as failure:
            if failure.code is None:
                raise
            self._missing(failure)
            # Costs the connection each time, so never again: an operator enables streams, and restarts us.
            self._disabled = failure.code in (NOT_IMPLEMENTED, INTERNAL_ERROR)
        else:
            self.unavailable = None

    def _missing(self, failure: DriverFailure) -> None:
        if self.unavailable is None:
            log.warning("no registry of subscriptions: %s", failure.reason)
        self.unavailable = failure.reason

    async def _messages(self, connection: AbstractConnection, channel: AbstractChannel) -> list[Received]:
        """Return every record: the newest tells how far to read from the first one."""
        await call(channel.basic_qos(prefetch_count=PREFETCH), STEP_SECONDS)
        newest = _Reading(channel)
        await newest.start(self._topology.registry, "last")
        found = await self._arrives(newest, connection)
        await newest.stop()
        if not found:
            return []
        reading = _Reading(channel)
        await reading.start(self._topology.registry, "first")
        if not await reading.wait(newest.offset, STEP_SECONDS):
            raise DriverFailure("the registry of subscriptions could not be read to its end")
        while await reading.wait(reading.offset + 1, TAIL_SECONDS):
            pass
        await reading.stop()
        return reading.messages

    async def _arrives(self, newest: _Reading, connection: AbstractConnection) -> bool:
        """Wait for a record, whoever has to write it; False if there is no stream. Raises `DriverFailure`."""
        # Only at first, as who publishes during an alarm is not answered any more. And once only: an operator may have
        # deleted the stream meanwhile.
        patience, self._filled = STEP_SECONDS if self._filled else EMPTY_SECONDS, False
        if not await newest.wait(0, patience):
            if not await self._append(connection, NOTHING):
                return False
            if not await newest.wait(0, STEP_SECONDS):
                raise DriverFailure("the registry of subscriptions hands out none of its records")
        self._filled = True
        return True


class _Reading:
    def __init__(self, channel: AbstractChannel) -> None:
        self.messages: list[Received] = []
        self.offset = -1
        self._channel = channel
        self._tag = ""
        self._arrived = asyncio.Event()
        self._writer = FrameWriter(channel)

    async def start(self, stream: str, offset: str) -> None:
        self._tag = await consume(self._channel, stream, self._take, arguments={"x-stream-offset": offset})

    async def stop(self) -> None:
        """Cancel. RabbitMQ 3.10 counts a stream's consumer for ever when only its channel is closed."""
        await call(self._channel.basic_cancel(self._tag), STEP_SECONDS)

    async def wait(self, offset: int, timeout: float) -> bool:
        """Wait until the record at ``offset`` has arrived; False after ``timeout`` seconds without a record."""
        while self.offset < offset:
            self._arrived.clear()
            try:
                async with asyncio.timeout(timeout):
                    await self._arrived.wait()
            except TimeoutError:
                return self.offset >= offset  # it may have come in the same turn of the loop
        return True

    def _take(self, message: Received) -> None:
        offset = message.properties.headers.get("x-stream-offset")
        self.messages.append(message)
        self.offset = offset if isinstance(offset, int) else self.offset + 1
        self._arrived.set()
        # Streams hand out more only as credit is given back.
        self._writer.write(ack(self._channel.number, message.tag))


def _record(message: Received) -> Mapping[str, object]:
    try:
        record: object = json.loads(message.body)
    except ValueError:
        return {}
    return cast("dict[str, object]", record) if isinstance(record, dict) else {}


def _fold(records: list[Mapping[str, object]]) -> Mapping[str, Registered]:
    known: dict[str, Registered] = {}
    for record in records:
        name, patterns = record.get("name"), record.get("patterns")
        if not isinstance(name, str):
            continue
        if patterns is None:
            known.pop(name, None)
        elif isinstance(patterns, list):
            current = tuple(str(pattern) for pattern in cast("list[object]", patterns))
            earlier = known[name].ever if name in known else frozenset[str]()
            known[name] = Registered(name, current, earlier | frozenset(current))
    return known

"""Signals from JSON lines: read what is there, publish it in chunks and in order, account for every line."""

from __future__ import annotations

import asyncio
import contextlib
import os
import stat
import sys
from collections.abc import AsyncIterator, Callable, Generator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Literal, cast

from ..bus import Bus
from ..codec import JSON, STRUCTURED, EncodedSignal, decode, decode_data, encode
from ..errors import BatchError, BrokerError, DecodeError, InvalidSignal, SignalBusError
from ..receipts import Receipt
from ..signals import Signal, new_id
from .failures import CommandError, Exit, exit_code
from .output import Output

if TYPE_CHECKING:
    from rich.progress import Progress

CHUNK = 2_000  # signals handed to `publish_many` at once
READ_BYTES = 1 << 18
LINE_LIMIT = 64 << 20  # bytes; far above what a bus takes, so this is no signal but a missing line end

Line = tuple[int, bytes]


@contextlib.contextmanager
def open_input(name: str) -> Generator[BinaryIO]:
    """Open ``@file``, or standard input for ``@-``, unbuffered so that what is there can be read at once."""
    if name == "@-":
        yield cast("BinaryIO", sys.stdin.buffer)
        return
    try:
        stream = Path(name.removeprefix("@")).open("rb")  # noqa: SIM115 - closed below
    except FileNotFoundError as error:
        raise CommandError(f"{name[1:]!a} does not exist", code=Exit.NOT_FOUND) from error
    except IsADirectoryError as error:
        raise CommandError(f"{name[1:]!a} is a directory", code=Exit.USAGE) from error
    with stream:
        yield stream


@dataclass(slots=True, kw_only=True)
class LineReport:
    """What became of the lines. ``on_bad`` is told of each that was not published."""

    on_bad: Callable[[int, str], None]
    published: int = 0
    unrouted: int = 0
    bad_lines: list[int] = field(default_factory=list[int])
    worst: Exit = Exit.OK

    def bad(self, number: int, error: BaseException) -> None:
        """Account for a line that was not published."""
        self.bad_lines.append(number)
        self.worst = exit_code(error) if isinstance(error, BrokerError) else self.worst
        self.on_bad(number, str(error))

    @property
    def exit_code(self) -> int:
        """0 if every line was published, 6 if some were not, or what the broker's failure stands for."""
        if self.worst is not Exit.OK:
            return self.worst
        return Exit.BAD_OUTCOME if self.bad_lines else Exit.OK

    def fields(self) -> dict[str, object]:
        """Return the report for ``--json``."""
        return {
            "published": self.published,
            "unrouted": self.unrouted,
            "failed": len(self.bad_lines),
            "bad_lines": self.bad_lines,
        }

    def summary(self) -> str:
        """Return the report for people."""
        parts = [f"{self.published} signals"]
        if self.unrouted:
            parts.append(f"{self.unrouted} of them to no subscription")
        if self.bad_lines:
            failed = len(self.bad_lines)
            parts.append(f"{failed} {'line' if failed == 1 else 'lines'} failed")
        return ", ".join(parts)


async def publish_lines(
    source: BinaryIO,
    template: Signal | None,
    bus: Bus | None,
    report: LineReport,
    unroutable: Literal["raise", "ignore"],
    output: Output,
) -> None:
    """Publish every line of ``source``, or only check it without a bus. Stops when the broker fails.

    A line is the data of a signal like ``template``, or a whole CloudEvent.
    """
    with _progress(source, output) as advance:
        async for chunk, position in _chunks(source):
            signals: list[tuple[int, Signal]] = []
            for number, line in chunk:
                try:
                    signal = _signal(line, template)
                    encode(signal, default_source="signalbus")
                    signals.append((number, signal))
                except (DecodeError, InvalidSignal, CommandError) as error:
                    report.bad(number, error)
            if bus is None:
                report.published += len(signals)
            elif signals and not await _publish(bus, signals, report, unroutable):
                report.on_bad(chunk[-1][0] + 1, "this line and those after it were not read: the broker failed")
                return
            advance(position, len(chunk))


async def _publish(
    bus: Bus, signals: list[tuple[int, Signal]], report: LineReport, unroutable: Literal["raise", "ignore"]
) -> bool:
    """Publish a chunk; return whether going on makes sense."""
    outcomes: list[Receipt | SignalBusError]
    try:
        outcomes = list(await bus.publish_many([signal for _, signal in signals], unroutable=unroutable))
    except BatchError as error:
        outcomes = list(error.outcomes)
    except InvalidSignal:
        outcomes = [await _publish_alone(bus, signal, unroutable) for _, signal in signals]
    for (number, _), outcome in zip(signals, outcomes, strict=True):
        if isinstance(outcome, Receipt):
            report.published += 1
            report.unrouted += not outcome.routed
        else:
            report.bad(number, outcome)
    return not any(isinstance(outcome, BrokerError) for outcome in outcomes)


async def _publish_alone(bus: Bus, signal: Signal, unroutable: Literal["raise", "ignore"]) -> Receipt | SignalBusError:
    """Publish one of a chunk that has a signal over the size limit."""
    try:
        return await bus.publish(signal, unroutable=unroutable)
    except SignalBusError as error:
        return error


def _signal(line: bytes, template: Signal | None) -> Signal:
    if len(line) > LINE_LIMIT:
        raise DecodeError(f"more than {LINE_LIMIT} bytes")
    data = decode_data(line, JSON)
    if isinstance(data, dict):
        fields = cast("dict[str, object]", data)
        if "schema_version" in fields and isinstance(fields.get("event"), dict):
            return _whole(_inner(line))  # as `signalbus tail --json` prints it
        if "specversion" in fields and "type" in fields:
            return _whole(line)
    if template is None:
        raise DecodeError("not a whole CloudEvent; give the type of the signals: signalbus publish TYPE --lines")
    return replace(template, id=new_id(), time=Signal(type=template.type).time, data=line)


def _whole(line: bytes) -> Signal:
    return decode(EncodedSignal("", "", {}, line, STRUCTURED))


def _inner(line: bytes) -> bytes:
    import json

    return json.dumps(json.loads(line)["event"]).encode()


async def _chunks(source: BinaryIO) -> AsyncIterator[tuple[list[Line], int]]:
    """Yield numbered lines, what is there at a time, with the position in the file; blank lines are left out."""
    number, rest, position = 0, b"", 0
    pending: list[Line] = []
    while data := await _read(source):
        position += len(data)
        pieces = (rest + data).split(b"\n") if b"\n" in data else [rest + data]
        rest = pieces.pop()
        for piece in pieces:
            number += 1
            if piece.strip():
                pending.append((number, piece.strip()))
        while len(pending) >= CHUNK:
            yield pending[:CHUNK], position
            del pending[:CHUNK]
        if pending and not _is_file(source):
            yield pending, position  # from a pipe: nobody knows when more will come
            pending = []
        if len(rest) > LINE_LIMIT:
            break
    if rest.strip():
        pending.append((number + 1, rest.strip()))
    if pending:
        yield pending, position


async def _read(source: BinaryIO) -> bytes:
    """Read what is there; waiting for a pipe does not keep Ctrl-C from working."""
    descriptor = source.fileno()
    if not _is_file(source):
        loop = asyncio.get_running_loop()
        ready = asyncio.Event()
        try:
            loop.add_reader(descriptor, ready.set)
        except PermissionError:
            return os.read(descriptor, READ_BYTES)  # /dev/null and the like cannot be waited for, and never block
        try:
            await ready.wait()
        finally:
            loop.remove_reader(descriptor)
    return os.read(descriptor, READ_BYTES)


def _is_file(source: BinaryIO) -> bool:
    return stat.S_ISREG(os.fstat(source.fileno()).st_mode)


@contextlib.contextmanager
def _progress(source: BinaryIO, output: Output) -> Generator[Callable[[int, int], None]]:
    """Show how far we are, on a terminal; the yielded function takes position and lines."""
    if not output.animated:
        yield lambda _position, _lines: None
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    total = os.fstat(source.fileno()).st_size if _is_file(source) else None
    columns = (TextColumn("publishing"), BarColumn(), TextColumn("{task.fields[lines]} lines  {task.fields[rate]}/s"))
    progress: Progress
    with Progress(*columns, TimeRemainingColumn(), console=output.console(stderr=True), transient=True) as progress:
        task = progress.add_task("publish", total=total, lines=0, rate="-")
        done = 0

        def advance(position: int, lines: int) -> None:
            nonlocal done
            done += lines
            elapsed = progress.tasks[0].elapsed or 0.0
            progress.update(task, completed=position, lines=done, rate=f"{done / elapsed:.0f}" if elapsed else "-")

        yield advance

"""The checks of the doctor. Each finding says what was found and, unless it is fine, what to do."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
import sqlite3
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ..brokers.base import BrokerState, QueueInfo
from ..bus import Bus
from ..config import RabbitUrl, Settings, SqliteUrl, masked, parse_url
from ..errors import ConfigError, SignalBusError
from ..escapes import escape
from .connect import command_bus
from .failures import Exit, exit_code
from .options import Options

LOW_SPACE = 1 << 30
LOW_FACTOR = 4  # below this many times the limit at which publishes are refused, it is time to look

#: File systems on which locks or shared memory of several machines cannot be relied upon.
NETWORK = {"nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "ceph", "glusterfs", "fuse.glusterfs", "afs"}


class State(StrEnum):
    """How a check ended."""

    OK = "ok"
    WARNING = "warning"
    BAD = "bad"


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """The result of one check. ``code`` is the exit code that a bad one stands for."""

    check: str
    found: str
    state: State = State.OK
    advice: str = ""
    code: Exit = Exit.FAILED


def check_machine(options: Options) -> Iterator[Finding]:
    """Check versions and, for the embedded broker, the place of its file."""
    yield Finding(check="signalbus", found=importlib.metadata.version("signalbus-router"))
    yield Finding(check="python", found=f"{platform.python_version()} at {platform.platform()}")
    try:
        place = parse_url(Settings.read(url=options.url).url)
    except ConfigError as error:
        yield Finding(
            check="url",
            found=str(error),
            state=State.BAD,
            advice="set --url or SIGNALBUS_URL",
            code=Exit.USAGE,
        )
        return
    if isinstance(place, SqliteUrl):
        yield _sqlite()
        yield from _place(place)
    else:
        driver = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in ("aio-pika", "aiormq"))
        yield Finding(check="driver", found=driver)


async def check_broker(options: Options) -> list[Finding]:
    """Open the broker, if it is there, and ask it."""
    try:
        settings = Settings.read(url=options.url)
        place = parse_url(settings.url)
    except ConfigError:
        return []  # reported by the other checks
    shown = masked(settings.url)
    if isinstance(place, SqliteUrl) and not place.path.exists():
        return [Finding(check="broker", found=f"{place.path} does not exist yet; the first bus makes it")]
    try:
        async with command_bus(options) as bus:
            return await _ask(bus, shown, options)
    except SignalBusError as error:
        code = exit_code(error)
        advice = (
            "is RabbitMQ running, and does the URL name its host, port, user and vhost?"
            if isinstance(place, RabbitUrl)
            else "look at the file, its rights and its directory"
        )
        return [Finding(check="broker", found=escape(str(error)), state=State.BAD, advice=advice, code=code)]


async def _ask(bus: Bus, shown: str, options: Options) -> list[Finding]:
    queues = await bus.broker.queues(options.connect_seconds)
    dead = await bus.broker.dead_letters(1, options.connect_seconds)
    health = bus.broker.health()
    up = health.state is BrokerState.UP
    findings = [
        Finding(
            check="broker",
            found=f"{shown} is {health.state}" + (f": {escape(health.reason)}" if health.reason else ""),
            state=State.OK if up else State.WARNING,
            advice="" if up else "see the log of the broker",
        )
    ]
    findings += [
        Finding(
            check="broker",
            found=escape(warning),
            state=State.WARNING,
            advice="compare with: signalbus topology --json",
        )
        for warning in health.warnings
    ]
    findings += _queues(queues)
    if dead:
        findings.append(
            Finding(
                check="dead letters",
                found=f"the oldest is of {escape(dead[0].subscription)}: {escape(dead[0].detail)[:200]}",
                state=State.WARNING,
                advice="find the cause, then publish them again",
            )
        )
    return findings


def _queues(queues: Sequence[QueueInfo]) -> list[Finding]:
    unserved = [queue for queue in queues if not queue.consumers]
    if not unserved:
        return [Finding(check="queues", found=f"{len(queues)} subscriptions, all of them served")]
    names = ", ".join(f"{escape(queue.name)} ({queue.ready} waiting)" for queue in unserved[:5])
    return [
        Finding(
            check="queues",
            found=f"{len(unserved)} of {len(queues)} subscriptions are not served: {names}",
            state=State.WARNING if any(queue.ready for queue in unserved) else State.OK,
            advice="serve them: signalbus run module:bus",
        )
    ]


def _sqlite() -> Finding:
    from ..brokers.sqlite.schema import OLDEST_SQLITE

    version = sqlite3.sqlite_version_info
    if version < OLDEST_SQLITE:
        return Finding(
            check="sqlite",
            found=sqlite3.sqlite_version,
            state=State.BAD,
            advice=f"signalbus needs {'.'.join(map(str, OLDEST_SQLITE))} or newer; use a newer Python",
        )
    return Finding(check="sqlite", found=sqlite3.sqlite_version)


def _place(place: SqliteUrl) -> Iterator[Finding]:
    directory = place.path.parent
    if not directory.is_dir():
        yield Finding(
            check="directory", found=f"{directory} does not exist", state=State.BAD, advice=f"mkdir -p {directory}"
        )
        return
    if not os.access(directory, os.W_OK | os.X_OK):
        yield Finding(
            check="directory",
            found=f"{directory} is not writable for this user",
            state=State.BAD,
            advice="change its owner or its mode, or use another place",
            code=Exit.NOT_PERMITTED,
        )
    yield _file_system(directory)
    yield _space(directory, place.min_free_bytes)


def _file_system(directory: Path) -> Finding:
    kind = _mounted(directory)
    if kind in NETWORK:
        return Finding(
            check="file system",
            found=f"{directory} is on {kind}",
            state=State.BAD,
            advice="SQLite needs a local disk; for several machines use amqp://",
        )
    return Finding(check="file system", found=f"{kind or 'of unknown kind'} at {directory}")


def _mounted(directory: Path) -> str:
    """Return the kind of the file system; an empty string where the system does not tell."""
    try:
        mounts = Path("/proc/self/mounts").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return ""
    best, kind = "", ""
    for line in mounts:
        _, point, name, *_ = line.split(" ")
        point = point.replace("\\040", " ")
        if directory.resolve().is_relative_to(point) and len(point) >= len(best):
            best, kind = point, name
    return kind


def _space(directory: Path, limit: int) -> Finding:
    free = shutil.disk_usage(directory).free
    found = f"{free / (1 << 30):.1f} GiB free"
    if free < limit:
        return Finding(
            check="space",
            found=f"{found}; publishes are refused below {limit >> 20} MiB",
            state=State.BAD,
            advice="make room on the disk",
        )
    low = free < max(LOW_SPACE, LOW_FACTOR * limit)
    return Finding(
        check="space",
        found=found,
        state=State.WARNING if low else State.OK,
        advice="make room on the disk" if low else "",
    )

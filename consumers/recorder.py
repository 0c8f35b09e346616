"""Archives signals in rotating files of JSON lines, each signal once: ``signalbus run consumers.recorder:bus``.

A line is a whole CloudEvent (JSON event format), so that ``signalbus publish --lines @file`` publishes it again. A
handler returns, and the signal is acked, after the line is on disk (fsync); so ``kill -9`` and power cuts lose nothing.

Redelivered signals are recognised by source and id among the last RECORDER_WINDOW signals, also after a restart,
since the ids are read back from the files. A signal that comes again later than that, as from a replay of old dead
letters, is archived a second time.

One recorder for each directory; a second one is refused. Settings, by environment:

====================  ==================  ==========================================================
RECORDER_PATTERN      ``#``               patterns of the signals, separated by commas
RECORDER_DIRECTORY    ``recorded``        where the files are; made if needed
RECORDER_MAX_BYTES    ``67108864``        a file that would grow beyond this is followed by a new one
RECORDER_WINDOW       ``100000``          signals among which duplicates are recognised
RECORDER_CONCURRENCY  ``256``             signals at a time, which share a write and an fsync
RECORDER_NAME         ``recorder``        name of the subscription
====================  ==================  ==========================================================
"""

from __future__ import annotations

import atexit
import base64
import os
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, timedelta
from pathlib import Path

from signalbus import Bus, ConfigError, RetryPolicy, Signal

from .archive import Archive, ArchiveInUse, Entry

#: A full disk may last for hours, and a dead letter would be a hole in the archive.
RETRY = RetryPolicy(max_attempts=1_000_000, initial=timedelta(seconds=1), max_delay=timedelta(minutes=1))

MAX_BYTES = 64 * 1024 * 1024
WINDOW = 100_000
CONCURRENCY = 256

_TEXTS = ("subject", "dataschema", "correlationid", "causationid", "traceparent", "tracestate")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Settings of a recorder."""

    patterns: tuple[str, ...] = ("#",)
    directory: Path = Path("recorded")
    max_bytes: int = MAX_BYTES
    window: int = WINDOW
    concurrency: int = CONCURRENCY
    name: str = "recorder"

    @classmethod
    def read(cls, environment: Mapping[str, str]) -> Settings:
        """Read ``RECORDER_*``. Raises `ConfigError`."""
        patterns = environment.get("RECORDER_PATTERN", "#").split(",")
        return cls(
            patterns=tuple(pattern.strip() for pattern in patterns),
            directory=Path(environment.get("RECORDER_DIRECTORY", "recorded")),
            max_bytes=_positive(environment, "RECORDER_MAX_BYTES", MAX_BYTES),
            window=_positive(environment, "RECORDER_WINDOW", WINDOW),
            concurrency=_positive(environment, "RECORDER_CONCURRENCY", CONCURRENCY),
            name=environment.get("RECORDER_NAME", "recorder"),
        )


def bus() -> Bus:
    """Make the bus of the recorder, with the settings of the environment. Raises `ConfigError`."""
    settings = Settings.read(os.environ)
    recording = Bus(name="signalbus-recorder")
    try:
        archive = Archive(settings.directory, key=key_of, max_bytes=settings.max_bytes, window=settings.window)
    except ArchiveInUse as error:
        raise ConfigError(f"{error}; give this recorder another RECORDER_DIRECTORY") from error
    except OSError as error:
        raise ConfigError(f"RECORDER_DIRECTORY {settings.directory} cannot be used: {error}") from error
    atexit.register(archive.close)

    async def record(signal: Signal) -> None:
        entry = event_of(signal)
        await archive.add(key_of(entry), entry)

    recording.subscribe(
        *settings.patterns, handler=record, name=settings.name, retry=RETRY, concurrency=settings.concurrency
    )
    return recording


def event_of(signal: Signal) -> dict[str, object]:
    """Return a signal in the JSON event format of CloudEvents."""
    event: dict[str, object] = {
        "specversion": "1.0",
        "id": signal.id,
        "type": signal.type,
        "source": signal.source,
        "time": signal.time.astimezone(UTC).isoformat().replace("+00:00", "Z"),
    }
    event |= {name: value for name in _TEXTS if (value := getattr(signal, name)) is not None}
    event |= signal.extensions
    if signal.datacontenttype is not None:
        event["datacontenttype"] = signal.datacontenttype
    if isinstance(signal.data, bytes):
        event["data_base64"] = base64.b64encode(signal.data).decode()
    elif signal.data is not None:
        event["data"] = signal.data
    return event


def key_of(entry: Entry) -> str:
    """Return what tells signals apart: by CloudEvents, source and id together."""
    return f"{entry.get('source')} {entry.get('id')}"


def _positive(environment: Mapping[str, str], name: str, default: int) -> int:
    text = environment.get(name)
    if text is None:
        return default
    if not text.isascii() or not text.isdigit() or int(text) < 1:
        raise ConfigError(f"{name} is {text[:80]!a}; it must be a number of at least 1")
    return int(text)

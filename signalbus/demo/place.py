"""Where a demo runs: a directory for result files, a broker, names of its own; and tidying up after it."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode

from signalbus import Bus, SignalBusError

from ..config import RabbitUrl, parse_url
from .flights import PATTERNS

MANIFEST = "demo.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A demo's surroundings. ``kind`` is the broker for people."""

    run: str
    rows: int | None
    directory: Path
    url: str
    kind: str

    def subscription(self, name: str) -> str:
        """Return the name of a subscription at the broker: its own for each run."""
        return f"demo-{self.run}-{name}"

    @property
    def store(self) -> Path:
        """Where the demo's router keeps its ledger, on RabbitMQ."""
        return self.directory / "ledger.db"

    def results(self, name: str) -> Path:
        """Return the result file of a subscription."""
        return self.directory / f"{name}.results.db"


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What reconciling a kept demo later needs to know; ``dead`` has the dead letters of each subscription."""

    run: str
    rows: int | None
    published: int
    dead: dict[str, list[str]]

    def write(self, directory: Path) -> None:
        """Keep it with the result files."""
        (directory / MANIFEST).write_text(json.dumps(asdict(self), indent=1), encoding="utf-8")

    @classmethod
    def read(cls, directory: Path) -> Manifest:
        """Read it back. Raises `FileNotFoundError`."""
        return cls(**json.loads((directory / MANIFEST).read_text(encoding="utf-8")))


def make_place(run: str, rows: int | None, url: str | None, keep: Path | None) -> Place:
    """Make the directory, and choose the broker: the given one, or a fresh SQLite file."""
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=False)
    directory = keep.absolute() if keep is not None else Path(tempfile.mkdtemp(prefix="signalbus-demo-"))
    if url is None:
        path = quote(str(directory / "signalbus.db"))
        return Place(run=run, rows=rows, directory=directory, url=f"sqlite:///{path}", kind="SQLite, a fresh file")
    parsed = parse_url(url)
    if not isinstance(parsed, RabbitUrl):
        return Place(run=run, rows=rows, directory=directory, url=url, kind="SQLite")
    # A prefix of its own: the flights reach no subscription of anybody else.
    base, _, query = url.partition("?")
    options = dict(parse_qsl(query)) | {"prefix": f"{parsed.prefix}-demo"}
    url = f"{base}?{urlencode(options)}"
    return Place(run=run, rows=rows, directory=directory, url=url, kind="RabbitMQ")


@asynccontextmanager
async def opened(place: Place, timeout: float, *, keep: bool) -> AsyncGenerator[Bus]:
    """Open a bus for looking; at the end delete the demo's subscriptions, and its directory unless it is kept."""
    try:
        bus = Bus(place.url, name="signalbus-demo", connect_timeout=timeout)
        async with bus:
            try:
                yield bus
            finally:
                for name in PATTERNS:
                    try:
                        await bus.broker.delete(place.subscription(name), timeout)
                    except SignalBusError:
                        pass  # the broker is gone; what ended the demo is the better message
    finally:
        if not keep:
            shutil.rmtree(place.directory, ignore_errors=True)

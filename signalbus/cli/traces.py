"""What the ``trace`` commands share: where traces are, which signals are asked for, and which one is meant."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..brokers.sqlite.broker import SqliteBroker
from ..config import Settings, SqliteUrl, parse_url
from ..trace.listing import Query
from ..trace.model import State
from ..trace.reader import TraceReader
from ..trace.store import SqliteStore
from ..web.remote_traces import RemoteTraces
from .connect import command_bus, require_store
from .daemon import find_daemon
from .failures import CommandError, Exit
from .moments import read_moment
from .options import Options, flag
from .output import Output
from .prefixes import check_prefix, the_one

STORE = "SIGNALBUS_STORE"
LISTING = "signalbus trace list"
_STATES = {state.value.replace(" ", "-"): state for state in State}

StoreOption = Annotated[
    Path | None,
    Parameter(help="The file that `signalbus router` keeps, where the broker is RabbitMQ [env: SIGNALBUS_STORE]."),
]


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenTraces:
    """Open traces. ``consumers``: how many serve each subscription; None where only the broker would know."""

    traces: TraceReader
    consumers: Mapping[str, int] | None


@asynccontextmanager
async def inspection(options: Options, store: Path | None, router: str | None) -> AsyncGenerator[OpenTraces]:
    """Yield the traces of the embedded broker's file, of a router that answers, or of a router's store."""
    settings = Settings.read(url=options.url)
    place = parse_url(settings.url)
    path = store or (Path(os.environ[STORE]) if STORE in os.environ and not isinstance(place, SqliteUrl) else None)
    if path is not None:
        async with TraceReader(await asyncio.to_thread(_opened, path)) as traces:
            yield OpenTraces(traces=traces, consumers=None)
        return
    if (daemon := await find_daemon(options, router)) is not None:
        queues = await asyncio.to_thread(daemon.topology)
        async with RemoteTraces(daemon).reader() as traces:
            yield OpenTraces(traces=traces, consumers={queue.name: queue.consumers for queue in queues})
        return
    if not isinstance(place, SqliteUrl):
        raise CommandError(
            "traces of a bus on RabbitMQ are kept by a router, and none answers; say where it is, or its store",
            code=Exit.USAGE,
            advice="--router URL or SIGNALBUS_ROUTER, --store ledger.db or SIGNALBUS_STORE; "
            "signalbus router --store ledger.db --listen 127.0.0.1:8642 is one",
        )
    require_store(options)
    async with command_bus(options, ledger="off") as bus:
        assert isinstance(bus.broker, SqliteBroker)
        queues = await bus.broker.queues(options.connect_seconds)
        async with await bus.broker.traces(options.connect_seconds) as traces:
            yield OpenTraces(traces=traces, consumers={queue.name: queue.consumers for queue in queues})


def _opened(path: Path) -> SqliteStore:
    if not path.exists():
        raise CommandError(
            f"{path} does not exist, so there is nothing to show",
            code=Exit.NOT_FOUND,
            advice="signalbus router --store PATH makes it",
        )
    return SqliteStore(path, read_only=True)


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class Filters:
    """Which signals to show."""

    since: Annotated[str | None, Parameter(help="From then on: 15m, 2h, 3d ago, or RFC 3339.")] = None
    until: Annotated[str | None, Parameter(help="Up to then.")] = None
    subscription: Annotated[str | None, Parameter(help="That went to this subscription.")] = None
    state: Annotated[
        tuple[str, ...],
        Parameter(negative=(), help=f"In one of these states (there): {', '.join(_STATES)}. May be repeated."),
    ] = ()
    failed: Annotated[bool, flag("--failed", "Of which something failed, now or ever.")] = False
    where: Annotated[
        tuple[str, ...],
        Parameter(
            negative=(),
            help="Whose recorded payload has this: data.order_id=A-1; also subject=, correlationid=, source=. "
            "May be repeated: all must fit.",
        ),
    ] = ()

    def query(self, patterns: tuple[str, ...], limit: int) -> Query:
        """Return the question. Raises `CommandError` for what cannot be read."""
        now = time.time()
        return Query(
            since=None if self.since is None else read_moment(self.since, "--since", now),
            until=None if self.until is None else read_moment(self.until, "--until", now),
            patterns=patterns,
            subscription=self.subscription,
            states=frozenset(_state(text) for text in self.state),
            failed=self.failed,
            where=tuple(_field(text) for text in self.where),
            limit=limit,
        )


NO_FILTERS = Filters()


def _state(text: str) -> State:
    state = _STATES.get(text.strip().lower().replace(" ", "-"))
    if state is None:
        raise CommandError(f"--state is {text[:40]!a}; valid are {', '.join(_STATES)}", code=Exit.USAGE)
    return state


def _field(text: str) -> tuple[str, str]:
    path, equals, value = text.partition("=")
    known = path.startswith("data.") or path in ("subject", "correlationid", "source")
    if not equals or not known:
        raise CommandError(
            f"--where is {text[:80]!a}; write data.order_id=A-1, subject=..., correlationid=... or source=...",
            code=Exit.USAGE,
        )
    return path, value


async def one_signal(traces: TraceReader, prefix: str) -> str:
    """Return the id that a prefix stands for. Raises `CommandError`, with the candidates if there are several."""
    found = await traces.find(check_prefix(prefix, LISTING))
    return the_one(found, prefix, "signal", LISTING, lambda each: f"{each.id} ({each.type})").id


def note_behind(traces: TraceReader, output: Output) -> None:
    """Say that an answer does not know everything yet."""
    if traces.behind:
        output.warn(f"{traces.behind} facts are not sorted in yet, so this may lack the newest steps; ask again")

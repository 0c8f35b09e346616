"""What a daemon tells its command line: the same as a file or a broker here would, and the same errors."""

from __future__ import annotations

import asyncio
import contextlib
import json
import socket
import threading
from collections.abc import Iterable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import orjson
import pytest
from hypothesis import HealthCheck, given, settings

from signalbus.cli.failures import Exit, exit_code
from signalbus.deadletters import DeadLetters, LetterQuery, LetterState
from signalbus.errors import (
    Backpressure,
    BrokerError,
    BrokerUnavailable,
    ConfigError,
    NotPermitted,
    SignalBusError,
    StorageError,
)
from signalbus.ledger import Batch, Fact, decode
from signalbus.trace.listing import Page, Query, Retention
from signalbus.trace.model import State, Trace
from signalbus.trace.reader import TraceReader
from signalbus.trace.records import round_place
from signalbus.trace.rendering_json import render_json
from signalbus.trace.rendering_tree import TreeView, render_tree
from signalbus.trace.store import SqliteStore
from signalbus.trace.tree import build
from signalbus.web.client import Client
from signalbus.web.facts import batches_of, facts_of
from signalbus.web.remote_letters import RemoteLetters
from signalbus.web.remote_traces import RemoteTraces
from tests.trace import examples
from tests.trace.load import START, Load
from tests.trace.strategies import any_facts
from tests.web.fakes import FakeLetters, letter
from tests.web.world import GUARDED, TOKEN, World, world


def client_of(here: World, token: str | None = None) -> Client:
    return Client(url=here.server.url, token=token)


# Traces


def facts_of_examples(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[Fact]]:
    """Return what the example traces are made of, by the id of the signal that they are about."""
    found: dict[str, list[Fact]] = {}

    def keep(signal: str, facts: Iterable[Fact]) -> Trace:
        found[signal] = list(facts)
        return build(signal, found[signal])

    monkeypatch.setattr(examples, "build", keep)
    examples.order()
    examples.hostile()
    return found


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> SqliteStore:
    """A store with examples, and a bit of load. Whoever reads it closes it."""
    opened = SqliteStore(tmp_path / "ledger.db")
    for facts in facts_of_examples(monkeypatch).values():
        opened.append(runs(facts))
    opened.append(list(Load(signals=700).batches()))
    return opened


def runs(facts: Iterable[Fact]) -> list[Batch]:
    return [decode(orjson.dumps(batch)) for batch in batches_of(facts)]


QUERIES = [
    Query(),
    Query(limit=20),
    Query(limit=620),  # more than one page of the API
    Query(patterns=("type.#",), limit=5),
    Query(patterns=("order.*", "invoice.#")),
    Query(failed=True),
    Query(subscription="billing"),
    Query(states=frozenset({State.DEAD, State.RETRYING})),
    Query(states=frozenset({State.IN_HAND}), subscription="mail"),
    Query(where=(("data.order_id", "A-17"),)),
    Query(where=(("source", examples.HOSTILE),)),
    Query(where=(("subject", "a=b&c=d#?%"),)),
    Query(since=START + 43_200.5, until=START + 80_000.0, limit=3),
    Query(before=round_place(START + 1_000), limit=2),
]


@pytest.mark.parametrize("query", QUERIES)
async def test_a_remote_list_is_the_local_one(tmp_path: Path, store: SqliteStore, query: Query) -> None:
    async with world(tmp_path, store=store) as here:
        told: Page = await asyncio.to_thread(RemoteTraces(client_of(here)).page, query)
        assert told == store.page(query)


async def test_pages_of_a_remote_list_go_on_from_each_other(tmp_path: Path, store: SqliteStore) -> None:
    async with world(tmp_path, store=store) as here, RemoteTraces(client_of(here)).reader() as traces:
        first = await traces.page(Query(limit=300))
        rest = await traces.page(Query(limit=300, before=first.next))
        assert [*first.signals, *rest.signals] == list(store.page(Query(limit=600)).signals)


async def test_a_remote_trace_prints_as_the_local_one(tmp_path: Path, store: SqliteStore) -> None:
    signals = [examples.ORDER, f"id{examples.HOSTILE}", "not-known-at-all"]
    signals += [listed.signal.id for listed in store.page(Query(limit=30)).signals]
    async with world(tmp_path, store=store) as here:
        remote = RemoteTraces(client_of(here)).reader()
        for signal in signals:
            trace, known = await remote.trace(signal), build(signal, store.trace_facts(signal))
            assert trace == known
            assert render_json(trace) == render_json(known)
            assert render_tree(trace, TreeView(now=0.0)) == render_tree(known, TreeView(now=0.0))
        assert len(signals) == 33


async def test_remote_ids_are_found_as_local_ones(tmp_path: Path, store: SqliteStore) -> None:
    async with world(tmp_path, store=store) as here:
        remote = RemoteTraces(client_of(here))
        for prefix in ("01929f", examples.ORDER, "01929f…7c2", "  01929f  ", "no-such-id", f"id{examples.HOSTILE}"[:9]):
            assert await asyncio.to_thread(remote.find, prefix) == store.find(prefix)
        for traces in (remote, store):
            with pytest.raises(ConfigError, match="is too short for an id; give at least 6 characters"):
                await asyncio.to_thread(traces.find, "0192")
        assert await asyncio.to_thread(remote.stats) == store.stats()
        with pytest.raises(StorageError, match="read only"):
            remote.append([])
        with pytest.raises(StorageError, match="read only"):
            remote.prune(Retention())


async def test_a_remote_reader_knows_what_is_not_sorted_in_yet(tmp_path: Path, store: SqliteStore) -> None:
    async def behind() -> int:
        return 17

    async with world(tmp_path, reader=TraceReader(store, behind)) as here:
        traces = RemoteTraces(client_of(here)).reader()
        await traces.find(examples.ORDER)
        assert traces.behind == 17


@given(any_facts())
@settings(max_examples=50, suppress_health_check=[HealthCheck.too_slow], deadline=None)
def test_facts_travel_unchanged_and_in_order(facts: list[Fact]) -> None:
    sent = orjson.dumps(batches_of(facts))
    assert facts_of(orjson.loads(sent)) == facts


# Dead letters


async def test_remote_dead_letters_are_the_local_ones(tmp_path: Path) -> None:
    letters = FakeLetters(
        [
            *(letter(number, died=datetime(2026, 1, 1, 12, number, tzinfo=UTC)) for number in range(3)),
            letter(10, subscription="mail", error="shop.errors.Refused", type="order.paid", body=bytes(range(256))),
            letter(11, subscription="mail", error="ValueError", state=LetterState.DISCARDED),
            letter(12, detail=examples.HOSTILE, place=examples.HOSTILE, body=b"x" * 10_000_000),
        ]
    )
    queries = [
        LetterQuery(),
        LetterQuery(states=frozenset(LetterState)),
        LetterQuery(states=frozenset({LetterState.DISCARDED, LetterState.ACKED})),
        LetterQuery(ids=("letter-000001", "letter-000002")),
        LetterQuery(group="mail-ValueError", states=frozenset(LetterState)),
        LetterQuery(subscription="mail", patterns=("order.paid", "x.#")),
        LetterQuery(error="Refused"),
        LetterQuery(signal="signal-000002"),
        LetterQuery(since=datetime(2026, 1, 1, 12, 1, tzinfo=UTC).timestamp(), until=1_800_000_000.5),
        LetterQuery(limit=2),
        LetterQuery(limit=2, after="letter-000002"),
        LetterQuery(limit=100_000),
    ]
    async with world(tmp_path, letters=letters) as here:
        remote: DeadLetters = RemoteLetters(client_of(here))
        for query in queries:
            assert await remote.page(query) == await letters.page(query)
            assert list(await remote.groups(query)) == list(await letters.groups(query))
        for known in letters.letters.values():
            assert await remote.get(known.summary.id) == known
        assert await remote.get("no/such?id") is None
        assert list(await remote.find("signal-00001")) == list(await letters.find("signal-00001"))
        with pytest.raises(ConfigError, match="no place to go on from"):
            await remote.page(LetterQuery(after="nowhere"))


async def test_remote_decisions_are_made_where_the_letters_are(tmp_path: Path) -> None:
    letters = FakeLetters(letter(number) for number in range(6))
    async with world(tmp_path, letters=letters) as here:
        remote = RemoteLetters(client_of(here))
        replay = await remote.replay(
            LetterQuery(ids=("letter-000001", "letter-000002")), by="Žofie, ops@home", rate=7.5
        )
        assert (replay.total, replay.waiting, replay.rate, replay.by) == (2, 2, 7.5, "Žofie, ops@home")
        letters.send(replay.id)
        assert await remote.progress(replay.id) == await letters.progress(replay.id)
        again = await remote.replay(LetterQuery(), by="ops")
        assert (again.total, again.taken) == (4, 2)
        assert await remote.cancel(again.id, by="ops") == 4
        assert await remote.cancel("no-such-replay", by="ops") == 0
        assert await remote.progress("no-such-replay") is None
        assert list(await remote.replays()) == list(await letters.replays())
        assert await remote.discard(LetterQuery(ids=("letter-000003",)), by="ops", note="not ours") == 1
        discarded = LetterQuery(states=frozenset({LetterState.DISCARDED}))
        assert await remote.restore(discarded, by="ops") == 1
        assert list(await remote.audit()) == list(await letters.audit())
        assert {entry.by for entry in await remote.audit()} == {"Žofie, ops@home", "ops"}
        with pytest.raises(ConfigError, match="say which to restore"):
            await remote.restore(LetterQuery(), by="ops")


# What is there now


async def test_remote_state_is_that_of_the_bus(tmp_path: Path) -> None:
    async with world(tmp_path) as here:
        await here.bus.subscribe("order.*", name="billing", handler=_take)
        client = client_of(here)
        [told] = await asyncio.to_thread(client.subscribers)
        [known] = await here.bus.subscribers()
        assert told == known
        assert await asyncio.to_thread(client.topology) == list(await here.bus.broker.queues(5))
        [session] = await asyncio.to_thread(client.sessions)
        assert (session.session, session.answering) == (here.bus.session, True)
        assert (await asyncio.to_thread(client.stats)).subscriptions == 1


async def _take(data: dict[str, object]) -> None: ...


# Errors


async def test_without_the_token_nothing_is_permitted(tmp_path: Path) -> None:
    async with world(tmp_path, access=GUARDED) as here:
        for token in (None, "wrong-wrong-wrong-wrong"):
            with pytest.raises(NotPermitted, match="token") as caught:
                await asyncio.to_thread(client_of(here, token).stats)
            assert exit_code(caught.value) is Exit.NOT_PERMITTED
        assert (await asyncio.to_thread(client_of(here, TOKEN).stats)).broker == "up"


def test_a_daemon_that_is_not_there_is_unreachable() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        with pytest.raises(BrokerUnavailable, match="is it running") as caught:
            Client(url=f"http://127.0.0.1:{taken.getsockname()[1]}").stats()
    assert exit_code(caught.value) is Exit.UNREACHABLE


@pytest.mark.parametrize(
    ("status", "kind", "error", "code"),
    [
        (503, "BrokerUnavailable", BrokerUnavailable, Exit.UNREACHABLE),
        (503, "StorageError", StorageError, Exit.FAILED),
        (503, "Backpressure", Backpressure, Exit.TIMED_OUT),
        (503, "NotPermitted", BrokerUnavailable, Exit.UNREACHABLE),
        (504, "TimeoutError", BrokerError, Exit.FAILED),
        (500, "", BrokerError, Exit.FAILED),
        (422, "ConfigError", ConfigError, Exit.USAGE),
        (421, "", ConfigError, Exit.USAGE),
        (403, "", NotPermitted, Exit.NOT_PERMITTED),
        (302, "", BrokerError, Exit.FAILED),
    ],
)
def test_a_problem_comes_back_as_the_error_that_it_was(
    status: int, kind: str, error: type[SignalBusError], code: Exit
) -> None:
    body = json.dumps({"error": "it is so", "advice": "do this", "type": kind}).encode()
    head = f"HTTP/1.1 {status} X\r\nlocation: http://127.0.0.1:1/\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with answering(head + body) as url, pytest.raises(error, match="it is so; do this") as caught:
        Client(url=url).stats()
    assert type(caught.value) is error
    assert exit_code(caught.value) is code


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b'{"at": 1}', b"\xff", b'{"broker": "up"}'])
def test_an_answer_of_something_else_is_told(body: bytes) -> None:
    head = f"HTTP/1.1 200 OK\r\ncontent-length: {len(body)}\r\n\r\n".encode()
    with answering(head + body) as url, pytest.raises(BrokerError, match="cannot be read"):
        Client(url=url).stats()


@pytest.mark.parametrize(
    "sent", [b"", b"SSH-2.0-OpenSSH\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{", b"HTTP/1.1 2"]
)
def test_an_answer_that_breaks_off_is_unreachable(sent: bytes) -> None:
    with answering(sent) as url, pytest.raises(BrokerUnavailable):
        Client(url=url).stats()


def test_an_answer_that_drips_ends_in_time() -> None:
    drip = (b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n", *[b"x"] * 90)
    with answering(*drip, pause=0.05) as url, pytest.raises(BrokerUnavailable, match="in time"):
        Client(url=url, timeout=0.3).stats()


def test_an_order_without_an_answer_may_have_been_done() -> None:
    with answering(b"") as url, pytest.raises(BrokerUnavailable, match="may have been done"):
        asyncio.run(RemoteLetters(Client(url=url)).discard(LetterQuery(), by="ops"))


@contextlib.contextmanager
def answering(*pieces: bytes, pause: float = 0.0) -> Iterator[str]:
    """Yield the URL of a server that sends these bytes, whatever it is asked, and hangs up."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def serve() -> None:
            connection, _ = server.accept()
            with connection, contextlib.suppress(OSError):
                connection.recv(65_536)
                for piece in pieces:
                    connection.sendall(piece)
                    if stop.wait(pause):
                        return

        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.getsockname()[1]}"
        finally:
            stop.set()
            thread.join()


@pytest.mark.parametrize(
    "url",
    ["", "127.0.0.1:8642", "ftp://host", "http://", "http://user:secret@host", "http://host/x", "http://host:0",
     "http://host:x", "http://host?token=secret", "http://[::1"],
)  # fmt: skip
def test_an_address_that_cannot_be_is_refused_without_its_secret(url: str) -> None:
    with pytest.raises(ConfigError, match="no address of a daemon") as caught:
        Client(url=url)
    assert "user:secret" not in str(caught.value)


def test_the_token_is_read_and_never_shown(tmp_path: Path) -> None:
    client = Client.read("http://host", environment={"SIGNALBUS_TOKEN": TOKEN})
    assert client.token == TOKEN
    assert TOKEN not in repr(client)
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}-of-a-file\n")
    path.chmod(0o600)
    assert Client.read("http://host", path, environment={}).token == f"{TOKEN}-of-a-file"

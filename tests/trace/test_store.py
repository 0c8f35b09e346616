"""The store: what comes back, once, in lists that agree with traces, within bounds."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from signalbus.errors import BrokerUnavailable, ConfigError, StorageError
from signalbus.ledger import (
    Accepted,
    Acked,
    Batch,
    Dead,
    Delivered,
    Fact,
    LedgerError,
    Requested,
    Retried,
    SessionDown,
    SessionUp,
    decode,
    encode,
)
from signalbus.trace import append as appending
from signalbus.trace import queries, schema
from signalbus.trace.listing import Page, Query, Retention
from signalbus.trace.model import State
from signalbus.trace.records import place_of
from signalbus.trace.store import SqliteStore, TraceStore
from signalbus.trace.tree import build, outline
from tests.trace.facts import NOON, About, At, Teller, batch_of
from tests.trace.load import START, Load
from tests.trace.strategies import SIGNALS, SUBSCRIPTIONS, TYPES, any_facts

DAY = 86_400.0


@pytest.fixture
def store(tmp_path: Path) -> Iterator[SqliteStore]:
    opened = SqliteStore(tmp_path / "ledger.db", clock=lambda: NOON)
    yield opened
    opened.close()


def ids(page: Page) -> list[str]:
    return [listed.signal.id for listed in page.signals]


def publish(teller: Teller, number: int, *, seconds: float | None = None, **fields: str | None) -> str:
    signal = f"signal-{number:06}"
    teller.tell(
        float(number) if seconds is None else seconds,
        Accepted(
            signal=signal,
            type=fields.get("type") or "order.placed",
            source="shop",
            subject=fields.get("subject"),
            data=fields.get("data"),
            causationid=fields.get("causationid"),
            subscriptions=("billing",),
        ),
    )
    return signal


# Facts


def test_a_store_fulfils_the_seam(store: SqliteStore) -> None:
    seam: TraceStore = store
    assert seam.stats().facts == 0


def test_what_is_stored_comes_back_as_it_was_told(store: SqliteStore) -> None:
    shop, billing = Teller("shop", "web-1", 1), Teller("billing", "web-2", 2, level="failures")
    at = At(signal="a", type="order.placed", subscription="billing")
    shop.tell(0, SessionUp(session="s-shop", name="shop"))
    shop.tell(1, Accepted(signal="a", type="order.placed", source="shop", data='{"n":1}', subscriptions=("billing",)))
    billing.tell(2, Delivered(**at, queued=0.5))
    billing.tell(3, Retried(**at, error="TimeoutError", message="gateway", delay=1.0))
    shop.tell(4, SessionDown(session="s-billing", reason="connection_lost"))
    assert store.append([shop.batch(), decode(encode(billing.batch()))]) == 3
    found = {fact.id: fact for fact in store.trace_facts("a")}
    assert found == {fact.id: fact for fact in (*shop.facts, *billing.facts)}


def test_a_trace_has_everything_that_the_signal_caused_and_nothing_else(store: SqliteStore) -> None:
    shop = Teller("shop", "web-1", 1)
    first = publish(shop, 1)
    second = publish(shop, 2, causationid=first)
    third = publish(shop, 3, causationid=second)
    publish(shop, 4)
    store.append([shop.batch()])
    root = build(first, store.trace_facts(first)).root
    assert [child.id for child in root.children] == [second]
    assert [child.id for child in root.children[0].children] == [third]
    assert store.trace_facts("unknown") == []


def test_a_cause_that_arrives_after_the_delivery_is_known_all_the_same(store: SqliteStore) -> None:
    shop, billing = Teller("shop", "web-1", 1), Teller("billing", "web-1", 2)
    billing.tell(2, Delivered(signal="signal-000002", type="order.placed", subscription="billing"))
    first = publish(shop, 1)
    publish(shop, 2, causationid=first)
    store.append([billing.batch()])
    store.append([shop.batch()])
    assert [child.id for child in build(first, store.trace_facts(first)).root.children] == ["signal-000002"]


def test_a_batch_that_comes_twice_changes_nothing(store: SqliteStore) -> None:
    shop = Teller("shop", "web-1", 1)
    for number in range(5):
        publish(shop, number, data='{"order_id":"A-1"}')
    assert store.append([shop.batch(dropped=3)]) == 5
    before = (store.stats(), dump(store.path))
    assert store.append([shop.batch(dropped=3), shop.batch(dropped=2)]) == 0
    assert (store.stats(), dump(store.path)) == before
    assert store.stats().dropped == 3


def dump(path: Path) -> list[str]:
    with sqlite3.connect(path) as connection:
        found = list(connection.iterdump())
    connection.close()
    return found


def test_facts_with_text_that_is_no_unicode_are_stored(store: SqliteStore) -> None:
    shop = Teller("shop", "web-1", 1)
    shop.tell(0, Retried(signal="a", type="t", subscription="s", message="half \ud800 a pair"))
    store.append([shop.batch()])
    (fact,) = store.trace_facts("a")
    assert getattr(fact.step, "message", None) == "half ? a pair"


def test_many_signals_of_one_instant_keep_places_of_their_own(store: SqliteStore) -> None:
    shop = Teller("shop", "web-1", 1)
    signals = {publish(shop, number, seconds=1.0) for number in range(3_000)}
    for start in range(0, 3_000, 500):
        store.append([batch_of(shop.facts[start : start + 500])])
    found: set[str] = set()
    page = store.page(Query(limit=1_000))
    while page.signals:
        found.update(ids(page))
        if page.next is None:
            break
        page = store.page(Query(limit=1_000, before=page.next))
    assert found == signals


@pytest.mark.parametrize("at", [-1e14, 0.0, 1e14])
def test_times_that_no_clock_should_tell_are_stored(store: SqliteStore, at: float) -> None:
    shop = Teller("shop", "web-1", 1, skew=at - NOON)
    signal = publish(shop, 0)
    store.append([shop.batch()])
    assert [fact.at for fact in store.trace_facts(signal)] == [at]
    assert ids(store.page(Query())) == [signal]


def test_an_append_that_fails_leaves_nothing_behind(store: SqliteStore) -> None:
    shop = Teller("shop", "web-1", 1)
    publish(shop, 1)
    good = shop.batch()
    broken = Batch(origin=shop.origin, first=2, rows=[("acked", 1.0)])
    with pytest.raises(IndexError):
        store.append([good, broken])
    assert store.stats().facts == 0
    assert store.append([good]) == 1


# Lists


def _some(store: SqliteStore) -> None:
    shop, billing = Teller("shop", "web-1", 1), Teller("billing", "web-2", 2)
    for number in range(10):
        kind = "order.placed" if number % 2 else "order.paid"
        subject = f"customer-{number % 3}"
        data = f'{{"order_id":"A-{number}","lines":[1],"deep":{{"paid":{"true" if number < 5 else "false"}}}}}'
        signal = publish(shop, number, type=kind, subject=subject, data=data)
        at = At(signal=signal, type=kind, subscription="billing")
        if number < 8:
            billing.tell(number + 0.1, Delivered(**at))
        if number < 6:
            billing.tell(number + 0.2, Acked(**at))
        if number == 6:
            billing.tell(number + 0.2, Dead(**at, reason="rejected by the handler"))
    store.append([shop.batch(), billing.batch()])


def numbers(page: Page) -> list[int]:
    return [int(signal[-6:]) for signal in ids(page)]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        (Query(), [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]),
        (Query(limit=2), [9, 8]),
        (Query(since=NOON + 3, until=NOON + 5), [4, 3]),
        (Query(patterns=("order.placed",), limit=2), [9, 7]),
        (Query(patterns=("*.paid", "nothing.#")), [8, 6, 4, 2, 0]),
        (Query(patterns=("nothing.#",)), []),
        (Query(subscription="billing", limit=1), [9]),
        (Query(subscription="nobody"), []),
        (Query(states=frozenset({State.ACKED})), [5, 4, 3, 2, 1, 0]),
        (Query(states=frozenset({State.WAITING})), [9, 8]),
        (Query(states=frozenset({State.IN_HAND})), [7]),
        (Query(states=frozenset({State.IN_HAND, State.DEAD})), [7, 6]),
        (Query(states=frozenset({State.DEAD}), subscription="billing", patterns=("order.placed",)), []),
        (Query(failed=True), [6]),
        (Query(failed=True, patterns=("order.placed",)), []),
        (Query(where=(("data.order_id", "A-4"),)), [4]),
        (Query(where=(("data.deep.paid", "true"), ("subject", "customer-1"))), [4, 1]),
        (Query(where=(("source", "shop"),), limit=1), [9]),
        (Query(where=(("source", "elsewhere"),)), []),
        (Query(where=(("data.lines", "[1]"),)), []),
        (Query(where=(("data.deep.paid", "false"),), states=frozenset({State.DEAD})), [6]),
        (Query(where=(("data.order_id", "A-4"),), patterns=("order.placed",)), []),
    ],
)
def test_lists_are_filtered_and_newest_first(store: SqliteStore, query: Query, expected: list[int]) -> None:
    _some(store)
    page = store.page(query)
    assert numbers(page) == expected
    assert page.complete


def test_pages_follow_each_other_without_gaps_or_repetition(store: SqliteStore) -> None:
    _some(store)
    found: list[int] = []
    page = store.page(Query(limit=3))
    while page.next is not None:
        found += numbers(page)
        page = store.page(Query(limit=3, before=page.next))
    assert [*found, *numbers(page)] == [9, 8, 7, 6, 5, 4, 3, 2, 1, 0]


def test_a_list_shows_failures_and_states_without_opening_anything(store: SqliteStore) -> None:
    _some(store)
    (listed,) = store.page(Query(failed=True)).signals
    assert (listed.failed, listed.signal.summary, listed.at) == (True, "1 dead", NOON + 6)


def test_payloads_with_more_fields_than_are_indexed_are_found(store: SqliteStore) -> None:
    shop = Teller("shop", "web-1", 1)
    wide = "{" + ",".join(f'"f{number}":{number}' for number in range(60)) + "}"
    signal = publish(shop, 1, data=wide)
    publish(shop, 2, data='{"f59":1}')
    store.append([shop.batch()])
    assert ids(store.page(Query(where=(("data.f59", "59"),)))) == [signal]
    assert ids(store.page(Query(where=(("data.f0", "0"),)))) == [signal]


def test_large_integers_are_found_by_all_their_digits(store: SqliteStore) -> None:
    shop = Teller("shop", "web-1", 1)
    signal = publish(shop, 1, data='{"n":12345678901234567890123}')
    publish(shop, 2, data='{"n":12345678901234567890124}')
    store.append([shop.batch()])
    assert ids(store.page(Query(where=(("data.n", "12345678901234567890123"),)))) == [signal]


def test_a_search_that_would_take_too_long_stops_and_says_where_to_go_on(
    store: SqliteStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queries, "_MAX_READ", 200)
    shop = Teller("shop", "web-1", 1)
    for number in range(1_000):
        publish(shop, number)
    store.append([shop.batch()])
    query = Query(where=(("source", "elsewhere"),), limit=20)
    page = store.page(query)
    assert (page.signals, page.complete) == ((), False)
    pages = 1
    while page.next is not None:
        page = store.page(Query(where=query.where, limit=20, before=page.next))
        pages += 1
    assert page.complete
    assert pages == 6


def test_a_pattern_that_cannot_be_is_an_error_of_the_caller(store: SqliteStore) -> None:
    with pytest.raises(ConfigError, match="invalid pattern"):
        store.page(Query(patterns=("order..x",)))


@given(facts=any_facts(agreed_causes=True), data=st.data())
@settings(
    deadline=None,
    max_examples=25,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)
def test_lists_and_traces_agree_whatever_was_told_in_whatever_order(facts: list[Fact], data: st.DataObject) -> None:
    connection = sqlite3.connect(":memory:", isolation_level=None)
    schema.prepare(connection)
    for fact in [*facts, *facts[::2]]:
        appending.append(connection, [batch_of([fact])])
    told = {signal: [fact for fact in facts if getattr(fact.step, "signal", "") == signal] for signal in SIGNALS}
    downs = [fact for fact in facts if isinstance(fact.step, SessionDown)]
    outlines = {signal: outline(signal, [*known, *downs]) for signal, known in told.items() if known}
    for signal in outlines:
        stored = build(signal, queries.trace_facts(connection, signal))
        assert outline(signal, facts) == outline(signal, queries.trace_facts(connection, signal))
        assert stored == build(signal, facts)
    for state in State:
        expected = {signal for signal, found in outlines.items() if state in found.states}
        assert set(ids(queries.page(connection, Query(states=frozenset({state}))))) == expected
    subscription = data.draw(st.sampled_from(SUBSCRIPTIONS))
    pattern = data.draw(st.sampled_from(["order.*", "#", "invoice.created"]))
    states = data.draw(st.frozensets(st.sampled_from([State.ACKED, State.DEAD, State.WAITING])))
    query = Query(subscription=subscription, states=states, patterns=(pattern,))
    matching = {
        signal
        for signal, found in outlines.items()
        if (pattern == "#" or TYPES[signal].startswith(pattern.rstrip("*")))
        and any(at.subscription == subscription and (not states or at.state in states) for at in found.deliveries)
    }
    assert set(ids(queries.page(connection, query))) == matching
    where = (("data.order_id", "A-1"),)
    having = {signal for signal, found in outlines.items() if found.data == '{"order_id":"A-1"}'}
    assert set(ids(queries.page(connection, Query(where=where)))) == having
    connection.close()


# Ids


def test_a_prefix_finds_ids_and_an_ambiguous_one_lists_the_newest(store: SqliteStore) -> None:
    shop = Teller("shop", "web-1", 1)
    for number in range(30):
        publish(shop, number)
    store.append([shop.batch()])
    assert [found.id for found in store.find("signal-000007")] == ["signal-000007"]
    ambiguous = store.find("signal-0000")
    assert len(ambiguous) == 20
    assert (ambiguous[0].id, ambiguous[0].type, round(ambiguous[0].at)) == ("signal-000029", "order.placed", NOON + 29)
    assert store.find("unknown") == []


def test_a_shortened_id_is_found_by_its_two_ends(store: SqliteStore) -> None:
    shop = Teller("shop", "web-1", 1)
    for number in range(30):
        publish(shop, number)
    store.append([shop.batch()])
    assert [found.id for found in store.find("signal…007")] == ["signal-000007"]
    assert [found.id for found in store.find("signal...017")] == ["signal-000017"]


def test_a_whole_id_is_never_ambiguous(store: SqliteStore) -> None:
    shop = Teller("shop", "web-1", 1)
    for signal in ("abcdef", "abcdefg"):
        shop.tell(1, Requested(signal=signal, type="t", source="shop"))
    store.append([shop.batch()])
    assert [found.id for found in store.find("abcdef")] == ["abcdef"]


def test_a_prefix_of_less_than_six_characters_is_refused(store: SqliteStore) -> None:
    with pytest.raises(ConfigError, match="at least 6"):
        store.find("signa")


# Retention


def _aged(store: SqliteStore, signals: int = 2_000) -> list[Batch]:
    batches = list(Load(signals=signals, seconds=DAY * 10, types=5, subscriptions=4).batches())
    store.append(batches)
    return batches


def prune_all(store: SqliteStore, retention: Retention) -> int:
    pieces = 1
    while store.prune(retention):
        pieces += 1
        assert pieces < 10_000
    return pieces


def tables(path: Path) -> dict[str, int]:
    with sqlite3.connect(path) as connection:
        names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")]
        counts = {name: connection.execute(f"SELECT count(*) FROM {name}").fetchone()[0] for name in names}
    connection.close()
    return counts


def test_what_is_too_old_is_forgotten_in_pieces_and_does_not_come_back(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "ledger.db", clock=lambda: START + DAY * 10)
    batches = _aged(store)
    before = store.stats()
    pieces = prune_all(store, Retention(seconds=DAY * 4))
    after = store.stats()
    assert pieces > 3
    assert after.oldest is not None
    assert START + DAY * 6 <= after.oldest < START + DAY * 6.1
    assert 0.3 < after.facts / before.facts < 0.5
    counts = tables(store.path)
    assert counts["ledger_facts"] == after.facts
    assert counts["ledger_signals"] == 800
    store.append(batches)
    assert tables(store.path) == counts, "a batch that comes late does not raise the dead"
    store.close()


def test_what_is_too_much_is_forgotten_oldest_first(store: SqliteStore) -> None:
    _aged(store)
    size = store.stats().bytes
    prune_all(store, Retention(bytes=size // 2))
    left = store.stats()
    assert size // 2 - size // 3 < left.bytes <= size // 2
    newest = store.page(Query(limit=1)).signals[0]
    assert newest.at > START + DAY * 9.9


def test_pruning_everything_leaves_nothing(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "ledger.db", clock=lambda: START + DAY * 100)
    _aged(store)
    prune_all(store, Retention(seconds=1.0))
    counts = tables(store.path)
    assert (store.stats().facts, store.stats().bytes, store.stats().oldest) == (0, 0, None)
    assert counts["ledger_fields"] < 100, "those of the newest 18 minutes: a segment goes as a whole"
    kept = {"ledger_meta", "ledger_names", "ledger_origins", "ledger_fields"}
    assert {name: count for name, count in counts.items() if count and name not in kept} == {}
    store.close()


def test_nothing_is_forgotten_without_a_reason(store: SqliteStore) -> None:
    _aged(store, 100)
    before = dump(store.path)
    assert not store.prune(Retention())
    assert not store.prune(Retention(seconds=DAY * 1e4, bytes=1 << 40))
    assert dump(store.path) == before


# The file


def test_a_store_is_there_again_after_it_was_closed(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "ledger.db")
    _some(store)
    store.close()
    store.close()
    reader = SqliteStore(tmp_path / "ledger.db", read_only=True)
    assert len(reader.page(Query()).signals) == 10
    with pytest.raises(StorageError, match="read only"):
        reader.append([])
    reader.close()


def test_tables_live_beside_others_in_a_transaction_of_the_caller(tmp_path: Path) -> None:
    connection = sqlite3.connect(tmp_path / "broker.db", isolation_level=None)
    connection.execute("CREATE TABLE mine (a)")
    shop = Teller("shop", "web-1", 1)
    publish(shop, 1)
    connection.execute("BEGIN IMMEDIATE")
    schema.prepare(connection)
    connection.execute("COMMIT")
    connection.execute("BEGIN IMMEDIATE")
    schema.prepare(connection)
    assert appending.append(connection, [shop.batch()]) == 1
    connection.execute("ROLLBACK")
    assert queries.stats(connection).facts == 0
    assert appending.append(connection, [shop.batch()]) == 1
    connection.close()


@pytest.mark.parametrize(
    ("prepare", "said"),
    [
        (lambda connection: connection.execute("CREATE TABLE theirs (a)"), "another program"),
        (lambda connection: connection.execute("PRAGMA application_id = 7"), "another program"),
    ],
)
def test_the_file_of_another_program_is_left_alone(
    tmp_path: Path, prepare: Callable[[sqlite3.Connection], object], said: str
) -> None:
    path = tmp_path / "theirs.db"
    connection = sqlite3.connect(path)
    prepare(connection)
    connection.commit()
    connection.close()
    before = path.read_bytes()
    with pytest.raises(ConfigError, match=said):
        SqliteStore(path)
    assert path.read_bytes() == before


def test_a_newer_schema_is_refused_with_the_versions(tmp_path: Path) -> None:
    path = tmp_path / "ledger.db"
    SqliteStore(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute("UPDATE ledger_meta SET version = 2")
    connection.close()
    with pytest.raises(ConfigError, match="schema version 2, this signalbus knows 1"):
        SqliteStore(path)


def test_a_file_without_a_ledger_says_so(tmp_path: Path) -> None:
    path = tmp_path / "empty.db"
    with pytest.raises(StorageError, match="cannot open the ledger"):
        SqliteStore(path, read_only=True)
    path.touch()
    with pytest.raises(ConfigError, match="holds no ledger"):
        SqliteStore(path, read_only=True)


def test_a_store_that_another_program_holds_is_unavailable_not_broken(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "ledger.db", busy_timeout=0.05)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    shop = Teller("shop", "web-1", 1)
    publish(shop, 1)
    with pytest.raises(BrokerUnavailable, match="cannot write the ledger"):
        store.append([shop.batch()])
    other.execute("ROLLBACK")
    other.close()
    assert store.append([shop.batch()]) == 1
    store.close()


def test_a_damaged_fact_is_an_error_that_names_it(store: SqliteStore) -> None:
    shop = Teller("shop", "web-1", 1)
    signal = publish(shop, 1)
    store.append([shop.batch()])
    with sqlite3.connect(store.path) as connection:
        connection.execute("UPDATE ledger_facts SET fact = x'00'")
    connection.close()
    with pytest.raises(LedgerError, match="fact r-shop/1 in the store is damaged"):
        store.trace_facts(signal)


def test_readers_and_the_writer_do_not_wait_for_each_other(store: SqliteStore) -> None:
    _some(store)
    read: list[int] = []
    errors: list[BaseException] = []

    def reads() -> None:
        try:
            read.extend(len(store.page(Query(limit=5)).signals) for _ in range(20))
        except BaseException as error:  # noqa: BLE001 - shown by the assertion below
            errors.append(error)

    threads = [threading.Thread(target=reads) for _ in range(3)]
    for thread in threads:
        thread.start()
    for batch in Load(signals=300).batches():
        store.append([batch])
    for thread in threads:
        thread.join(30.0)
    assert errors == []
    assert read == [5] * 60


def test_places_follow_time() -> None:
    about = About(signal="a", type="t")
    assert place_of(NOON, about["signal"]) < place_of(NOON + 0.001, "b")
    assert place_of(1e300, "a") < 2**63


def test_what_is_left_in_indices_is_forgotten_also_while_more_is_stored_all_the_time(tmp_path: Path) -> None:
    store = SqliteStore(tmp_path / "ledger.db", clock=lambda: START)
    retention = Retention(bytes=200_000)
    try:
        for batch in Load(signals=8_000).batches():
            store.append([batch])
            store.prune(retention, 120)  # never until nothing is left to do
        with store._snapshot() as connection:
            signals, deliveries = connection.execute(
                "SELECT (SELECT count(*) FROM ledger_signals), (SELECT count(*) FROM ledger_deliveries)"
            ).fetchone()
    finally:
        store.close()
    assert 0 < signals < 4_000
    assert deliveries < 3 * signals

"""The tables: steps that compare before they set, counts that add up, and an audit that tells all of it."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from signalbus.deadletters import audit, queries, schema, transitions
from signalbus.deadletters.death import Death
from signalbus.deadletters.model import OPEN_STATES, LetterQuery, LetterState, Replay
from signalbus.deadletters.recording import known_death, record
from signalbus.deadletters.retention import KEPT_SECONDS, forget
from signalbus.deadletters.selection import Condition, one_of
from signalbus.deadletters.transitions import Claim, Copy
from signalbus.errors import ConfigError
from tests.deadletters.deaths import EVERYTHING, NOON, death, tables

S = LetterState


def states(connection: sqlite3.Connection) -> dict[str, LetterState]:
    return {each.id: each.state for each in queries.page(connection, EVERYTHING).letters}


def numbers(connection: sqlite3.Connection, *wanted: LetterState) -> list[int]:
    rows = connection.execute("SELECT number, state FROM letters ORDER BY number").fetchall()
    return [number for number, state in rows if LetterState(state) in wanted]


def claimed(connection: sqlite3.Connection, query: LetterQuery = EVERYTHING, name: str = "r1") -> Replay:
    transitions.claim(connection, query, Claim(id=name, by="ann", at=NOON, rate=10.0))
    replay = queries.progress(connection, name)
    assert replay is not None
    return replay


def test_tables_of_a_newer_version_are_refused() -> None:
    connection = tables()
    connection.execute("UPDATE letter_meta SET version = 99")
    with pytest.raises(ConfigError, match="schema version 99"):
        schema.prepare(connection)


def test_a_repetition_of_the_publisher_is_counted_and_keeps_the_newer_content() -> None:
    connection = tables()
    assert record(connection, death(position=1, copy=1)) is None
    assert record(connection, death(position=2, copy=2, at=NOON + 1)) == 1
    [letter] = queries.page(connection, EVERYTHING).letters
    assert (letter.deaths, letter.state) == (2, S.DEAD)
    assert queries.get(connection, letter.id) == (letter, 2)


def test_the_death_of_another_copy_does_not_end_a_replay() -> None:
    connection = tables()
    record(connection, death(position=1, copy=1))
    claimed(connection)
    transitions.sent(connection, [Copy(letter=1, queue=4, signal=7)], at=NOON)
    record(connection, death(position=2, copy=2, at=NOON + 1))
    assert list(states(connection).values()) == [S.REPLAYING]
    record(connection, death(position=3, copy=7, at=NOON + 2))
    [letter] = queries.page(connection, EVERYTHING).letters
    assert (letter.state, letter.deaths) == (S.DEAD, 3)


def test_a_copy_that_was_damaged_is_still_the_one_that_was_sent() -> None:
    connection = tables()
    record(connection, death(position=1, copy=1))
    claimed(connection)
    transitions.sent(connection, [Copy(letter=1, queue=4, signal=7)], at=NOON)
    assert record(connection, death("damaged-7", position=2, copy=7, damaged=True)) == 2
    [letter] = queries.page(connection, EVERYTHING).letters
    assert (letter.state, letter.deaths, letter.signal) == (S.DEAD, 2, "signal-1")
    assert queries.get(connection, letter.id) == (letter, 1)


def test_what_was_acked_or_discarded_and_dies_again_is_dead() -> None:
    connection = tables()
    for number in (1, 2):
        record(connection, death(f"signal-{number}", position=number))
    claimed(connection, LetterQuery(signal="signal-1"))
    transitions.sent(connection, [Copy(letter=1)], at=NOON)
    assert transitions.acked(connection, Condition("1"), at=NOON) == 1
    assert transitions.discard(connection, EVERYTHING, at=NOON, by="ann", note="") == 1
    for number in (1, 2):
        record(connection, death(f"signal-{number}", position=number + 2, at=NOON + 1))
    assert set(states(connection).values()) == {S.DEAD}
    replay = queries.progress(connection, "r1")
    assert replay is not None
    assert (replay.acked, replay.died_again) == (1, 0)  # that replay ended well, whatever came later


def test_what_is_in_hand_is_not_cancelled_as_it_may_have_been_sent() -> None:
    connection = tables()
    for number in range(3):
        record(connection, death(f"signal-{number}", position=number))
    claimed(connection)
    taken = transitions.next_up(connection, "r1", 2)
    transitions.take_up(connection, taken)
    assert transitions.next_up(connection, "r1", 5) == [3]
    transitions.laid_down(connection, taken[:1])
    assert transitions.cancel(connection, "r1", at=NOON, by="bob") == 1
    assert transitions.next_up(connection, "r1", 5) == taken[:1]
    transitions.dropped(connection)
    assert transitions.next_up(connection, "r1", 5) == taken


def test_an_end_that_is_heard_before_the_sender_noted_anything_counts() -> None:
    connection = tables()
    for number in (1, 2):
        record(connection, death(f"signal-{number}", position=number))
    claimed(connection)
    transitions.take_up(connection, [1, 2])
    record(connection, death("signal-1", position=3, at=NOON + 1))
    transitions.was_sent(connection, Condition("number = 2"), at=NOON)
    transitions.acked(connection, Condition("number = 2"), at=NOON)
    assert transitions.sent(connection, [Copy(letter=1), Copy(letter=2)], at=NOON) == 0
    assert list(states(connection).values()) == [S.DEAD, S.ACKED]
    for letter in states(connection):
        actions = [entry.action for entry in audit.of_letter(connection, letter)]
        assert actions in (["replay", "sent", "dead again"], ["replay", "sent", "acked"])


def test_the_same_death_is_known() -> None:
    connection = tables()
    assert not known_death(connection, death())
    record(connection, death())
    assert known_death(connection, death(position=5))
    assert not known_death(connection, death(at=NOON + 0.000001))
    assert not known_death(connection, death(subscription="shipping"))


def test_what_was_done_to_many_is_one_entry_and_one_for_each_letter() -> None:
    connection = tables()
    for number in range(5):
        record(connection, death(f"signal-{number}", position=number))
    claimed(connection)
    assert transitions.cancel(connection, "r1", at=NOON + 1, by="bob") == 5
    entries = audit.newest(connection, 10)
    assert [(entry.action, entry.by, entry.count, entry.letter, entry.replay) for entry in entries] == [
        ("cancel", "bob", 5, "", "r1"),
        ("replay", "ann", 5, "", "r1"),
    ]
    for letter in states(connection):
        assert [entry.action for entry in audit.of_letter(connection, letter)] == ["replay", "cancel"]


def test_texts_of_people_are_stored_whatever_they_are() -> None:
    connection = tables()
    record(connection, death(detail="nul \0, \ud800, \x1b[31m"))
    hard = "ann\0\udcff\u202e" * 300
    assert transitions.discard(connection, EVERYTHING, at=NOON, by=hard, note=hard) == 1
    [letter] = queries.page(connection, EVERYTHING).letters
    assert letter.by.startswith("ann\0?\u202eann")
    assert len(letter.note) == transitions.NOTE_CHARACTERS
    assert letter.detail == "nul \0, ?, \x1b[31m"
    assert (
        transitions.restore(connection, LetterQuery(ids=("\ud800",), states=frozenset({S.DISCARDED})), at=NOON, by="")
        == 0
    )


def test_what_is_stuck_is_restored_by_its_whole_id_only() -> None:
    connection = tables()
    record(connection, death())
    claimed(connection)
    transitions.sent(connection, [Copy(letter=1, queue=1, signal=1)], at=NOON)
    stuck = frozenset({S.REPLAYING})
    with pytest.raises(ConfigError, match="whole id"):
        transitions.restore(connection, LetterQuery(states=stuck), at=NOON, by="ann")
    assert transitions.restore(connection, LetterQuery(states=stuck, ids=(death().letter,)), at=NOON, by="ann") == 1
    replay = queries.progress(connection, "r1")
    assert replay is not None
    assert (replay.settled, replay.cancelled) == (True, 1)


def test_a_page_goes_on_where_letters_died_at_the_same_time() -> None:
    connection = tables()
    for number in range(25):
        record(connection, death(f"signal-{number:02}", position=number, at=NOON + number // 10))
    seen: list[str] = []
    query = LetterQuery(limit=4)
    while True:
        page = queries.page(connection, query)
        seen += [each.signal for each in page.letters]
        if not page.next:
            break
        query = LetterQuery(limit=4, after=page.next)
    assert seen == [f"signal-{number:02}" for number in reversed(range(25))]


def test_only_what_was_acked_long_ago_is_forgotten() -> None:
    connection = tables()
    for number in range(4):
        record(connection, death(f"signal-{number}", position=number + 1))
    claimed(connection, LetterQuery(ids=tuple(death(f"signal-{number}").letter for number in (0, 1))))
    transitions.sent(connection, [Copy(letter=1), Copy(letter=2)], at=NOON)
    transitions.acked(connection, Condition("number = 1"), at=NOON)
    transitions.discard(connection, LetterQuery(signal="signal-2"), at=NOON, by="ann", note="")
    assert forget(connection, NOON + KEPT_SECONDS) == 0
    assert forget(connection, NOON + KEPT_SECONDS + 1) == 1
    assert forget(connection, NOON + 10 * KEPT_SECONDS) == 0
    assert sorted(states(connection).values()) == [S.DEAD, S.DISCARDED, S.REPLAYING]
    assert audit.of_letter(connection, death("signal-0").letter) == []
    assert audit.of_letter(connection, death("signal-1").letter) != []


class Lives(RuleBasedStateMachine):
    """Anything happens to dead letters, in any order; a model says where each must stand."""

    def __init__(self) -> None:
        super().__init__()
        self.connection = tables()
        self.model: dict[int, LetterState] = {}
        self.in_hand: set[int] = set()
        self.position = 0
        self.replays = 0
        self.now = NOON

    def _death(self, number: int) -> Death:
        self.position += 1
        self.now += 1.0
        return death(f"signal-{number}", position=self.position, at=self.now)

    def _in(self, *wanted: LetterState) -> list[int]:
        return sorted(number for number, state in self.model.items() if state in wanted)

    def _row(self, number: int) -> int:
        row = self.connection.execute("SELECT number FROM letters WHERE signal = ?", (f"signal-{number}",)).fetchone()
        return int(row[0])

    def _query(self, chosen: Sequence[int], states: frozenset[LetterState] = OPEN_STATES) -> LetterQuery:
        return LetterQuery(ids=tuple(death(f"signal-{number}").letter for number in chosen), states=states)

    @rule(number=st.integers(0, 5))
    def die(self, number: int) -> None:
        record(self.connection, self._death(number))
        state = self.model.get(number)
        if state is not S.WAITING or number in self.in_hand:
            self.model[number] = S.DEAD
            self.in_hand.discard(number)

    @rule(chosen=st.sets(st.integers(0, 5), min_size=1))
    def claim(self, chosen: set[int]) -> None:
        self.replays += 1
        replay = claimed(self.connection, self._query(sorted(chosen)), f"r{self.replays}")
        expected = [number for number in self._in(S.DEAD) if number in chosen]
        taken = [number for number in self._in(S.WAITING, S.REPLAYING) if number in chosen]
        assert (replay.total, replay.taken) == (len(expected), len(taken))
        self.model.update(dict.fromkeys(expected, S.WAITING))

    @precondition(lambda self: self._in(S.WAITING))
    @rule(data=st.data())
    def take_up(self, data: st.DataObject) -> None:
        number = data.draw(st.sampled_from(self._in(S.WAITING)))
        transitions.take_up(self.connection, [self._row(number)])
        self.in_hand.add(number)

    @rule(chosen=st.sets(st.integers(0, 5), min_size=1))
    def send(self, chosen: set[int]) -> None:
        there = [number for number in sorted(chosen) if number in self.model]
        sent = transitions.sent(self.connection, [Copy(letter=self._row(each)) for each in there], at=self.now)
        expected = [number for number in self._in(S.WAITING) if number in chosen]
        assert sent == len(expected)
        self.model.update(dict.fromkeys(expected, S.REPLAYING))
        self.in_hand.difference_update(expected)

    @rule(chosen=st.sets(st.integers(0, 5), min_size=1), end=st.sampled_from(["acked", "returned", "orphaned"]))
    def end(self, chosen: set[int], end: str) -> None:
        rows = [self._row(number) for number in sorted(chosen) if number in self.model]
        which = one_of("number", rows)
        if end == "returned":
            expected = [number for number in self._in(S.WAITING) if number in chosen]
            assert transitions.returned(self.connection, rows, "gone", at=self.now) == len(expected)
            self.in_hand.difference_update(expected)
        else:
            expected = [number for number in self._in(S.REPLAYING) if number in chosen]
            if end == "acked":
                assert transitions.acked(self.connection, which, at=self.now) == len(expected)
            else:
                assert transitions.orphaned(self.connection, which, "gone", at=self.now) == len(expected)
        self.model.update(dict.fromkeys(expected, S.ACKED if end == "acked" else S.DEAD))

    @precondition(lambda self: self.replays)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        name = f"r{data.draw(st.integers(1, self.replays))}"
        rows = self.connection.execute("SELECT signal FROM letters WHERE replay = ? AND state = 'waiting'", (name,))
        waiting = {int(row[0].removeprefix("signal-")) for row in rows} - self.in_hand
        assert transitions.cancel(self.connection, name, at=self.now, by="bob") == len(waiting)
        self.model.update(dict.fromkeys(waiting, S.DEAD))

    @rule(chosen=st.sets(st.integers(0, 5), min_size=1))
    def discard(self, chosen: set[int]) -> None:
        expected = [number for number in self._in(S.DEAD) if number in chosen]
        query = self._query(sorted(chosen))
        assert transitions.discard(self.connection, query, at=self.now, by="", note="") == len(expected)
        self.model.update(dict.fromkeys(expected, S.DISCARDED))

    @rule(chosen=st.sets(st.integers(0, 5), min_size=1), state=st.sampled_from([S.DISCARDED, S.REPLAYING]))
    def restore(self, chosen: set[int], state: LetterState) -> None:
        expected = [number for number in self._in(state) if number in chosen]
        query = self._query(sorted(chosen), states=frozenset({state}))
        assert transitions.restore(self.connection, query, at=self.now, by="") == len(expected)
        self.model.update(dict.fromkeys(expected, S.DEAD))

    @invariant()
    def every_letter_stands_where_the_model_says(self) -> None:
        found = {
            int(each.signal.removeprefix("signal-")): each.state
            for each in queries.page(self.connection, EVERYTHING).letters
        }
        assert found == self.model

    @invariant()
    def every_replay_adds_up(self) -> None:
        for replay in queries.replays(self.connection, 1_000):
            ends = replay.acked + replay.died_again + replay.returned + replay.cancelled
            assert replay.total == replay.waiting + replay.pending + ends

    @invariant()
    def only_what_waits_or_is_replaying_belongs_to_a_replay(self) -> None:
        rows = self.connection.execute("SELECT state, replay <> '' FROM letters").fetchall()
        assert all(bool(held) == (LetterState(state) in transitions.HELD) for state, held in rows)

    @invariant()
    def the_audit_of_each_letter_ends_where_it_stands(self) -> None:
        following = {
            "replay": S.WAITING,
            "sent": S.REPLAYING,
            "acked": S.ACKED,
            "discard": S.DISCARDED,
        }
        for letter, state in states(self.connection).items():
            entries = audit.of_letter(self.connection, letter)
            assert (following.get(entries[-1].action, S.DEAD) if entries else S.DEAD) is state

    @invariant()
    def groups_count_what_pages_list(self) -> None:
        groups = queries.groups(self.connection, EVERYTHING)
        assert sum(group.count for group in groups) == len(self.model)


TestLives = Lives.TestCase
TestLives.settings = settings(max_examples=60, stateful_step_count=30, deadline=None)

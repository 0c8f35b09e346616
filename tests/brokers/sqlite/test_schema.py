"""Opening: only ever our own database, of a version that we know, in a place that works."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from signalbus.brokers.base import SubscriptionSpec
from signalbus.brokers.sqlite import files, schema, tables
from signalbus.brokers.sqlite.records import pack, seal
from signalbus.brokers.sqlite.sessions import SessionLock
from signalbus.delivery import ACK
from signalbus.errors import ConfigError, StorageError
from tests.brokers.sqlite.support import SECONDS, WORK, Place, data_of, receive, signal
from tests.disks import mounted


def _digest(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


async def test_a_newer_schema_is_refused_and_left_as_it_was(place: Place) -> None:
    """Row 76."""
    broker, _ = await place.serving()
    await broker.publish([signal()], SECONDS)
    await broker.aclose()
    with place.raw() as connection:
        connection.execute(f"PRAGMA user_version = {tables.VERSION + 1}")
    before = _digest(place.path)
    with pytest.raises(ConfigError, match="newer signalbus"):
        await place.open()
    assert _digest(place.path) == before


async def test_the_database_of_another_program_is_refused_and_left_as_it_was(place: Place) -> None:
    with place.raw() as connection:
        connection.execute("CREATE TABLE accounts (name TEXT)")
    before = _digest(place.path)
    with pytest.raises(ConfigError, match="another program"):
        await place.open()
    assert _digest(place.path) == before


async def test_a_file_that_is_no_database_is_refused_and_left_as_it_was(place: Place) -> None:
    """Row 71."""
    place.path.write_bytes(b"this is somebody's text file\n" * 1_000)
    before = _digest(place.path)
    with pytest.raises(ConfigError, match="not an SQLite database"):
        await place.open()
    assert _digest(place.path) == before


async def test_an_empty_file_becomes_a_database(place: Place) -> None:
    place.path.touch()
    broker, _ = await place.serving()
    await broker.aclose()
    with place.raw() as connection:
        assert connection.execute("PRAGMA application_id").fetchone() == (schema.APPLICATION_ID,)
        assert connection.execute("PRAGMA user_version").fetchone() == (tables.VERSION,)
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("wal",)


async def test_files_are_for_their_owner_only(place: Place) -> None:
    await place.open()
    modes = {path.name: path.stat().st_mode & 0o077 for path in place.directory.iterdir()}
    assert set(modes.values()) == {0}, modes


async def test_closing_leaves_one_file_of_sqlite(place: Place) -> None:
    broker, _ = await place.serving()
    await broker.aclose()
    assert not place.wal.exists()
    assert not place.shm.exists()
    assert list(place.sessions.iterdir()) == []


async def test_a_missing_directory_is_named(place: Place) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        await place.open(path=place.directory / "nowhere" / "bus.db")


async def test_a_directory_is_no_database(place: Place) -> None:
    with pytest.raises(ConfigError, match="is a directory"):
        await place.open(path=place.directory)


async def test_names_with_odd_characters_are_the_files_they_name(place: Place) -> None:
    path = place.directory / "büs 100%?mode=memory#.db"
    broker = await place.open(path=path)
    await broker.declare(SubscriptionSpec(name="x", patterns=("#",)), SECONDS)
    assert path.stat().st_size > 0


# Network file systems

MOUNTS = [
    "21 1 8:1 / / rw,relatime - ext4 /dev/sda1 rw",
    "22 21 0:5 / /proc rw - proc proc rw",
    "30 21 0:40 / /mnt/share rw shared:1 master:2 - nfs4 server:/export rw",
    r"31 21 0:41 / /mnt/with\040blank rw - cifs //server/x rw",
    "32 30 8:2 / /mnt/share/local rw - xfs /dev/sdb1 rw",
    "33 21 0:50 / /over rw - ext4 /dev/sdc1 rw",
    "34 21 0:51 / /over rw - fuse.sshfs host: rw",
]


@pytest.mark.parametrize(
    ("directory", "kind"),
    [
        ("/home/me", "ext4"),
        ("/mnt/share", "nfs4"),
        ("/mnt/share/deep/below", "nfs4"),
        ("/mnt/shared", "ext4"),
        ("/mnt/with blank", "cifs"),
        ("/mnt/share/local/x", "xfs"),
        ("/over/me", "fuse.sshfs"),
    ],
)
def test_the_file_system_of_a_directory_is_that_of_the_innermost_newest_mount(directory: str, kind: str) -> None:
    """Row 73."""
    assert files.find_filesystem(MOUNTS, Path(directory)) == kind


@pytest.mark.parametrize("kind", ["nfs", "nfs4", "cifs", "smb3", "9p", "fuse.sshfs", "fuse", "ceph", "virtiofs"])
def test_network_file_systems_are_told_apart(kind: str) -> None:
    """Row 73."""
    assert files.is_network(kind)


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "tmpfs", "overlay", "zfs", "apfs", "f2fs"])
def test_local_file_systems_are_told_apart(kind: str) -> None:
    """Row 73."""
    assert not files.is_network(kind)


async def test_a_network_file_system_is_refused_unless_forced(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Row 73."""
    mounts = place.directory / "mountinfo"
    mounts.write_text("21 1 0:40 / / rw - nfs4 server:/export rw\n")
    monkeypatch.setattr(files, "_MOUNTS", mounts)
    with pytest.raises(ConfigError, match="network file system \\(nfs4\\)"):
        await place.open()
    assert not place.path.exists()
    await place.open(network_filesystem=True)


# Rights


@contextmanager
def _read_only(directory: Path) -> Iterator[None]:
    """Mount a copy of ``directory`` over it, read-only."""
    copy = directory.with_name("copy")
    shutil.copytree(directory, copy)
    with mounted(directory, "16m"):
        shutil.copytree(copy, directory, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", directory], check=True)
        yield


@pytest.mark.parametrize("existing", [True, False])
async def test_a_read_only_place_is_refused_with_what_to_do(tmp_path: Path, existing: bool) -> None:
    """Row 72."""
    directory = tmp_path / "data"
    directory.mkdir()
    place = Place(directory)
    if existing:
        await (await place.open()).aclose()
    with _read_only(directory), pytest.raises(StorageError, match=r"owner and mode|owner, mode and mount"):
        await place.open()


@contextmanager
def _immutable(path: Path) -> Iterator[None]:
    """Take the right to write a file away, even from root."""
    if os.geteuid():
        path.chmod(0o400)
        yield
        return
    made = subprocess.run(["chattr", "+i", path], capture_output=True, text=True, check=False)
    if made.returncode:
        pytest.skip(f"root may write everything, and chattr says {made.stderr}")
    try:
        yield
    finally:
        subprocess.run(["chattr", "-i", path], check=True)


async def test_a_read_only_file_is_refused_with_what_to_do(place: Place) -> None:
    """Row 72."""
    await (await place.open()).aclose()
    with _immutable(place.path), pytest.raises(StorageError, match="check"):
        await place.open()


async def test_a_symbolic_link_leads_to_the_one_database(place: Place) -> None:
    """SQLite names its log after the file behind the link."""
    link = place.directory / "link.db"
    link.symlink_to(place.path)
    await (await place.open(path=link)).declare(WORK, SECONDS)
    assert [queue.name for queue in await (await place.open()).queues(SECONDS)] == [WORK.name]
    assert place.path.is_file()


# Versions


def _columns(connection: sqlite3.Connection) -> dict[str, list[tuple[object, ...]]]:
    names = [row[0] for row in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table' ORDER BY name")]
    return {name: connection.execute(f"SELECT * FROM pragma_table_info('{name}')").fetchall() for name in names}


def _make_version_1(path: Path) -> None:
    """A file as version 1 of this program made and left it: signals, one claimed by a process that has died since."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.executescript(VERSION_1)
    connection.execute("INSERT INTO meta (only, topology, boot) VALUES (1, 1, '')")
    connection.execute(f"PRAGMA application_id = {schema.APPLICATION_ID}")
    connection.execute("PRAGMA user_version = 1")
    connection.execute("INSERT INTO subscriptions (name, patterns, owner) VALUES ('work', '[\"work.#\"]', NULL)")
    connection.execute(
        "INSERT INTO sessions (token, socket, session, name, host, pid, version, started)"
        " VALUES ('0123456789abcdef', '', 'old', 'old', 'here', 1, '0.1', '2024-01-01T00:00:00+00:00')"
    )
    for seq in (1, 2):
        _, head, body, checksum = pack(signal(seq))
        row = (seq, 1, seal(checksum, seq, 1), head, body)
        connection.execute("INSERT INTO signals (seq, fanout, checksum, head, body) VALUES (?, ?, ?, ?, ?)", row)
    connection.execute(
        "INSERT INTO claimed (subscription, signal, attempt, crashes, session, batch) VALUES (1, 1, 1, 0, 1, 1)"
    )
    connection.execute("INSERT INTO ready (subscription, signal) VALUES (1, 2)")
    connection.close()


async def test_a_file_of_version_1_is_brought_up_to_date_with_all_that_is_in_it(place: Place) -> None:
    _make_version_1(place.path)
    broker, consumer = await place.serving()
    received = await receive(consumer, 2)
    assert [(data_of(incoming), incoming.crashes) for incoming in received] == [(1, 1), (2, 0)]
    for incoming in received:
        assert await consumer.settle(incoming, ACK)
    other, info = await place.entered()
    future = await broker.watch(info.id, SECONDS)
    responder = await other.respond("ask", 1, 1, SECONDS)
    await responder.aclose()
    await other.aclose()
    async with asyncio.timeout(SECONDS):
        assert (await future).reason == "normal"
    await broker.aclose()
    fresh = Place(place.directory / "fresh")
    fresh.directory.mkdir()
    await (await fresh.open()).aclose()
    with place.raw() as migrated, fresh.raw() as created:
        assert migrated.execute("PRAGMA user_version").fetchone() == (tables.VERSION,)
        assert _columns(migrated) == _columns(created)
        assert migrated.execute("SELECT session, reason FROM departures").fetchall()[0] == ("old", "connection_lost")


async def test_a_migration_that_is_interrupted_leaves_the_file_as_it_was(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make_version_1(place.path)
    broken = {2: (*tables.MIGRATIONS[2], "CREATE TABLE sessions (id INTEGER)")}
    monkeypatch.setattr(schema, "MIGRATIONS", broken)
    with pytest.raises(StorageError, match="already exists"):
        await place.open()
    with place.raw() as connection:
        assert connection.execute("PRAGMA user_version").fetchone() == (1,)
        assert "departures" not in _columns(connection)
    monkeypatch.undo()
    assert len(await (await place.open()).queues(SECONDS)) == 1


async def test_a_process_of_version_1_goes_on_while_the_file_is_brought_up_to_date(place: Place) -> None:
    """It has the file open, and knows nothing of departures: who watches its session learns that it is gone."""
    _make_version_1(place.path)
    old = sqlite3.connect(place.path, isolation_level=None)
    held = SessionLock(place.sessions)
    old.execute("UPDATE sessions SET token = ?", (held.token,))
    broker = await place.open()
    future = await broker.watch("old", SECONDS)
    assert not future.done()
    (status,) = [status for status in await broker.sessions(SECONDS) if status.info.id == "old"]
    assert status.report is None
    old.execute("BEGIN IMMEDIATE")
    old.execute("DELETE FROM claimed")
    old.execute("DELETE FROM sessions WHERE session = 'old'")
    old.execute("UPDATE meta SET topology = topology + 1")
    old.execute("COMMIT")
    held.close()
    old.close()
    async with asyncio.timeout(SECONDS):
        assert (await future).reason == "noproc"


# The tables of version 1, as they were.
VERSION_1 = """
CREATE TABLE meta (
    only INTEGER PRIMARY KEY CHECK (only = 1),
    topology INTEGER NOT NULL,  -- grows with each change of subscriptions, consumers or sessions
    boot TEXT NOT NULL          -- the boot that delayed.due counts from
);
CREATE TABLE sessions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    token TEXT NOT NULL UNIQUE,  -- names its lock file
    socket TEXT NOT NULL,        -- where it listens for wake-ups
    session TEXT NOT NULL, name TEXT NOT NULL, host TEXT NOT NULL, pid INTEGER NOT NULL,
    version TEXT NOT NULL, started TEXT NOT NULL
);
CREATE TABLE subscriptions (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    name TEXT NOT NULL UNIQUE,
    patterns TEXT NOT NULL,  -- JSON array
    owner INTEGER            -- the session it vanishes with; NULL: durable
);
CREATE TABLE consumers (
    subscription INTEGER NOT NULL, session INTEGER NOT NULL, count INTEGER NOT NULL,
    PRIMARY KEY (subscription, session)
) WITHOUT ROWID;
CREATE TABLE signals (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    fanout INTEGER NOT NULL,    -- deliveries it started with
    checksum INTEGER NOT NULL,  -- see records.seal
    head BLOB NOT NULL,         -- JSON array: id, type, content type, headers
    body BLOB NOT NULL
);
CREATE TABLE fanout (
    signal INTEGER PRIMARY KEY, pending INTEGER NOT NULL
);
CREATE TABLE ready (
    subscription INTEGER NOT NULL, signal INTEGER NOT NULL,
    attempt INTEGER NOT NULL DEFAULT 1, crashes INTEGER NOT NULL DEFAULT 0, history BLOB,
    PRIMARY KEY (subscription, signal)
) WITHOUT ROWID;
CREATE TABLE claimed (
    subscription INTEGER NOT NULL, signal INTEGER NOT NULL,
    attempt INTEGER NOT NULL, crashes INTEGER NOT NULL, history BLOB,
    session INTEGER NOT NULL, batch INTEGER NOT NULL,
    PRIMARY KEY (subscription, signal)
) WITHOUT ROWID;
CREATE TABLE delayed (
    subscription INTEGER NOT NULL, signal INTEGER NOT NULL,
    attempt INTEGER NOT NULL, crashes INTEGER NOT NULL, history BLOB,
    due REAL NOT NULL,       -- seconds on the boot clock
    due_wall REAL NOT NULL,  -- seconds since 1970, used after a reboot only
    delay REAL NOT NULL,
    PRIMARY KEY (subscription, signal)
) WITHOUT ROWID;
CREATE INDEX delayed_due ON delayed (subscription, due);
CREATE TABLE dead_letters (
    position INTEGER PRIMARY KEY AUTOINCREMENT,
    subscription TEXT NOT NULL,
    signal INTEGER NOT NULL, fanout INTEGER, checksum INTEGER, head BLOB, body BLOB,
    reason TEXT NOT NULL, detail TEXT NOT NULL,
    attempt INTEGER NOT NULL, crashes INTEGER NOT NULL,
    at REAL NOT NULL, history BLOB
);
CREATE TABLE purges (
    subscription INTEGER PRIMARY KEY  -- deleted, its deliveries are still being removed
);
-- For people with the sqlite3 shell.
CREATE VIEW readable_signals AS
    SELECT seq, json_extract(CAST(head AS TEXT), '$[0]') AS id, json_extract(CAST(head AS TEXT), '$[1]') AS type,
           json_extract(CAST(head AS TEXT), '$[2]') AS content_type, length(body) AS bytes
    FROM signals;
"""

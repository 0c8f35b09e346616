"""Opening: only ever our own database, of a version that we know, in a place that works."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from signalbus.brokers.base import SubscriptionSpec
from signalbus.brokers.sqlite import files, schema, tables
from signalbus.errors import ConfigError, StorageError
from tests.brokers.sqlite.support import SECONDS, WORK, Place, signal


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
    if os.geteuid() or not sys.platform.startswith("linux"):
        pytest.skip("needs to mount")
    copy = directory.with_name("copy")
    shutil.copytree(directory, copy)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "none", directory], capture_output=True, text=True, check=False)
    if mounted.returncode:
        pytest.skip(f"cannot mount: {mounted.stderr}")
    try:
        shutil.copytree(copy, directory, dirs_exist_ok=True)
        subprocess.run(["mount", "-o", "remount,ro", directory], check=True)
        yield
    finally:
        subprocess.run(["umount", "-l", directory], check=True)


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

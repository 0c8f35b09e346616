"""The files of one database and the file system they are on. Knows no SQL."""

from __future__ import annotations

import os
import re
import time
from functools import cached_property
from pathlib import Path
from urllib.parse import quote

from ...errors import ConfigError, StorageError

# WAL needs memory shared between all users of a file, and locks that mean something: not here.
_NETWORK = frozenset(
    (
        *(
            "9p",
            "afs",
            "beegfs",
            "ceph",
            "cifs",
            "coda",
            "davfs",
            "davfs2",
            "gfs",
            "gfs2",
            "glusterfs",
            "gpfs",
        ),
        *("lustre", "ncp", "ncpfs", "ocfs2", "orangefs", "panfs", "prl_fs", "pvfs2", "vboxsf", "virtiofs"),
        *("vmhgfs", "webdav"),
    )
)
_MOUNTS = Path("/proc/self/mountinfo")
_ESCAPE = re.compile(r"\\([0-7]{3})")  # blanks, tabs and backslashes in a mount point

_TIMESTAMP_GRAIN_NS = 50_000_000  # the kernel's own is 1 to 10 ms

Identity = tuple[tuple[int, int], ...]


class Files:
    """Paths around a database: SQLite's own two, the write lock, and the directory of session locks."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @cached_property
    def _path(self) -> str:
        return str(self.path)

    @cached_property
    def _directory(self) -> str:
        return str(self.path.parent)

    @cached_property
    def wal(self) -> str:
        """SQLite's write-ahead log."""
        return f"{self.path}-wal"

    @cached_property
    def shm(self) -> str:
        """SQLite's shared index of the log."""
        return f"{self.path}-shm"

    @cached_property
    def lock(self) -> str:
        """The file whose lock orders writers."""
        return f"{self.path}-lock"

    @cached_property
    def sessions(self) -> Path:
        """The directory of session locks and sockets."""
        return Path(f"{self.path}-sessions")

    @cached_property
    def uri(self) -> str:
        """The database for SQLite, never to be created by opening it.

        ``psow=1`` is the default, made explicit as we rely on it: nothing is written to the log after a commit.
        """
        return f"file:{quote(str(self.path))}?mode=rw&psow=1"

    def create(self) -> None:
        """Create an empty database file, readable by its owner only, unless it exists; the write lock is held.

        SQLite is not given the chance, as its files are readable by everybody. An existing file is never opened
        here: closing it again would drop the locks that SQLite holds on it in this process.
        """
        try:
            os.close(os.open(self.path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except FileExistsError:
            pass  # as it should be, from the second opening on
        except OSError as error:
            raise StorageError(
                f"cannot create {self.path}: {error.strerror}; check the directory, its owner and mode"
            ) from error

    def locate(self, *, network_filesystem: bool) -> None:
        """Find the file; the first thing to do, as it looks at the disk.

        Raises `ConfigError` if the directory is missing, or on a network file system and that is not allowed.
        """
        # SQLite follows symbolic links before it names its other files, and so must we.
        self.path = self.path.resolve()
        directory = self.path.parent
        if not directory.is_dir():
            raise ConfigError(f"the directory {directory} of the database does not exist; create it, or name another")
        if self.path.is_dir():
            raise ConfigError(f"{self.path} is a directory; name a file")
        if not network_filesystem and (kind := filesystem(directory)) and is_network(kind):
            raise ConfigError(
                f"{directory} is on a network file system ({kind}), where SQLite's locks and shared memory do not "
                "work; name a local directory, or use RabbitMQ. network_filesystem=true in the URL overrides this"
            )

    def identity(self) -> Identity:
        """Return which files the paths lead to now. Raises `FileNotFoundError` if one is gone."""
        return _identity(self._path), _identity(self.wal), _identity(self.shm)

    def directory_state(self) -> tuple[int, int, int] | None:
        """Return what stays the same as long as no name in the directory changes; None if that cannot be told now.

        By its time of change: the time of modification is set back by whoever restores a backup with its times.
        Time stamps have a grain of milliseconds: a fresh one may hide a change that comes after this look.
        """
        found = os.stat(self._directory)  # noqa: PTH116 - hot: twice a transaction
        if time.time_ns() - found.st_ctime_ns < _TIMESTAMP_GRAIN_NS:
            return None
        return found.st_dev, found.st_ino, found.st_ctime_ns

    def wal_size(self) -> int:
        """Return the bytes of the log, 0 if there is none."""
        try:
            return os.stat(self.wal).st_size  # noqa: PTH116 - hot, and a Path would be made each time
        except FileNotFoundError:
            return 0

    def wal_identity(self) -> tuple[int, int] | None:
        """Return which file the path of the log leads to, None if there is none."""
        try:
            return _identity(self.wal)
        except OSError:
            return None

    def is_replaced(self, identity: tuple[int, int]) -> bool:
        """Tell whether the path leads to another file than that of ``identity``; not if it leads to none."""
        try:
            return _identity(self._path) != identity
        except OSError:
            return False

    def set_log_aside(self) -> None:
        """Give the log another name, ``-wal.replaced``, as its database has lost its own."""
        if self.has_wal():
            Path(self.wal).replace(f"{self.wal}.replaced")
        self.remove_shm()

    def has_wal(self) -> bool:
        """Tell whether the log can be found by its name."""
        return Path(self.wal).exists()

    def remove_shm(self) -> None:
        """Remove the shared index; who has it open notices by `identity`."""
        Path(self.shm).unlink(missing_ok=True)

    def free_bytes(self) -> int | None:
        """Return the bytes that an ordinary user may still write on this file system, None if it does not tell."""
        try:
            at = os.statvfs(self.path)
        except OSError:
            return None
        return at.f_bavail * at.f_frsize


def filesystem(directory: Path) -> str | None:
    """Return the type of the file system that ``directory`` is on, None where the system does not tell."""
    try:
        lines = _MOUNTS.read_text(encoding="utf-8", errors="surrogateescape").splitlines()
    except OSError:
        return None  # not Linux
    return find_filesystem(lines, directory.resolve())


def find_filesystem(mountinfo: list[str], directory: Path) -> str | None:
    """Return the type of the innermost, newest mount over ``directory``. Format: proc_pid_mountinfo(5)."""
    best: tuple[int, str] | None = None
    for line in mountinfo:
        left, separator, right = line.partition(" - ")
        if not separator:
            continue
        mount = Path(_ESCAPE.sub(lambda found: chr(int(found[1], 8)), left.split(" ")[4]))
        if directory.is_relative_to(mount) and (best is None or len(mount.parts) >= best[0]):
            best = len(mount.parts), right.split(" ")[0]
    return best[1] if best else None


def _identity(path: str) -> tuple[int, int]:
    found = os.stat(path)  # noqa: PTH116 - hot: twice a transaction, three files
    return found.st_dev, found.st_ino


def is_network(kind: str) -> bool:
    """Tell whether a file system type is a network's, or FUSE, behind which anything may be."""
    return kind in _NETWORK or kind == "fuse" or kind.startswith(("fuse.", "nfs", "smb"))

"""Unix sockets with a path: beside the session's lock file, or where paths are shorter. Sends nothing."""

from __future__ import annotations

import os
import socket
import stat
import sys
import tempfile
from pathlib import Path

# Bytes of a socket's path: sun_path has 108 on Linux and 104 elsewhere, with the terminator.
_LONGEST = 107 if sys.platform == "linux" else 103
_DIRECTORY_PREFIX = "signalbus-"
_SHORT_NAME = "socket"


def bind(kind: socket.SocketKind, path: Path) -> tuple[socket.socket, str] | None:
    """Return a socket that does not block, and its path; another one if that is too long. None if there can be none.

    The file is its owner's only; nothing can connect before the socket listens.
    """
    end = socket.socket(socket.AF_UNIX, kind)
    end.setblocking(False)
    try:
        if len(os.fsencode(path)) > _LONGEST:
            path = Path(tempfile.mkdtemp(prefix=_DIRECTORY_PREFIX)) / _SHORT_NAME
        end.bind(str(path))
        path.chmod(0o600)
    except OSError:
        end.close()  # a file system without sockets, or out of files
        remove_socket(str(path))
        return None
    return end, str(path)


def bind_again(kind: socket.SocketKind, path: str) -> socket.socket | None:
    """Return a socket at the path of an earlier one whose file somebody removed; None if that does not work."""
    if _is_ours_alone(Path(path)) and not _make(Path(path).parent):
        return None
    bound = bind(kind, Path(path))
    return bound[0] if bound is not None else None


def remove_socket(path: str) -> None:
    """Remove the socket of a session that is over, with the directory made for it alone. Idempotent."""
    if not path:
        return
    Path(path).unlink(missing_ok=True)
    if _is_ours_alone(Path(path)):
        try:
            Path(path).parent.rmdir()
        except OSError:
            pass  # gone already, or not only ours


def _make(directory: Path) -> bool:
    """Make a directory in a place where others may do so too; no if it is there and not ours only."""
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        found = directory.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def _is_ours_alone(path: Path) -> bool:
    return path.name == _SHORT_NAME and path.parent.name.startswith(_DIRECTORY_PREFIX)

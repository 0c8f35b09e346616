"""Sockets with a path: their owner's only, wherever there is room for the path, and made again when removed."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from signalbus.brokers.sqlite.sockets import bind, bind_again, remove_socket


@pytest.mark.parametrize("length", [1, 150])
def test_a_socket_is_its_owners_only_and_leaves_nothing(tmp_path: Path, length: int) -> None:
    (tmp_path / ("d" * length)).mkdir()
    bound = bind(socket.SOCK_STREAM, tmp_path / ("d" * length) / "x.call")
    assert bound is not None
    end, path = bound
    assert Path(path).stat().st_mode & 0o077 == 0
    with socket.socket(socket.AF_UNIX) as other, pytest.raises(ConnectionRefusedError):
        other.connect(path)  # nobody listens yet
    end.close()
    remove_socket(path)
    remove_socket(path)
    assert not Path(path).exists()
    assert Path(path).parent.exists() is (length == 1), "the directory made for it alone goes with it"


@pytest.mark.parametrize("length", [1, 150])
@pytest.mark.parametrize("directory_too", [False, True])
def test_a_removed_socket_is_made_again_at_the_same_path(tmp_path: Path, length: int, directory_too: bool) -> None:
    (tmp_path / ("d" * length)).mkdir()
    bound = bind(socket.SOCK_DGRAM, tmp_path / ("d" * length) / "x.sock")
    assert bound is not None
    end, path = bound
    end.close()
    if directory_too and length > 1:
        remove_socket(path)
    else:
        Path(path).unlink()
    again = bind_again(socket.SOCK_DGRAM, path)
    assert again is not None
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as other:
        other.sendto(b"x", path)
    assert again.recv(1) == b"x"
    again.close()
    remove_socket(path)


def test_a_directory_that_is_open_to_others_is_not_used_again(tmp_path: Path) -> None:
    """Its name is known by now: somebody else may have made it."""
    (tmp_path / ("d" * 150)).mkdir()
    bound = bind(socket.SOCK_DGRAM, tmp_path / ("d" * 150) / "x.sock")
    assert bound is not None
    end, path = bound
    end.close()
    Path(path).unlink()
    Path(path).parent.chmod(0o777)
    assert bind_again(socket.SOCK_DGRAM, path) is None
    Path(path).parent.rmdir()


def test_where_there_can_be_no_socket_there_is_none(tmp_path: Path) -> None:
    assert bind(socket.SOCK_STREAM, tmp_path / "nowhere" / "x.call") is None
    assert bind_again(socket.SOCK_STREAM, str(tmp_path / "nowhere" / "x.call")) is None


@pytest.mark.parametrize("path", ["", "nowhere/x.sock"])
def test_removing_no_socket_is_fine(path: str) -> None:
    remove_socket(path)

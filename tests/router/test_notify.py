"""Telling systemd: what is sent, where to, and that nothing goes wrong without it."""

from __future__ import annotations

import asyncio
import secrets
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from signalbus.router.notify import ALIVE, READY, Notifier


@pytest.fixture(params=["path", "abstract"])
def listening(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, socket.socket]]:
    address = str(tmp_path / "notify") if request.param == "path" else f"\0signalbus-{secrets.token_hex(8)}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiving:
        receiving.bind(address)
        receiving.settimeout(5)
        yield address.replace("\0", "@"), receiving


def test_states_go_to_the_socket_of_systemd(listening: tuple[str, socket.socket]) -> None:
    address, receiving = listening
    Notifier({"NOTIFY_SOCKET": address}).tell(READY, "STATUS=all is well")
    assert receiving.recv(1_000) == b"READY=1\nSTATUS=all is well"


async def test_the_watchdog_hears_of_us_in_time(listening: tuple[str, socket.socket]) -> None:
    address, receiving = listening
    notifier = Notifier({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "200000"})
    assert notifier.watchdog_seconds == 0.2
    receiving.setblocking(False)
    loop, told = asyncio.get_running_loop(), asyncio.create_task(notifier.keep_alive())
    try:
        async with asyncio.timeout(5):
            heard = [(await loop.sock_recv(receiving, 100), loop.time()) for _ in range(3)]
    finally:
        told.cancel()
        await asyncio.wait([told])
    assert [message for message, _ in heard] == [ALIVE.encode()] * 3


def test_without_systemd_or_with_a_socket_that_is_gone_nothing_happens(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    Notifier({}).tell(READY)
    assert not caplog.records
    Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).tell(READY)
    assert "cannot be told READY=1" in caplog.text


@pytest.mark.parametrize(
    ("environment", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "42"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "43"}, None),
    ],
)
def test_a_sign_of_life_is_given_where_it_is_wanted_from_us(environment: dict[str, str], seconds: float | None) -> None:
    assert Notifier(environment, pid=42).watchdog_seconds == seconds

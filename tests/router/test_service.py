"""The router as a service: what systemd is told, and the example of a unit."""

from __future__ import annotations

import asyncio
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli.program import ROOT
from tests.router.conftest import router_process

UNIT = ROOT / "docs" / "signalbus-router.service"


class Manager:
    """What systemd hears."""

    def __init__(self, listening: socket.socket) -> None:
        self._listening = listening
        self.heard: list[str] = []

    async def wait(self, state: str, timeout: float = 30.0) -> None:
        """Wait until a state is told."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(timeout):
            while not any(each.startswith(state) for each in self.heard):
                self.heard += (await loop.sock_recv(self._listening, 4_096)).decode().split("\n")

    async def wait_silence(self, seconds: float) -> None:
        """Wait until nothing was told for a while: what was sent before may still come."""
        loop = asyncio.get_running_loop()
        async with asyncio.timeout(30):
            while True:
                try:
                    async with asyncio.timeout(seconds):
                        await loop.sock_recv(self._listening, 4_096)
                except TimeoutError:
                    self.heard.clear()
                    return


@pytest.mark.rabbitmq
async def test_systemd_is_told_when_the_router_is_ready_alive_and_stopping(amqp_url: str, tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address)
        listening.setblocking(False)
        manager = Manager(listening)
        with router_process(amqp_url, tmp_path, NOTIFY_SOCKET=address, WATCHDOG_USEC="500000") as router:
            await manager.wait("READY=1")
            await manager.wait("STATUS=keeps the ledger")
            manager.heard.clear()
            await manager.wait("WATCHDOG=1", 5.0)
            assert "STOPPING=1" not in manager.heard
            router.send(signal.SIGTERM)
            await manager.wait("STOPPING=1", 5.0)
            assert await asyncio.to_thread(router.wait) == 0, router.err
    assert "Traceback" not in router.err


@pytest.mark.rabbitmq
async def test_a_router_whose_event_loop_stands_still_gives_no_sign_of_life(amqp_url: str, tmp_path: Path) -> None:
    address = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(address)
        listening.setblocking(False)
        manager = Manager(listening)
        with router_process(amqp_url, tmp_path, NOTIFY_SOCKET=address, WATCHDOG_USEC="200000") as router:
            await manager.wait("WATCHDOG=1")
            router.send(signal.SIGSTOP)
            try:
                await manager.wait_silence(1.0)
            finally:
                router.send(signal.SIGCONT)
            await manager.wait("WATCHDOG=1")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs systemd-analyze")
def test_the_example_of_a_unit_is_one(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/opt/signalbus/bin/signalbus", sys.executable))
    done = subprocess.run(
        ["systemd-analyze", "verify", str(copy)], capture_output=True, text=True, timeout=60, check=False
    )
    complaints = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert complaints == []
    assert done.returncode == 0, done.stderr

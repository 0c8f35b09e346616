"""Telling systemd how a service is: ready, stopping, alive. See sd_notify(3); without systemd nothing is done."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Mapping

log = logging.getLogger(__name__)

READY = "READY=1"
STOPPING = "STOPPING=1"
ALIVE = "WATCHDOG=1"


class Notifier:
    """Sends states to the socket that ``NOTIFY_SOCKET`` names: a path, or ``@`` and a name in the abstract space."""

    def __init__(self, environment: Mapping[str, str] | None = None, pid: int | None = None) -> None:
        environment = os.environ if environment is None else environment
        self._address = environment.get("NOTIFY_SOCKET", "")
        self.watchdog_seconds = _watchdog(environment, os.getpid() if pid is None else pid)

    def tell(self, *states: str) -> None:
        """Send states. Does not block; that nobody takes them is logged, and no failure of ours."""
        if not self._address:
            return
        address = f"\0{self._address[1:]}" if self._address.startswith("@") else self._address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as sending:
                sending.setblocking(False)
                sending.sendto("\n".join(states).encode(), address)
        except OSError as error:
            log.warning("systemd cannot be told %s: %s", ", ".join(states), error)

    async def keep_alive(self) -> None:
        """Say that the event loop turns, twice as often as is asked for, for ever; needs ``watchdog_seconds``."""
        assert self.watchdog_seconds is not None
        while True:
            self.tell(ALIVE)
            await asyncio.sleep(self.watchdog_seconds / 2)


def _watchdog(environment: Mapping[str, str], pid: int) -> float | None:
    """Return within how many seconds a sign of life is wanted from this process, None if none is."""
    microseconds, wanted_from = environment.get("WATCHDOG_USEC", ""), environment.get("WATCHDOG_PID", str(pid))
    if not microseconds.isdecimal() or int(microseconds) == 0 or wanted_from != str(pid):
        return None
    return int(microseconds) / 1e6

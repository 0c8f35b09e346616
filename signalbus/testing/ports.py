"""Choose TCP ports for servers that are stopped and started again on the same port."""

from __future__ import annotations

import random
import socket

# Below the kernels' ranges for outgoing connections (Linux: from 32768). A client that keeps trying to
# reconnect to a loopback port within that range can end up connected to itself.
LOWEST, HIGHEST = 20_000, 32_000


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on now.

    Nothing reserves it: bind soon. Seeded runs still get different ports, since two may run at once.
    """
    choice = random.SystemRandom()
    for _ in range(1_000):
        port = choice.randrange(LOWEST, HIGHEST)
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError:
                continue
        return port
    raise RuntimeError(f"no free port on {host} between {LOWEST} and {HIGHEST}")

"""Who may ask: where this listens, by which names, and the token. Read in one place; knows no HTTP."""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import os
import socket
import stat
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ConfigError

DEFAULT_LISTEN = "127.0.0.1:8642"
TOKEN = "SIGNALBUS_TOKEN"  # noqa: S105 - the name of the variable
HOSTS = "SIGNALBUS_HOSTS"
MIN_TOKEN = 16  # characters; shorter ones can be guessed over a network
PASS_SECONDS = 12 * 3_600  # how long a page stays logged in
LOOPBACK_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Access:
    """Where to listen, and whom to answer. ``port`` 0: any that is free; ``or_any``: any that is free if ``port`` is
    taken. ``names``: further hosts of our own URL.

    With a ``token`` every request has to bring it. Without one only this machine is answered: raises `ConfigError` for
    another address.
    """

    host: str = "127.0.0.1"
    port: int = 8642
    or_any: bool = False
    token: str | None = field(default=None, repr=False)
    names: frozenset[str] = frozenset()
    clock: Callable[[], float] = field(default=time.time, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65_535:
            raise ConfigError(f"port {self.port} to listen on must be from 0 to 65535")
        if self.token is not None and (len(self.token) < MIN_TOKEN or not _sendable(self.token)):
            raise ConfigError(
                f"the token must be at least {MIN_TOKEN} printable ASCII characters without blanks; "
                "make one: python3 -c 'import secrets; print(secrets.token_urlsafe(32))'"
            )
        if self.token is None and not self.loopback:
            raise ConfigError(
                f"listening on {self.host} lets other machines in, and that needs a token; "
                f"set {TOKEN} or name a token file, or listen on 127.0.0.1"
            )

    @classmethod
    def read(
        cls,
        listen: str = DEFAULT_LISTEN,
        token_file: Path | None = None,
        *,
        environment: Mapping[str, str] | None = None,
    ) -> Access:
        """Read ``host:port``, the token (from a file, else ``SIGNALBUS_TOKEN``) and the names of ``SIGNALBUS_HOSTS``.

        Raises `ConfigError`.
        """
        environment = os.environ if environment is None else environment
        host, port = split_address(listen)
        token = token_from_file(token_file) if token_file is not None else environment.get(TOKEN) or None
        return cls(host=host, port=port, token=token, names=read_names(environment))

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host.lower() == "localhost":
            return True
        address = _address(self.host)
        return address is not None and address.is_loopback

    def knows(self, host: str) -> bool:
        """Tell whether a name may stand in front of us: any other may be one that an attacker lets point at us."""
        name = host.lower().rstrip(".")
        if name in LOOPBACK_NAMES or name == self.host.lower() or name in self.names:
            return True
        if not self._everywhere:
            return False
        # An address cannot be pointed at somebody else, as a name can.
        return _address(name) is not None or name == socket.gethostname().lower()

    @property
    def _everywhere(self) -> bool:
        address = _address(self.host)
        return address is not None and address.is_unspecified

    # What a caller has to show

    def admits(self, token: str) -> bool:
        """Tell whether a token is ours, in a time that does not depend on how much of it is right."""
        return self.token is not None and hmac.compare_digest(token.encode(), self.token.encode())

    def make_pass(self) -> str:
        """Return what a browser shows instead of the token; it is good for `PASS_SECONDS`, and as long as the token."""
        expires = str(int(self.clock()) + PASS_SECONDS)
        return f"{expires}.{self._seal(expires)}"

    def admits_pass(self, shown: str) -> bool:
        """Tell whether a pass is ours, and still good."""
        expires, _, seal = shown.partition(".")
        if self.token is None or not hmac.compare_digest(seal.encode(), self._seal(expires).encode()):
            return False
        return int(expires) > self.clock()  # sealed by us, so it is a number

    def _seal(self, expires: str) -> str:
        return hmac.new((self.token or "").encode(), f"signalbus pass {expires}".encode(), hashlib.sha256).hexdigest()


def split_address(listen: str) -> tuple[str, int]:
    """Return host and port of ``host:port``, ``[::1]:port`` or ``host``. Raises `ConfigError`."""
    text = listen.strip()
    host, colon, port = text.rpartition(":")
    if not colon or text.endswith("]"):
        host, port = text, "8642"
    name = host.removeprefix("[").removesuffix("]")
    bare = ":" in name and not host.startswith("[")  # whose port that is, nobody can tell
    wrong = not name or bare or name.isdigit() or any(char in name for char in "/@[]? ")
    if wrong or not port.isascii() or not port.isdigit() or (":" in name and _address(name) is None):
        raise ConfigError(f"{listen[:80]!a} is no address to listen on; write 127.0.0.1:8642 or [::1]:8642")
    return name, int(port)


def read_names(environment: Mapping[str, str]) -> frozenset[str]:
    """Return the names in ``SIGNALBUS_HOSTS``, with commas between: those of a proxy, or of a container."""
    names = (name.strip().lower() for name in environment.get(HOSTS, "").split(","))
    return frozenset(name for name in names if name)


def token_from_file(path: Path) -> str:
    """Return the token in a file. Raises `ConfigError`, also if others may read it."""
    try:
        token = path.read_text(encoding="ascii").strip()
        mode = path.stat().st_mode
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read the token file {path}: {error}") from error
    if mode & (stat.S_IWGRP | stat.S_IWOTH | stat.S_IROTH):
        raise ConfigError(f"the token file {path} can be read or changed by others; chmod 600 {path}")
    if not token:
        raise ConfigError(f"the token file {path} is empty; write the token into it")
    return token


def _address(host: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _sendable(token: str) -> bool:
    return token.isascii() and token.isprintable() and " " not in token

"""Private RabbitMQ nodes for tests: started from the local program, thrown away afterwards.

A node has its own name, ports, data, configuration and cookie in a temporary directory, listens on the loopback
interface only, and is gone when the process that started it is gone, however that ended. Several can run at once.
epmd, Erlang's port mapper, is shared by all Erlang nodes of a machine: it is started when missing, never ended.

`python -m signalbus.testing.rabbitmq -- COMMAND…` runs a command beside such a node.
"""

from __future__ import annotations

import asyncio
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from signalbus.testing.erlang import Console, ErlangError
from signalbus.testing.ports import free_port

__all__ = ["NodeError", "NodeProcess", "PrivateNode", "find_server", "main"]

HOST = "127.0.0.1"
START_SECONDS = 90.0  # 4-8 s on an idle machine, 25 s were seen on a busy one
STOP_SECONDS = 60.0
CTL_SECONDS = 60.0

# Kills the node's process group and removes its directory when the pipe on its stdin closes, which the kernel
# does when the owner dies. Each line names the group to kill from then on; 0 is none.
_WATCHDOG = """
group=0
while read -r line; do group=$line; done
[ "$group" -gt 1 ] && kill -s KILL -- "-$group"
rm -rf "$1" || { sleep 1; rm -rf "$1"; }
"""

_DEFAULTS = {
    "default_user": "guest",
    "default_pass": "guest",
    "log.console": "false",
    "log.file.level": "info",
    # Small build machines: the default is relative to memory and would block publishers.
    "disk_free_limit.absolute": "50MB",
    "vm_memory_high_watermark.absolute": "2GB",
}


class NodeError(RuntimeError):
    """Raised when a node cannot be started, stopped or asked."""


def find_server() -> Path | None:
    """Return the rabbitmq-server program to use, or None when there is none.

    `SIGNALBUS_RABBITMQ_SERVER` chooses one; `rabbitmqctl` is expected beside it.
    """
    chosen = os.environ.get("SIGNALBUS_RABBITMQ_SERVER")
    if chosen:
        return Path(chosen)
    # Debian's program on PATH insists on the user `rabbitmq` and on its log files; the one it wraps does not.
    packaged = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
    if packaged.exists():
        return packaged
    found = shutil.which("rabbitmq-server")
    return Path(found) if found else None


class NodeProcess:
    """A private node, driven by blocking calls. Safe for use by several threads."""

    def __init__(
        self,
        *,
        config: Mapping[str, str] | None = None,
        plugins: Sequence[str] = (),
        cookie: str | None = None,
        server: Path | None = None,
    ) -> None:
        found = server or find_server()
        if found is None:
            raise NodeError("there is no rabbitmq-server: install it or set SIGNALBUS_RABBITMQ_SERVER")
        self._server = found
        self._config = {**_DEFAULTS, **(config or {})}
        self._plugins = tuple(plugins)
        self._cookie = cookie or secrets.token_hex(16)
        self._lock = threading.RLock()
        self._process: subprocess.Popen[bytes] | None = None
        self._watchdog: subprocess.Popen[bytes] | None = None
        self._console: Console | None = None
        self._directory: Path | None = None
        self.name = f"signalbus-{secrets.token_hex(4)}@localhost"
        self.port = free_port(HOST)
        self._dist_port = free_port(HOST)

    @property
    def pid(self) -> int | None:
        """The process id of the broker, None while it does not run."""
        process = self._process
        return None if process is None or process.poll() is not None else process.pid

    @property
    def cookie(self) -> str:
        """The Erlang cookie: nodes that are to form a cluster share it."""
        return self._cookie

    @property
    def directory(self) -> Path:
        """Data, log and configuration."""
        if self._directory is None:
            raise NodeError("the node was never started, or is closed")
        return self._directory

    def url(self, vhost: str = "/", *, user: str = "guest", password: str = "guest") -> str:
        """Return the AMQP URL of a virtual host. Makes nothing."""
        path = "" if vhost == "/" else quote(vhost, safe="")
        return f"amqp://{quote(user, safe='')}:{quote(password, safe='')}@{HOST}:{self.port}/{path}"

    # Life of the process

    def start(self, timeout: float = START_SECONDS) -> None:
        """Start the node, on the data it left if it ran before, and wait until it accepts clients."""
        with self._lock:
            if self.pid is not None:
                raise NodeError(f"{self.name} runs already")
            directory = self._prepare()
            with (directory / "console.log").open("ab") as log:
                process = self._process = subprocess.Popen(
                    [str(self._server)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    cwd=directory,
                    env=self._environment(directory),
                    # A group of its own: Ctrl-C in the terminal is for the tests, and signals reach all of it.
                    start_new_session=True,
                )
            self._guard(process.pid)
        try:
            self.wait_ready(timeout)
        except BaseException:
            self.kill()
            raise

    def wait_ready(self, timeout: float = START_SECONDS) -> None:
        """Wait until the node greets AMQP clients."""
        deadline = time.monotonic() + timeout
        while not self._greets():
            process = self._process
            if process is None or process.poll() is not None:
                raise NodeError(f"{self.name} ended while it started:\n{self.log_tail()}")
            if time.monotonic() > deadline:
                raise NodeError(f"{self.name} was not ready within {timeout:g} s:\n{self.log_tail()}")
            # Nothing announces readiness to a parent process without systemd.
            time.sleep(0.05)

    def stop(self, timeout: float = STOP_SECONDS) -> None:
        """Stop in good order (clients see 320 CONNECTION_FORCED). Does nothing when the node does not run."""
        with self._lock:
            process = self._process
            if process is None:
                return
            if process.poll() is None:
                self.resume()
                # To the broker alone: its helper would die first and take it down in disorder.
                process.terminate()
                try:
                    process.wait(timeout)
                except subprocess.TimeoutExpired as exc:
                    self.kill()
                    raise NodeError(f"{self.name} did not stop within {timeout:g} s") from exc
            self._ended()

    def kill(self) -> None:
        """SIGKILL. Does nothing when the node does not run."""
        with self._lock:
            process = self._process
            if process is None:
                return
            self._signal(signal.SIGKILL)
            process.wait()
            self._ended()

    def suspend(self) -> None:
        """SIGSTOP: connections stay open and nobody answers."""
        self._signal(signal.SIGSTOP)

    def resume(self) -> None:
        """SIGCONT."""
        self._signal(signal.SIGCONT)

    def restart(self, *, kill: bool = False, timeout: float = START_SECONDS) -> None:
        """Stop (or kill) the node and start it again on the same data and ports."""
        if kill:
            self.kill()
        else:
            self.stop()
        self.start(timeout)

    def close(self) -> None:
        """Kill the node and remove its data. Idempotent."""
        with self._lock:
            self.kill()
            if self._console is not None:
                self._console.close()
                self._console = None
            watchdog, self._watchdog = self._watchdog, None
            if watchdog is not None:
                assert watchdog.stdin is not None
                # Its last act is ours: with no group to kill it only removes the directory.
                watchdog.stdin.close()
                watchdog.wait()
            self._directory = None

    # Questions and orders

    def ctl(self, *arguments: str, timeout: float = CTL_SECONDS) -> str:
        """Run `rabbitmqctl` and return what it printed. Each call starts an Erlang VM: 1-2 s."""
        program = self._server.with_name("rabbitmqctl")
        command = [str(program), "--quiet", "--node", self.name, *arguments]
        # A group of its own, so that the deadline ends the VM too and not only the script that started it.
        with subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=self._environment(self.directory),
            start_new_session=True,
        ) as process:
            try:
                output, errors = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired as exc:
                os.killpg(process.pid, signal.SIGKILL)
                raise NodeError(f"rabbitmqctl {arguments[0]} took longer than {timeout:g} s") from exc
        if process.returncode != 0:
            text = (errors or output).decode(errors="replace").strip()
            raise NodeError(f"rabbitmqctl {' '.join(arguments)} failed ({process.returncode}): {text}")
        return output.decode()

    def eval(self, expression: str, *, timeout: float = CTL_SECONDS) -> str:
        """Evaluate Erlang expressions on the node and return the printed value. Milliseconds a call."""
        if shutil.which("erl") is None:
            return self.ctl("eval", expression.strip().rstrip(".") + ".", timeout=timeout).strip()
        with self._lock:
            if self._console is None or not self._console.alive:
                if self._console is not None:
                    self._console.close()
                self._console = Console(self.name, self._environment(self.directory))
            try:
                return self._console.eval(expression, timeout)
            except ErlangError as exc:
                raise NodeError(str(exc)) from exc

    def add_vhost(self, vhost: str | None = None, *, user: str = "guest") -> str:
        """Make a virtual host on which `user` may do everything; return its name, by default a fresh one."""
        name = vhost or f"t-{secrets.token_hex(6)}"
        self.eval(f'rabbit_vhost:add({_binary(name)}, <<"test">>), {_grant(user, name)}')
        return name

    def delete_vhost(self, vhost: str) -> None:
        """Delete a virtual host with all it holds; its clients are disconnected."""
        self.eval(f'rabbit_vhost:delete({_binary(vhost)}, <<"test">>)')

    def add_user(self, user: str, password: str, *, vhost: str | None = None, tags: Sequence[str] = ()) -> None:
        """Add a user, with all permissions on `vhost` when one is named."""
        grant = f", {_grant(user, vhost)}" if vhost is not None else ""
        self.eval(
            f'rabbit_auth_backend_internal:add_user({_binary(user)}, {_binary(password)}, <<"test">>), '
            f'rabbit_auth_backend_internal:set_tags({_binary(user)}, [{", ".join(tags)}], <<"test">>)'
            f"{grant}"
        )

    def join(self, other: NodeProcess) -> None:
        """Make this (fresh) node a member of `other`'s cluster. Both need the same cookie."""
        self.ctl("stop_app")
        self.ctl("join_cluster", other.name)
        self.ctl("start_app")
        self.wait_ready()

    def log_tail(self, lines: int = 80) -> str:
        """Return the end of the node's logs, for error messages."""
        if self._directory is None:
            return ""
        # The console last: there the start script says in plain words what was wrong.
        logs = [*sorted((self._directory / "log").glob("*.log")), self._directory / "console.log"]
        texts = [path.read_text(errors="replace").splitlines() for path in logs if path.exists()]
        return "\n".join(line for text in texts for line in text[-lines:])

    def _prepare(self) -> Path:
        """Make directory, configuration and watchdog at the first start."""
        if self._directory is not None:
            return self._directory
        directory = self._directory = Path(tempfile.mkdtemp(prefix="signalbus-rabbitmq-"))
        for name in ("home", "data", "log", "conf.d", "schema"):
            (directory / name).mkdir()
        cookie = directory / "home" / ".erlang.cookie"
        cookie.write_text(self._cookie)
        cookie.chmod(0o400)
        lines = "".join(f"{key} = {value}\n" for key, value in self._config.items())
        (directory / "rabbitmq.conf").write_text(lines)
        (directory / "advanced.config").write_text("[].\n")
        (directory / "rabbitmq-env.conf").write_text("")
        (directory / "enabled_plugins").write_text(f"[{','.join(self._plugins)}].\n")
        self._watchdog = subprocess.Popen(
            ["/bin/sh", "-c", _WATCHDOG, "signalbus-watchdog", str(directory)],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            cwd="/",
            start_new_session=True,
        )
        return directory

    def _environment(self, directory: Path) -> dict[str, str]:
        # The machine's own broker must not be configured into ours, nor ours into it.
        env = {key: value for key, value in os.environ.items() if not key.startswith(("RABBITMQ_", "ERL_"))}
        return env | {
            "HOME": str(directory / "home"),
            "ERL_EPMD_ADDRESS": HOST,
            "RABBITMQ_NODENAME": self.name,
            "RABBITMQ_NODE_IP_ADDRESS": HOST,
            "RABBITMQ_NODE_PORT": str(self.port),
            "RABBITMQ_DIST_PORT": str(self._dist_port),
            "RABBITMQ_MNESIA_BASE": str(directory / "data"),
            "RABBITMQ_LOG_BASE": str(directory / "log"),
            "RABBITMQ_SCHEMA_DIR": str(directory / "schema"),
            "RABBITMQ_GENERATED_CONFIG_DIR": str(directory / "schema"),
            "RABBITMQ_CONFIG_FILE": str(directory / "rabbitmq.conf"),
            "RABBITMQ_CONFIG_FILES": str(directory / "conf.d"),
            "RABBITMQ_ADVANCED_CONFIG_FILE": str(directory / "advanced.config"),
            "RABBITMQ_CONF_ENV_FILE": str(directory / "rabbitmq-env.conf"),
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(directory / "enabled_plugins"),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1}",
            # The start script then becomes the broker (exec) instead of its parent: our child is the beam.
            "RUNNING_UNDER_SYSTEMD": "true",
        }

    def _guard(self, group: int) -> None:
        """Tell the watchdog which process group to kill; 0 for none, since process ids are used again."""
        watchdog = self._watchdog
        if watchdog is None or watchdog.stdin is None:
            return
        watchdog.stdin.write(f"{group}\n".encode())
        watchdog.stdin.flush()

    def _ended(self) -> None:
        self._process = None
        self._guard(0)

    def _signal(self, number: signal.Signals) -> None:
        process = self._process
        # poll() first: a process that was reaped has given its id away.
        if process is None or process.poll() is not None:
            if number is signal.SIGKILL or number is signal.SIGCONT:
                return
            raise NodeError(f"{self.name} does not run")
        os.killpg(process.pid, number)

    def _greets(self) -> bool:
        try:
            with socket.create_connection((HOST, self.port), timeout=2) as client:
                client.sendall(b"AMQP\x00\x00\x09\x01")
                # A method frame (Connection.Start): the port opens before the node is done with its boot steps.
                return client.recv(1) == b"\x01"
        except OSError:
            return False


def _binary(text: str) -> str:
    """Return an Erlang binary literal."""
    return "<<" + ",".join(str(byte) for byte in text.encode()) + ">>"


def _grant(user: str, vhost: str) -> str:
    everything = ", ".join(['<<".*">>'] * 3)
    return f'rabbit_auth_backend_internal:set_permissions({_binary(user)}, {_binary(vhost)}, {everything}, <<"test">>)'


class PrivateNode:
    """A private node as an async context manager. Not bound to an event loop: tests may share one.

    Calls run in threads, each with a deadline of its own; cancelling one does not stop what it has begun.
    """

    def __init__(
        self,
        *,
        config: Mapping[str, str] | None = None,
        plugins: Sequence[str] = (),
        cookie: str | None = None,
        server: Path | None = None,
        process: NodeProcess | None = None,
    ) -> None:
        self.process = process or NodeProcess(config=config, plugins=plugins, cookie=cookie, server=server)

    @property
    def name(self) -> str:
        """The Erlang node name."""
        return self.process.name

    @property
    def port(self) -> int:
        """The AMQP port; the same after a restart."""
        return self.process.port

    @property
    def pid(self) -> int | None:
        """The process id of the broker, None while it does not run."""
        return self.process.pid

    def url(self, vhost: str = "/", *, user: str = "guest", password: str = "guest") -> str:
        """Return the AMQP URL of a virtual host. Makes nothing."""
        return self.process.url(vhost, user=user, password=password)

    async def start(self, timeout: float = START_SECONDS) -> None:
        """Start the node and wait until it accepts clients."""
        await asyncio.to_thread(self.process.start, timeout)

    async def wait_ready(self, timeout: float = START_SECONDS) -> None:
        """Wait until the node greets AMQP clients."""
        await asyncio.to_thread(self.process.wait_ready, timeout)

    async def stop(self, timeout: float = STOP_SECONDS) -> None:
        """Stop in good order. Does nothing when the node does not run."""
        await asyncio.to_thread(self.process.stop, timeout)

    async def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        await asyncio.to_thread(self.process.kill)

    async def restart(self, *, kill: bool = False, timeout: float = START_SECONDS) -> None:
        """Stop (or kill) the node and start it again on the same data and ports."""
        await asyncio.to_thread(self.process.restart, kill=kill, timeout=timeout)

    def suspend(self) -> None:
        """SIGSTOP: connections stay open and nobody answers."""
        self.process.suspend()

    def resume(self) -> None:
        """SIGCONT."""
        self.process.resume()

    async def ctl(self, *arguments: str, timeout: float = CTL_SECONDS) -> str:
        """Run `rabbitmqctl` and return what it printed: 1-2 s a call."""
        return await asyncio.to_thread(self.process.ctl, *arguments, timeout=timeout)

    async def eval(self, expression: str, *, timeout: float = CTL_SECONDS) -> str:
        """Evaluate Erlang expressions on the node and return the printed value: milliseconds a call."""
        return await asyncio.to_thread(self.process.eval, expression, timeout=timeout)

    async def vhost(self, name: str | None = None, *, user: str = "guest", password: str = "guest") -> str:
        """Make a virtual host, by default with a fresh name, and return its URL."""
        vhost = await asyncio.to_thread(self.process.add_vhost, name, user=user)
        return self.url(vhost, user=user, password=password)

    async def delete_vhost(self, name: str) -> None:
        """Delete a virtual host with all it holds; its clients are disconnected."""
        await asyncio.to_thread(self.process.delete_vhost, name)

    async def add_user(self, user: str, password: str, *, vhost: str | None = None, tags: Sequence[str] = ()) -> None:
        """Add a user, with all permissions on `vhost` when one is named."""
        await asyncio.to_thread(self.process.add_user, user, password, vhost=vhost, tags=tags)

    async def join(self, other: PrivateNode) -> None:
        """Make this (fresh) node a member of `other`'s cluster. Both need the same cookie."""
        await asyncio.to_thread(self.process.join, other.process)

    async def aclose(self) -> None:
        """Kill the node and remove its data. Idempotent."""
        await asyncio.to_thread(self.process.close)

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.aclose()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.aclose()


def _exit_on_signal(number: int, _frame: object) -> None:
    sys.exit(128 + number)


def main(arguments: Sequence[str] | None = None) -> int:
    """Start a node, run a command with its URL in the environment, and return the command's exit code."""
    command = list(sys.argv[1:] if arguments is None else arguments)
    if command[:1] == ["--"]:
        command = command[1:]
    if not command:
        print("usage: python -m signalbus.testing.rabbitmq -- COMMAND [ARGUMENT…]", file=sys.stderr)
        return 2
    # Without this a SIGTERM would leave the clean-up to the watchdog and the command to nobody.
    signal.signal(signal.SIGTERM, _exit_on_signal)
    try:
        node = NodeProcess()
    except NodeError as exc:
        print(exc, file=sys.stderr)
        return 1
    try:
        node.start()
        url = node.url()
        env = {**os.environ, "SIGNALBUS_URL": url, "SIGNALBUS_TEST_AMQP_URL": url}
        with subprocess.Popen(command, env=env) as process:
            try:
                return process.wait()
            except BaseException:
                process.terminate()
                raise
    except KeyboardInterrupt:
        return 130
    except (NodeError, OSError) as exc:
        print(exc, file=sys.stderr)
        return 1
    finally:
        node.close()


if __name__ == "__main__":
    sys.exit(main())

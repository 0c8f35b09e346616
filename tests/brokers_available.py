"""Where the tests' RabbitMQ comes from: an address that is given, a private node, or a container."""

from __future__ import annotations

import base64
import json
import os
import secrets
import shutil
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol
from urllib.parse import quote, unquote, urlsplit

from signalbus.testing.rabbitmq import NodeError, NodeProcess, find_server

#: What docs/operating.md says is enough: to configure, to write, to read.
RIGHTS = (r"^signalbus\.", r"^(signalbus\.|amq\.default$)", r"^signalbus\.")


class RabbitMQ(Protocol):
    """A broker that hands out virtual hosts."""

    def make_vhost(self) -> str:
        """Return the URL of a fresh virtual host."""
        ...

    def drop_vhost(self, url: str) -> None:
        """Delete it again."""
        ...


class LocalNode:
    """A private node of the local rabbitmq-server."""

    def __init__(self, process: NodeProcess) -> None:
        self.process = process

    def make_vhost(self) -> str:
        return self.process.url(self.process.add_vhost())

    def narrow(self, url: str) -> None:
        """Take all rights from its user but `RIGHTS`."""
        parts = urlsplit(url)
        given = ", ".join(f'<<"{text}">>' for text in (parts.username, unquote(parts.path[1:]), *RIGHTS, "test"))
        self.process.eval(f"rabbit_auth_backend_internal:set_permissions({given})".replace("\\", "\\\\"))

    def drop_vhost(self, url: str) -> None:
        self.process.delete_vhost(unquote(urlsplit(url).path[1:]))


class ManagedBroker:
    """A broker with the management plugin: virtual hosts are made over HTTP."""

    def __init__(self, url: str, management: str) -> None:
        self._url = urlsplit(url)
        self._management = management.rstrip("/")

    def make_vhost(self) -> str:
        name = f"t-{secrets.token_hex(6)}"
        user = self._url.username or "guest"
        self._call("PUT", f"/api/vhosts/{name}")
        everything = {"configure": ".*", "write": ".*", "read": ".*"}
        self._call("PUT", f"/api/permissions/{name}/{quote(user, safe='')}", everything)
        return self._url._replace(path=f"/{name}").geturl()

    def drop_vhost(self, url: str) -> None:
        self._call("DELETE", f"/api/vhosts{urlsplit(url).path}")

    def _call(self, method: str, path: str, body: object = None) -> None:
        credentials = f"{self._url.username or 'guest'}:{unquote(self._url.password or 'guest')}"
        request = urllib.request.Request(  # an operator's own address
            self._management + path,
            method=method,
            data=json.dumps(body or {}).encode(),
            headers={
                "Authorization": "Basic " + base64.b64encode(credentials.encode()).decode(),
                "Content-Type": "application/json",
            },
        )
        with urllib.request.urlopen(request, timeout=30):
            pass


class SharedVhost:
    """A broker of which only the address is known: all tests share the one virtual host."""

    def __init__(self, url: str) -> None:
        self._url = url

    def make_vhost(self) -> str:
        return self._url

    def drop_vhost(self, url: str) -> None:
        pass


@contextmanager
def rabbitmq_for_tests() -> Iterator[RabbitMQ | None]:
    """Yield the session's broker, None when none can be had."""
    url = os.environ.get("SIGNALBUS_TEST_AMQP_URL")
    if url:
        management = os.environ.get("SIGNALBUS_TEST_MANAGEMENT_URL")
        yield ManagedBroker(url, management) if management else SharedVhost(url)
    elif find_server() is not None:
        with local_node() as process:
            yield LocalNode(process)
    elif _docker_works():
        with _container() as broker:
            yield broker
    else:
        yield None


@contextmanager
def local_node() -> Iterator[NodeProcess]:
    """Yield a started private node."""
    process = NodeProcess()
    try:
        try:
            process.start()
        except NodeError:
            # A machine that has just started can be slow, and a port may have been taken since it was chosen.
            process.close()
            process = NodeProcess()
            process.start()
        yield process
    finally:
        process.close()


@contextmanager
def _container() -> Iterator[RabbitMQ]:
    from testcontainers.rabbitmq import RabbitMqContainer  # slow, and seldom wanted

    with RabbitMqContainer("rabbitmq:4-management").with_exposed_ports(5672, 15672) as container:
        host = container.get_container_host_ip()
        yield ManagedBroker(
            f"amqp://guest:guest@{host}:{container.get_exposed_port(5672)}/",
            f"http://{host}:{container.get_exposed_port(15672)}",
        )


def _docker_works() -> bool:
    if shutil.which("docker") is None:
        return False
    try:
        answer = subprocess.run(["docker", "info"], capture_output=True, timeout=20, check=False)
    except subprocess.TimeoutExpired:
        return False
    return answer.returncode == 0

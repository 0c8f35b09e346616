"""Private RabbitMQ nodes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import aio_pika
import aio_pika.exceptions
import aiormq.exceptions
import pytest

from signalbus.testing.ports import HIGHEST, LOWEST, free_port
from signalbus.testing.rabbitmq import NodeError, NodeProcess, PrivateNode
from tests.support import eventually_sync

pytestmark = pytest.mark.rabbitmq


async def publish(url: str, queue: str) -> None:
    async with await aio_pika.connect(url, timeout=10) as connection:
        channel = await connection.channel()
        await channel.declare_queue(queue, durable=True)
        message = aio_pika.Message(b"kept", delivery_mode=aio_pika.DeliveryMode.PERSISTENT)
        await channel.default_exchange.publish(message, queue)


async def count(url: str, queue: str) -> int | None:
    async with await aio_pika.connect(url, timeout=10) as connection:
        channel = await connection.channel()
        return (await channel.declare_queue(queue, passive=True)).declaration_result.message_count


def test_ports_are_outside_the_range_of_outgoing_connections() -> None:
    assert all(LOWEST <= free_port() < HIGHEST for _ in range(50))


async def test_virtual_hosts_are_apart(rabbitmq_node: PrivateNode) -> None:
    first, second = await rabbitmq_node.vhost(), await rabbitmq_node.vhost()
    await publish(first, "q")
    assert await count(first, "q") == 1
    with pytest.raises(aio_pika.exceptions.ChannelClosed):
        await count(second, "q")


async def test_a_new_user_may_use_the_named_virtual_host_only(rabbitmq_node: PrivateNode) -> None:
    url = await rabbitmq_node.vhost()
    vhost = url.rpartition("/")[2]
    await rabbitmq_node.add_user("bob o'hara", "p@ss:/word", vhost=vhost)
    await publish(rabbitmq_node.url(vhost, user="bob o'hara", password="p@ss:/word"), "q")
    # aiormq's own wording of a refused virtual host.
    with pytest.raises((aio_pika.exceptions.AMQPError, aiormq.exceptions.InvalidFrameError)):
        await publish(rabbitmq_node.url(user="bob o'hara", password="p@ss:/word"), "q")


async def test_eval_returns_the_value_or_says_why_not(rabbitmq_node: PrivateNode) -> None:
    assert await rabbitmq_node.eval("1 + 1") == "2"
    assert await rabbitmq_node.eval('X = <<"ä"/utf8>>, byte_size(X).') == "2"
    with pytest.raises(NodeError, match="badmatch"):
        await rabbitmq_node.eval("1 = 2")
    with pytest.raises(NodeError, match="syntax error"):
        await rabbitmq_node.eval("foo(")


async def test_ctl_answers_and_reports_failures(rabbitmq_node: PrivateNode) -> None:
    assert "/" in (await rabbitmq_node.ctl("list_vhosts")).split()
    with pytest.raises(NodeError, match="no_such"):
        await rabbitmq_node.ctl("no_such_command")
    with pytest.raises(NodeError, match="longer than"):
        await rabbitmq_node.ctl("list_vhosts", timeout=0.01)


async def test_durable_messages_outlive_a_kill(fault_node: PrivateNode) -> None:
    url = await fault_node.vhost()
    await publish(url, "q")
    # 3.10 answers DeclareOk before the definition is on disk, and forgot the queue in 1 of 5 kills right after it.
    await fault_node.eval("mnesia:sync_log()")
    await fault_node.restart(kill=True)
    assert await count(url, "q") == 1
    assert await fault_node.eval("ok") == "ok"


async def test_a_stopped_node_refuses_and_starts_again(fault_node: PrivateNode) -> None:
    url = await fault_node.vhost()
    await publish(url, "q")
    await fault_node.stop()
    assert fault_node.pid is None
    with pytest.raises((aio_pika.exceptions.AMQPConnectionError, OSError)):
        await publish(url, "q")
    await fault_node.start()
    assert await count(url, "q") == 1


async def test_a_suspended_node_is_silent_until_resumed(fault_node: PrivateNode) -> None:
    url = await fault_node.vhost()
    fault_node.suspend()
    with pytest.raises(NodeError, match="timeout"):
        await fault_node.eval("ok", timeout=0.5)
    fault_node.resume()
    await publish(url, "q")
    assert await count(url, "q") == 1


async def test_configuration_and_plugins_are_the_nodes_own() -> None:
    async with PrivateNode(config={"heartbeat": "7"}) as node:
        assert await node.eval("application:get_env(rabbit, heartbeat)") == "{ok,7}"
        directory = node.process.directory
        listening = {line.split()[3] for line in _listening(node.port)}
        assert listening <= {f"127.0.0.1:{node.port}"}
    assert not directory.exists()
    assert node.pid is None


async def test_a_node_that_cannot_start_says_why() -> None:
    node = PrivateNode(config={"no_such_setting": "1"})
    with pytest.raises(NodeError, match="no_such_setting"):
        async with node:
            pass
    assert node.pid is None


def test_a_missing_program_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("signalbus.testing.rabbitmq.find_server", lambda: None)
    with pytest.raises(NodeError, match="SIGNALBUS_RABBITMQ_SERVER"):
        NodeProcess()


_OWNER = """
import sys
from signalbus.testing.rabbitmq import NodeProcess
node = NodeProcess()
node.start()
node.eval("ok")
if sys.argv[1] == "suspended":
    node.suspend()
print(node.pid, node.directory, flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("state", ["running", "suspended"])
def test_no_node_outlives_a_killed_owner(state: str) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _OWNER, state], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as owner:
        assert owner.stdout is not None
        pid, directory = owner.stdout.readline().split()
        assert _alive(int(pid))
        owner.send_signal(signal.SIGKILL)
        owner.wait()
    eventually_sync(lambda: not _alive(int(pid)), message="the node's death")
    eventually_sync(lambda: not Path(directory).exists(), message="the removal of the node's data")


def test_a_command_runs_beside_a_node_of_its_own() -> None:
    program = "import os, sys; print(os.environ['SIGNALBUS_URL']); sys.exit(7)"
    done = subprocess.run(
        [sys.executable, "-m", "signalbus.testing.rabbitmq", "--", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 7
    assert done.stdout.startswith("amqp://guest:guest@127.0.0.1:")
    port = int(done.stdout.strip().rstrip("/").rpartition(":")[2])
    eventually_sync(lambda: not _listening(port))


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie is dead: whoever inherits it may take its time to reap it.
    return " Z " not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2][:3] + " "


def _listening(port: int) -> list[str]:
    """Return the lines of `ss` about listeners on a port."""
    lines = subprocess.run(["ss", "-Hltn"], capture_output=True, text=True, check=True).stdout.splitlines()
    return [line for line in lines if line.split()[3].endswith(f":{port}")]

"""doctor: a router's store and RabbitMQ's policies."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import cast

import pytest

from signalbus import Bus
from signalbus.cli import check_rabbitmq
from signalbus.testing.ports import free_port
from signalbus.testing.rabbitmq import PrivateNode, find_server
from signalbus.trace.store import SqliteStore
from tests.brokers.world import wait_until
from tests.cli.program import Json, environment, signalbus
from tests.router.conftest import Teller


@pytest.fixture
def store(tmp_path: Path) -> Path:
    made = SqliteStore(path := tmp_path / "ledger.db")
    for _ in range(20):
        made.append([Teller().batch()])
    made.close()
    return path


def findings(tmp_path: Path, *words: str, code: int, url: str | None = None) -> dict[str, Json]:
    """Return what the doctor finds, by check."""
    result = signalbus("doctor", "--json", *words, cwd=tmp_path, env=environment(url), check=code)
    return {str(each["check"]): each for each in cast("list[Json]", result.json()["checks"])}


def test_a_store_that_is_well_is_counted(store: Path, tmp_path: Path) -> None:
    found = findings(tmp_path, "--store", "ledger.db", code=0)
    assert "holds 4,800 facts" in str(found["store"]["found"])
    assert {found[check]["state"] for check in ("store", "structure", "lock")} == {"ok"}


def test_a_store_that_is_not_there_is_told(tmp_path: Path) -> None:
    assert "does not exist" in str(findings(tmp_path, "--store", "none.db", code=6)["store"]["found"])
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("damage", ["garbage", "flipped"])
def test_a_damaged_store_is_told_with_what_to_do(damage: str, store: Path, tmp_path: Path) -> None:
    content = bytearray(store.read_bytes())
    if damage == "garbage":
        content[:] = b"no database\n" * 1_000
    else:
        for page in range(4, len(content) // 4_096):
            content[page * 4_096 : page * 4_096 + 64] = b"\xa5" * 64
    store.write_bytes(content)
    found = findings(tmp_path, "--store", "ledger.db", code=1)
    bad = [each for each in found.values() if each["state"] == "bad"]
    assert any("move" in f"{each['found']} {each['advice']}" for each in bad)


def test_a_store_that_somebody_holds_is_told(store: Path, tmp_path: Path) -> None:
    holder = sqlite3.connect(store, isolation_level=None)
    try:
        holder.execute("BEGIN IMMEDIATE")
        found = findings(tmp_path, "--store", "ledger.db", code=6)
    finally:
        holder.close()
    assert found["lock"]["state"] == "warning"
    assert "fuser" in str(found["lock"]["advice"])


@pytest.mark.rabbitmq
async def test_a_management_api_that_does_not_answer_is_said_and_no_reason_to_worry(
    amqp_url: str, tmp_path: Path
) -> None:
    async with Bus(amqp_url, name="maker", ledger="off"):
        pass
    nowhere = f"http://127.0.0.1:{free_port()}"
    found = await asyncio.to_thread(findings, tmp_path, "--management", nowhere, code=0, url=amqp_url)
    assert found["policies"]["state"] == "ok"
    assert "not looked at" in str(found["policies"]["found"])


@pytest.mark.slow
@pytest.mark.rabbitmq
async def test_row_41_a_policy_behind_our_back_is_told(tmp_path: Path) -> None:
    if find_server() is None:
        pytest.skip("needs a local rabbitmq-server")
    port = free_port()
    config = {"management.tcp.port": str(port), "management.tcp.ip": "127.0.0.1"}
    async with PrivateNode(plugins=["rabbitmq_management"], config=config) as node:
        async with Bus(node.url(), name="maker", ledger="off"):
            pass
        words = ("--management", f"http://127.0.0.1:{port}")
        found = await asyncio.to_thread(findings, tmp_path, *words, code=0, url=node.url())
        assert "none changes" in str(found["policies"]["found"])
        await node.ctl("set_policy", "--apply-to", "queues", "short", "^signalbus", '{"message-ttl": 60000}')
        says = "policy 'short' sets message-ttl to 60000"

        async def told() -> bool:  # the API learns of it with the next statistics, every five seconds
            return says in await asyncio.to_thread(look)

        def look() -> str:
            return signalbus("doctor", *words, cwd=tmp_path, env=environment(node.url()), check=None).out

        await wait_until(told, 30)
        await asyncio.to_thread(findings, tmp_path, *words, code=6, url=node.url())


def test_the_password_of_the_broker_follows_no_redirect() -> None:
    asked: list[str] = []

    class Elsewhere(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(f"{self.path} {self.headers['Authorization']}")
            self.send_response(302)
            self.send_header("Location", f"http://127.0.0.1:{server.server_port}/stolen")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None: ...  # noqa: A002 - its name there

    server = HTTPServer(("127.0.0.1", 0), Elsewhere)
    serving = threading.Thread(target=server.serve_forever)
    serving.start()
    try:
        with pytest.raises(OSError, match="302"):
            check_rabbitmq._queues(f"http://127.0.0.1:{server.server_port}", "amqp://user:secret@h/")
    finally:
        server.shutdown()
        server.server_close()
        serving.join()
    assert [each.split()[0].partition("?")[0] for each in asked] == ["/api/queues/%2F"]

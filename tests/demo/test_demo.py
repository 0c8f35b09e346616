"""The demo as a program: its numbers, its exit codes, and what it leaves behind."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import signal
import sqlite3
import subprocess
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import pytest

from signalbus.demo.reconcile import reconcile
from tests.cli.program import PROGRAM, Json, alive, children_of, environment, running, signalbus
from tests.support import eventually_sync

ROWS = "400"


def subscriptions(fields: Json) -> dict[str, dict[str, int]]:
    return cast("dict[str, dict[str, int]]", fields["subscriptions"])


@pytest.fixture
def env(tmp_path: Path) -> dict[str, str]:
    """An environment whose temporary files are the test's."""
    (tmp_path / "tmp").mkdir()
    return environment(TMPDIR=str(tmp_path / "tmp"))


def test_a_demo_on_sqlite_balances_and_leaves_nothing(tmp_path: Path, env: dict[str, str]) -> None:
    result = signalbus("demo", "--rows", ROWS, "--json", cwd=tmp_path, env=env)
    fields = result.json()
    assert fields["good"] is True
    assert fields["lost"] == fields["dead_lettered"] == 0
    assert (fields["killed"], fields["restarted"]) == (2, 1)
    delays, board = subscriptions(fields)["delays"], subscriptions(fields)["board"]
    assert delays["duplicates"] > 0
    assert delays["redelivered"] >= delays["duplicates"]
    assert board["retried"] > 0
    assert "kill -9" in result.err
    for delay in ("down_seconds", "responder_down_seconds"):
        assert 0 < cast("float", fields[delay]) < 2
    assert [path.name for path in tmp_path.rglob("*")] == ["tmp"]


def test_a_demo_on_rabbitmq_balances_and_leaves_no_subscription(
    amqp_url: str, tmp_path: Path, env: dict[str, str]
) -> None:
    fields = signalbus("demo", "--rows", ROWS, "--json", "--url", amqp_url, cwd=tmp_path, env=env).json()
    assert fields["good"] is True
    assert subscriptions(fields)["delays"]["duplicates"] > 0
    for url in (amqp_url, f"{amqp_url}?prefix=signalbus-demo"):
        assert signalbus("topology", "--json", "--url", url, cwd=tmp_path).json()["subscriptions"] == []


def test_a_report_for_people_has_all_the_numbers(tmp_path: Path, env: dict[str, str]) -> None:
    out = signalbus("demo", "--rows", ROWS, cwd=tmp_path, env=env).out
    for word in ("expected", "handled", "redelivered", "retried", "duplicates", "dead_letters", "lost", "airline"):
        assert word in out
    assert "✓ good: 0 lost" in out
    assert re.search(r"Down came after \d+\.\d ms; .* ResponderDown after \d+\.\d ms", out)
    assert "\x1b" not in out


def test_a_missing_record_is_found(tmp_path: Path, env: dict[str, str]) -> None:
    kept = tmp_path / "kept"
    signalbus("demo", "--rows", ROWS, "--keep", str(kept), cwd=tmp_path, env=env)
    assert signalbus("demo", "--check", str(kept), "--json", cwd=tmp_path).json()["good"] is True
    gone = _delete_one(kept / "delays.results.db", "done")
    result = signalbus("demo", "--check", str(kept), cwd=tmp_path, check=6)
    assert f"delays never handled {gone}" in result.out
    assert "1 lost" in result.out


def test_a_wrong_statistic_is_found(tmp_path: Path, env: dict[str, str]) -> None:
    kept = tmp_path / "kept"
    signalbus("demo", "--rows", ROWS, "--keep", str(kept), cwd=tmp_path, env=env)
    _execute(kept / "board.results.db", "UPDATE effect SET flights = flights + 1 WHERE subject = 'EWR'")
    assert "EWR departed" in signalbus("demo", "--check", str(kept), cwd=tmp_path, check=6).out


def test_a_record_that_nobody_published_is_found(tmp_path: Path, env: dict[str, str]) -> None:
    kept = tmp_path / "kept"
    signalbus("demo", "--rows", ROWS, "--keep", str(kept), cwd=tmp_path, env=env)
    _execute(kept / "delays.results.db", "INSERT INTO done VALUES ('forged')")
    balance = reconcile(kept)
    assert not balance.good
    assert [set(account.strange) for account in balance.accounts if account.strange] == [{"forged"}]


def test_ctrl_c_leaves_neither_processes_nor_files(tmp_path: Path, env: dict[str, str]) -> None:
    with running("demo", cwd=tmp_path, env=env) as demo:
        demo.wait_err("each served by a process of its own")
        children = children_of(demo.pid)
        assert len(children) >= 3
        demo.send(signal.SIGINT)
        assert demo.wait() == 130
    assert not any(alive(pid) for pid in children)
    assert _files(tmp_path) == {"tmp", "program.out", "program.err"}


def test_ctrl_c_while_it_starts_leaves_nothing_either(tmp_path: Path, env: dict[str, str]) -> None:
    with running("demo", cwd=tmp_path, env=env) as demo:
        eventually_sync(lambda: children_of(demo.pid), 30, interval=0.001)
        demo.send(signal.SIGTERM)
        assert demo.wait() == 143
    assert _files(tmp_path) == {"tmp", "program.out", "program.err"}


def test_no_process_outlives_a_killed_demo(tmp_path: Path, env: dict[str, str]) -> None:
    with running("demo", cwd=tmp_path, env=env) as demo:
        demo.wait_err("each served by a process of its own")
        children = children_of(demo.pid)
        os.kill(demo.pid, signal.SIGKILL)
        demo.wait()
        eventually_sync(lambda: not any(alive(pid) for pid in children), 20, message="its processes end")


def test_bars_move_on_a_terminal(tmp_path: Path, env: dict[str, str]) -> None:
    ours, theirs = pty.openpty()
    shown = bytearray()

    def read() -> None:
        with contextlib.suppress(OSError):  # how a terminal says that its last user is gone
            while data := os.read(ours, 65536):
                shown.extend(data)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        done = subprocess.run(
            [*PROGRAM, "demo", "--rows", "3000", "--json"],
            cwd=tmp_path,
            env={**env, "TERM": "xterm", "COLUMNS": "100"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=theirs,
            timeout=60,
            check=True,
        )
    finally:
        os.close(theirs)
        reader.join()
        os.close(ours)
    assert b"delays" in shown
    assert re.search(rb"\d+/s", shown)
    assert b"\x1b" not in done.stdout


def test_an_unreachable_broker_is_said_at_once(tmp_path: Path, env: dict[str, str]) -> None:
    url = "amqp://u:hunter2@127.0.0.1:1/"
    result = signalbus("demo", "--url", url, "--timeout", "1", cwd=tmp_path, env=env, check=3)
    assert "127.0.0.1:1" in result.err
    assert "hunter2" not in result.err
    assert _files(tmp_path) == {"tmp"}


@pytest.mark.parametrize(
    ("words", "code"), [(["--rows", "0"], 2), (["--keep", "."], 2), (["--check", "."], 5), (["--dry-run"], 0)]
)
def test_exit_codes(words: list[str], code: int, tmp_path: Path, env: dict[str, str]) -> None:
    signalbus("demo", *words, cwd=tmp_path, env=env, check=code)
    assert _files(tmp_path) == {"tmp"}


def _files(directory: Path) -> set[str]:
    return {path.name for path in directory.rglob("*")}


def _delete_one(path: Path, table: str) -> str:
    [(found,)] = _execute(path, f"SELECT min(signal) FROM {table}")
    _execute(path, f"DELETE FROM {table} WHERE signal = '{found}'")
    return str(found)


def _execute(path: Path, statement: str) -> list[tuple[object, ...]]:
    database = sqlite3.connect(path, isolation_level=None)
    try:
        rows: Iterable[tuple[object, ...]] = database.execute(statement)
        return list(rows)
    finally:
        database.close()

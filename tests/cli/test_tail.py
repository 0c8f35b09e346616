from __future__ import annotations

import signal
import subprocess
from pathlib import Path

from tests.cli.program import PROGRAM, environment, running, signalbus


def test_a_line_for_people_obeys_nothing_in_the_payload(tmp_path: Path) -> None:
    with running("tail", "a.*", "--count", "1", cwd=tmp_path) as tail:
        tail.wait_err("following")
        signalbus("publish", "b.c", "1", "--unroutable", "ignore", cwd=tmp_path)
        signalbus("publish", "a.b", '"\x1b[31m\u202e"', "--content-type", "text/plain", cwd=tmp_path)
        assert tail.wait() == 0
        [line] = tail.out.splitlines()
        assert "a.b" in line
        assert "\\x1b[31m\\u202e" in line
        assert line.isprintable()


def test_it_leaves_no_subscription_behind(tmp_path: Path) -> None:
    with running("tail", cwd=tmp_path) as tail:
        tail.wait_err("following")
        assert len(signalbus("topology", "--json", cwd=tmp_path).json()["subscriptions"]) == 1  # type: ignore[arg-type]
        tail.send(signal.SIGINT)
        assert tail.wait() == 130
    assert signalbus("topology", "--json", cwd=tmp_path).json()["subscriptions"] == []


def test_sigterm_ends_it(tmp_path: Path) -> None:
    with running("tail", cwd=tmp_path) as tail:
        tail.wait_err("following")
        tail.send(signal.SIGTERM)
        assert tail.wait() == 143


def test_waiting_has_a_limit(tmp_path: Path) -> None:
    result = signalbus("tail", "--count", "2", "--timeout", "5", cwd=tmp_path, check=7)
    assert "0 of 2 signals" in result.err


def test_a_closed_pipe_ends_it_quietly(tmp_path: Path) -> None:
    tail = subprocess.Popen(
        [*PROGRAM, "tail"], cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert tail.stdout is not None
    assert tail.stderr is not None
    with tail, tail.stdout, tail.stderr:
        assert b"following" in tail.stderr.readline()
        tail.stdout.close()
        signalbus("publish", "a.b", "1", cwd=tmp_path)
        assert tail.wait(30) == 141
        assert tail.stderr.read() == b""

"""request and respond: a call and its answer from the command line."""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.cli.program import Running, alive, environment, running, signalbus
from tests.support import eventually_sync


@pytest.fixture
def echo(tmp_path: Path) -> Iterator[Running]:
    """A program that echoes requests of the type ``ping``."""
    with running("respond", "ping", "--echo", cwd=tmp_path, name="echo") as echo:
        echo.wait_err("responding to ping")
        yield echo


def test_a_request_is_echoed(echo: Running, tmp_path: Path) -> None:
    assert signalbus("request", "ping", '{"n": 1}', cwd=tmp_path).out == '{"n": 1}\n'
    assert signalbus("request", "ping", cwd=tmp_path).out == "-\n"
    fields = signalbus("request", "ping", "-", "--json", cwd=tmp_path, stdin='["ü"]').json()
    assert (fields["type"], fields["reply"]) == ("ping", ["ü"])
    (tmp_path / "photo").write_bytes(b"\xff\xd8")
    fields = signalbus("request", "ping", "@photo", "--content-type", "image/jpeg", "--json", cwd=tmp_path).json()
    assert fields["reply_base64"] == "/9g="
    echo.wait_out("ping", 4)
    assert "from signalbus-cli/" in echo.out


def test_what_comes_back_is_escaped(echo: Running, tmp_path: Path) -> None:
    out = signalbus("request", "ping", '"\\u001b[31m"', cwd=tmp_path).out
    assert "\x1b" not in out
    assert "\\x1b[31m" in out


def test_a_request_that_nobody_answers_says_so(tmp_path: Path) -> None:
    result = signalbus("request", "nobody.home", "1", cwd=tmp_path, check=5)
    assert "nobody responds to 'nobody.home'" in result.err
    assert "next:  signalbus respond --help" in result.err


def test_data_that_is_no_json_is_refused(tmp_path: Path) -> None:
    assert "not JSON" in signalbus("request", "ping", "{", cwd=tmp_path, check=2).err


def test_a_program_answers(tmp_path: Path) -> None:
    program = f"{sys.executable} -c 'import sys; print(sys.stdin.read().upper(), end=\"\")'"
    with running("respond", "shout", "--command", program, cwd=tmp_path) as shout:
        shout.wait_err("responding to shout")
        fields = signalbus("request", "shout", '"abc"', "--json", cwd=tmp_path).json()
        assert fields["reply_base64"] == "IkFCQyI="  # "ABC", as the bytes that it printed


def test_a_program_that_fails_fails_the_request(tmp_path: Path) -> None:
    program = f"{sys.executable} -c 'import sys; sys.exit(\"out of stock\")'"
    with running("respond", "order", "--command", program, cwd=tmp_path) as order:
        order.wait_err("responding to order")
        result = signalbus("request", "order", "1", cwd=tmp_path, check=6)
        assert "ended with code 1: out of stock" in result.err


def test_a_program_ends_when_nobody_waits_for_it(tmp_path: Path) -> None:
    marker = tmp_path / "pid"
    script = f"import os, time; open({str(marker)!r}, 'w').write(str(os.getpid())); time.sleep(60)"
    (tmp_path / "slow.py").write_text(script)
    with running("respond", "slow", "--command", f"{sys.executable} slow.py", cwd=tmp_path) as slow:
        slow.wait_err("responding to slow")
        with running("request", "slow", "1", "--timeout", "5", cwd=tmp_path, name="asking") as asking:
            pid = int(eventually_sync(lambda: marker.read_text() if marker.exists() else "", 20))
            assert asking.wait() == 7
            assert "no reply" in asking.err
        eventually_sync(lambda: not alive(pid), 20, message="the program to end")


def test_a_killed_responder_is_told(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import time; time.sleep(60)")
    with running("respond", "slow", "--command", f"{sys.executable} slow.py", cwd=tmp_path, name="slow") as slow:
        slow.wait_err("responding to slow")
        with running("request", "slow", "1", "--timeout", "50", cwd=tmp_path, name="asking") as asking:
            slow.wait_out("slow")
            slow.send(signal.SIGKILL)
            assert asking.wait() == 6
            assert "died while it had request" in asking.err


@pytest.mark.parametrize("words", [[], ["--echo", "--command", "cat"], ["--command", ""]])
def test_how_to_respond_has_to_be_said_once(words: list[str], tmp_path: Path) -> None:
    assert "signalbus respond --help" in signalbus("respond", "ping", *words, cwd=tmp_path, check=2).err


def test_responding_ends_in_order(echo: Running) -> None:
    echo.send(signal.SIGTERM)
    assert echo.wait() == 143


def test_responding_has_a_limit(tmp_path: Path) -> None:
    assert signalbus("respond", "ping", "--echo", "--timeout", "5", cwd=tmp_path).code == 0


def test_requests_on_rabbitmq(amqp_url: str, tmp_path: Path) -> None:
    env = environment(amqp_url)
    with running("respond", "ping", "--echo", cwd=tmp_path, env=env) as echo:
        echo.wait_err("responding to ping")
        assert signalbus("request", "ping", "7", cwd=tmp_path, env=env).out == "7\n"
    assert "nobody responds" in signalbus("request", "ping", "7", cwd=tmp_path, env=env, check=5).err

"""What happens before a command runs: help, unknown words, and how long that takes."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

import signalbus as package
from signalbus.cli.commands import COMMANDS
from tests.cli.program import PROGRAM, environment, signalbus


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    program = (
        "import sys; from signalbus.cli import main; main(['--help']); "
        "print([name for name in ('asyncio', 'cyclopts', 'pydantic', 'rich', 'aio_pika') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment(), capture_output=True, check=True, text=True
    )
    assert done.stdout.splitlines()[-1] == "[]"


def test_help_takes_little_longer_than_python_itself(tmp_path: Path) -> None:
    def seconds(command: list[str]) -> float:
        times: list[float] = []
        for _ in range(5):
            start = time.perf_counter()
            subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, check=True)
            times.append(time.perf_counter() - start)
        return min(times)

    # The best of five, and a bound for machines that are ten times slower than a laptop.
    assert seconds([*PROGRAM, "--help"]) < 0.15 + 5 * seconds([sys.executable, "-c", "pass"])


@pytest.mark.parametrize("words", [["--help"], ["-h"], ["help"]])
def test_help_goes_to_stdout(words: list[str], tmp_path: Path) -> None:
    result = signalbus(*words, cwd=tmp_path)
    assert all(command in result.out for command in COMMANDS)
    assert result.err == ""


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_ends_with_examples(command: str, tmp_path: Path) -> None:
    for words in ([command, "--help"], ["help", command]):
        result = signalbus(*words, cwd=tmp_path)
        assert f"signalbus {command}" in result.out.partition("Examples:")[2]


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_the_global_options(command: str, tmp_path: Path) -> None:
    result = signalbus(command, "--help", cwd=tmp_path)
    for option in ("--url", "--json", "--timeout", "--quiet", "-q", "--verbose", "-v", "--no-color", "--yes"):
        assert option in result.out


def test_no_command_is_a_usage_error(tmp_path: Path) -> None:
    result = signalbus(cwd=tmp_path, check=2)
    assert "Usage" in result.err
    assert result.out == ""


def test_a_mistyped_command_is_guessed(tmp_path: Path) -> None:
    assert "did you mean 'signalbus publish'?" in signalbus("publsh", cwd=tmp_path, check=2).err


def test_a_mistyped_option_is_guessed(tmp_path: Path) -> None:
    result = signalbus("tail", "--cuont", "1", cwd=tmp_path, check=2)
    assert "--count" in result.err
    assert "signalbus tail --help" in result.err


def test_options_may_stand_before_the_command(tmp_path: Path) -> None:
    fields = signalbus("--json", "--timeout", "3", "version", cwd=tmp_path).json()
    assert fields["schema_version"] == 1
    assert "signalbus" in str(fields["versions"])


def test_a_password_is_never_printed(tmp_path: Path) -> None:
    for words in (["publish", "a.b", "1", "-v"], ["topology", "--json"], ["doctor", "--json"]):
        result = signalbus(*words, "--timeout", "1", "--url", "amqp://u:hunter2@127.0.0.1:1/", cwd=tmp_path, check=3)
        assert "hunter2" not in result.out + result.err


def test_public_names_are_all_there() -> None:
    for name in package.__all__:
        assert getattr(package, name).__name__ == name
    assert set(package.__all__) <= set(dir(package))
    with pytest.raises(AttributeError, match="nothing"):
        _ = getattr(package, "nothing")  # noqa: B009 - type checkers know that it is not there

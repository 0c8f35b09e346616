"""The installed program as a subprocess, with its output in files that tests can wait on."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from tests.support import eventually_sync

ROOT = Path(__file__).parents[2]
DEADLINE_SECONDS = 60.0

_installed = Path(sys.executable).with_name("signalbus")
PROGRAM = [str(_installed)] if _installed.exists() else [sys.executable, "-m", "signalbus.cli"]

Json = dict[str, object]


def environment(url: str | None = None, **variables: str) -> dict[str, str]:
    """Return an environment that no setting of the caller's reaches."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("SIGNALBUS_", "RECORDER_"))}
    for name in ("NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        kept.pop(name, None)
    if url is not None:
        kept["SIGNALBUS_URL"] = url
    return {**kept, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1", **variables}


@dataclass(frozen=True, slots=True)
class Result:
    """How a program ended."""

    code: int
    out: str
    err: str

    def json(self) -> Json:
        """Return the one object on stdout."""
        return cast("Json", json.loads(self.out))


def signalbus(
    *words: str, cwd: Path, stdin: str | bytes = b"", env: Mapping[str, str] | None = None, check: int | None = 0
) -> Result:
    """Run the program to its end; ``check`` is the exit code that is expected."""
    done = subprocess.run(
        [*PROGRAM, *words],
        cwd=cwd,
        env=dict(env) if env is not None else environment(),
        input=stdin.encode() if isinstance(stdin, str) else stdin,
        capture_output=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )
    result = Result(done.returncode, done.stdout.decode(), done.stderr.decode())
    assert check is None or result.code == check, result
    return result


class Running:
    """A program that runs, in a process group of its own."""

    def __init__(self, process: subprocess.Popen[bytes], out: Path, err: Path) -> None:
        self.process = process
        self._out, self._err = out, err

    @property
    def pid(self) -> int:
        return self.process.pid

    @property
    def out(self) -> str:
        """What it wrote to stdout so far."""
        return self._out.read_text()

    @property
    def err(self) -> str:
        """What it wrote to stderr so far."""
        return self._err.read_text()

    def json_lines(self) -> list[Json]:
        """Return the whole lines on stdout that are JSON objects."""
        lines = self.out.split("\n")[:-1]
        return [cast("Json", json.loads(line)) for line in lines if line.startswith("{")]

    def wait_out(self, text: str, count: int = 1) -> None:
        """Wait until stdout has ``text`` that often."""
        self._wait(lambda: self.out.count(text) >= count, f"{text!r} on stdout")

    def wait_err(self, text: str, count: int = 1) -> None:
        """Wait until stderr has ``text`` that often."""
        self._wait(lambda: self.err.count(text) >= count, f"{text!r} on stderr")

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process alone."""
        self.process.send_signal(number)

    def wait(self, timeout: float = DEADLINE_SECONDS) -> int:
        """Wait for the end and return the exit code."""
        try:
            return self.process.wait(timeout)
        except subprocess.TimeoutExpired as error:
            raise AssertionError(f"still runs after {timeout} s: {self.out} {self.err}") from error

    def _wait(self, condition: object, what: str) -> None:
        assert callable(condition)

        def come() -> bool:
            if condition():
                return True
            assert self.process.poll() is None, (
                f"ended ({self.process.returncode}) without {what}: {self.out} {self.err}"
            )
            return False

        eventually_sync(come, DEADLINE_SECONDS, message=what)


@contextmanager
def running(
    *words: str, cwd: Path, env: Mapping[str, str] | None = None, name: str = "program", stdin: int | None = None
) -> Generator[Running]:
    """Start the program; it is killed at the end if it still runs."""
    out, err = cwd / f"{name}.out", cwd / f"{name}.err"
    with out.open("wb") as out_file, err.open("wb") as err_file:
        process = subprocess.Popen(
            [*PROGRAM, *words],
            cwd=cwd,
            env=dict(env) if env is not None else environment(),
            stdin=subprocess.DEVNULL if stdin is None else stdin,
            stdout=out_file,
            stderr=err_file,
            process_group=0,
        )
    try:
        yield Running(process, out, err)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout, process.stderr):
            if pipe is not None:
                pipe.close()


def children_of(pid: int) -> set[int]:
    """Return the processes that a process started and that still run."""
    path = Path(f"/proc/{pid}/task")
    found: set[int] = set()
    try:
        for thread in path.iterdir():
            found |= {int(word) for word in (thread / "children").read_text().split()}
    except (FileNotFoundError, ProcessLookupError):
        return set()
    return found


def alive(pid: int) -> bool:
    """Tell whether a process runs; a zombie does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False

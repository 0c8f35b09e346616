"""`signalbus run` as people use it: a program that is served, watched, stopped, killed and changed."""

from __future__ import annotations

import os
import signal
import sqlite3
from pathlib import Path
from typing import cast

import pytest

from tests.cli.program import Running, alive, children_of, environment, running, signalbus
from tests.support import eventually_sync

APP = """
import asyncio, os
from signalbus import Bus

bus = Bus(drain_timeout=20)

@bus.subscribe("job.*", name="jobs", concurrency=4)
async def work(job: dict) -> None:
    print("begin", job["n"], os.getpid(), flush=True)
    while not os.path.exists(job["until"]):
        await asyncio.sleep(0.01)
    print("end", job["n"], os.getpid(), flush=True)
"""


@pytest.fixture
def app(tmp_path: Path) -> Path:
    (tmp_path / "app.py").write_text(APP)
    return tmp_path


def publish(app: Path, n: int, until: str) -> None:
    signalbus("publish", "job.new", f'{{"n": {n}, "until": "{until}"}}', cwd=app)


def queue(app: Path) -> dict[str, object]:
    fields = signalbus("topology", "--json", cwd=app).json()
    [subscription] = cast("list[dict[str, object]]", fields["subscriptions"])
    return subscription


def dead_letters(app: Path) -> int:
    fields = signalbus("doctor", "--json", cwd=app, check=None).json()
    checks = cast("list[dict[str, object]]", fields["checks"])
    return sum(check["check"] == "dead letters" for check in checks)


def wait_serving(program: Running, count: int = 1) -> None:
    program.wait_err("serving jobs", count)


def test_publish_run_and_tail_work_together(app: Path) -> None:
    (app / "now").touch()
    with running("run", "app:bus", cwd=app, name="run") as run, running("tail", cwd=app, name="tail") as tail:
        wait_serving(run)
        tail.wait_err("following")
        publish(app, 1, "now")
        run.wait_out("end 1")
        tail.wait_out("job.new")


def test_they_work_together_on_rabbitmq_too(amqp_url: str, app: Path) -> None:
    (app / "now").touch()
    env = environment(amqp_url)
    with running("run", "app:bus", cwd=app, env=env, name="run") as run:
        wait_serving(run)
        with running("tail", "--count", "1", cwd=app, env=env, name="tail") as tail:
            tail.wait_err("following")
            signalbus("publish", "job.new", '{"n": 1, "until": "now"}', cwd=app, env=env)
            run.wait_out("end 1")
            assert tail.wait() == 0
            assert "job.new" in tail.out
        run.send(signal.SIGTERM)
        assert run.wait() == 0


def test_sigterm_lets_handlers_end_and_loses_nothing(app: Path) -> None:
    """Fault row 46."""
    with running("run", "app:bus", cwd=app) as run:
        wait_serving(run)
        for n in range(12):  # more than run at a time
            publish(app, n, "go")
        run.wait_out("begin", 4)
        run.send(signal.SIGTERM)
        run.wait_err("4 handlers have up to 20 s")
        (app / "go").touch()
        assert run.wait() == 0
        ended = run.out.count("end")
        # What was in hand but not begun may still begin before the stop; everything that begins ends.
        assert ended == run.out.count("begin") >= 4
    assert queue(app)["ready"] == 12 - ended
    assert dead_letters(app) == 0


def test_the_second_sigint_stops_now(app: Path) -> None:
    """Fault row 47."""
    with running("run", "app:bus", cwd=app) as run:
        wait_serving(run)
        publish(app, 1, "never")
        run.wait_out("begin 1")
        run.send(signal.SIGINT)
        run.wait_err("a second signal stops now")
        run.send(signal.SIGINT)
        assert run.wait(5) == 130
        assert "stopping now" in run.err
    (app / "never").touch()
    with running("run", "app:bus", cwd=app, name="again") as run:
        run.wait_out("end 1")


def test_sigterm_while_the_broker_is_awaited_ends_it(app: Path) -> None:
    env = environment("amqp://127.0.0.1:1/")
    with running("run", "app:bus", "-v", cwd=app, env=env) as run:
        # Asking for the signal handler's place in /proc is the only sign there is before the broker answers.
        eventually_sync(lambda: _catches(run.pid, signal.SIGTERM), 20)
        run.send(signal.SIGTERM)
        assert run.wait(10) == 0


def test_workers_share_the_work_and_a_killed_one_is_replaced(app: Path) -> None:
    (app / "now").touch()
    with running("run", "app:bus", "--workers", "2", cwd=app) as run:
        wait_serving(run, 2)
        first = children_of(run.pid)
        assert len(first) == 2
        victim = min(first)
        os.kill(victim, signal.SIGKILL)
        run.wait_err(f"worker {victim} died (SIGKILL)")
        wait_serving(run, 3)
        second = children_of(run.pid)
        assert len(second) == 2
        assert victim not in second
        publish(app, 1, "now")
        run.wait_out("end 1")
        run.send(signal.SIGTERM)
        assert run.wait() == 0
    assert not any(alive(pid) for pid in second)


def test_workers_that_keep_dying_end_the_program(app: Path) -> None:
    with (app / "app.py").open("a") as file:
        file.write("\nos._exit(9)\n")
    with running("run", "app:bus", "--workers", "2", cwd=app) as run:
        assert run.wait(30) == 1
        assert "workers died more than 3 times in 5 s" in run.err


def test_workers_that_cannot_serve_end_the_program_at_once(app: Path) -> None:
    with running("run", "app:missing", "--workers", "2", cwd=app) as run:
        assert run.wait(30) == 5
        assert "died" not in run.err


def test_no_worker_outlives_a_killed_parent(app: Path) -> None:
    with running("run", "app:bus", "--workers", "2", cwd=app) as run:
        wait_serving(run, 2)
        workers = children_of(run.pid)
        assert len(workers) == 2
        run.send(signal.SIGKILL)
        run.wait()
        eventually_sync(lambda: not any(alive(pid) for pid in workers), 20, message="the workers end")


def test_a_second_signal_kills_the_workers(app: Path) -> None:
    with running("run", "app:bus", "--workers", "2", cwd=app) as run:
        wait_serving(run, 2)
        workers = children_of(run.pid)
        publish(app, 1, "never")
        run.wait_out("begin 1")
        run.send(signal.SIGINT)
        run.wait_err("stopping the workers")
        run.send(signal.SIGINT)
        assert run.wait(10) == 130
        eventually_sync(lambda: not any(alive(pid) for pid in workers), 10, message="the workers end")


def test_a_change_of_the_source_starts_it_again(app: Path) -> None:
    (app / "now").touch()
    with running("run", "app:bus", "--reload", cwd=app) as run:
        wait_serving(run)
        (app / "app.py").write_text(APP.replace("begin", "anew"))
        wait_serving(run, 2)
        publish(app, 1, "now")
        run.wait_out("anew 1")
        run.send(signal.SIGTERM)
        assert run.wait() == 0


def test_a_mistake_in_the_source_is_shown_and_waited_out(app: Path) -> None:
    with running("run", "app:bus", "--reload", cwd=app) as run:
        wait_serving(run)
        (app / "app.py").write_text(APP + "\nthis is no Python\n")
        run.wait_err("waiting for a change")
        assert "SyntaxError" in run.err
        (app / "app.py").write_text(APP)
        wait_serving(run, 2)


@pytest.mark.parametrize(
    ("target", "code", "says"),
    [
        ("app", 2, "is not module:bus"),
        ("nothing:bus", 5, "no module 'nothing'"),
        ("app:nothing", 5, "signalbus run app:bus"),
        ("app:work", 2, "not a Bus"),
        ("broken:bus", 1, "division by zero"),
    ],
)
def test_a_wrong_target_is_explained(target: str, code: int, says: str, app: Path) -> None:
    (app / "broken.py").write_text("1 / 0")
    with (app / "app.py").open("a") as file:
        file.write("\nwork = 5\n")
    assert says in signalbus("run", target, cwd=app, check=code).err


def test_a_url_that_would_have_no_effect_is_refused(app: Path) -> None:
    (app / "own.py").write_text("from signalbus import Bus\nbus = Bus('sqlite:///own.db')\n")
    result = signalbus("run", "own:bus", "--url", "sqlite:///other.db", cwd=app, check=2)
    assert "names its own broker" in result.err


def test_a_bus_that_cannot_be_served_says_why(app: Path) -> None:
    env = environment("amqp://u:hunter2@127.0.0.1:1/")
    result = signalbus("run", "app:bus", "--timeout", "1", cwd=app, env=env, check=3)
    assert "hunter2" not in result.err


def test_a_stuck_thread_does_not_keep_the_program(app: Path) -> None:
    (app / "stuck.py").write_text(
        "import time\nfrom signalbus import Bus\nbus = Bus(drain_timeout=0.2)\n"
        "@bus.subscribe('job.*')\ndef work(job: dict) -> None:\n    print('begin', flush=True)\n    time.sleep(600)\n"
    )
    with running("run", "stuck:bus", cwd=app) as run:
        run.wait_err("serving")
        publish(app, 1, "")
        run.wait_out("begin")
        run.send(signal.SIGTERM)
        assert run.wait(20) == 0


def test_the_store_is_whole_after_kills(app: Path) -> None:
    with running("run", "app:bus", cwd=app) as run:
        wait_serving(run)
        publish(app, 1, "never")
        run.wait_out("begin 1")
        run.send(signal.SIGKILL)
        run.wait()
    database = sqlite3.connect(app / "signalbus.db")
    try:
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)
    finally:
        database.close()


def _catches(pid: int, number: signal.Signals) -> bool:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("SigCgt:"):
            return bool(int(line.split()[1], 16) >> (number - 1) & 1)
    return False

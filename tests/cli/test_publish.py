from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.program import running, signalbus


@pytest.fixture
def tail(tmp_path: Path) -> object:
    """A program that shows every signal as JSON."""
    with running("tail", "--json", cwd=tmp_path, name="tail") as tail:
        tail.wait_err("following")
        yield tail


def events(tail: object, count: int) -> list[dict[str, object]]:
    from tests.cli.program import Running

    assert isinstance(tail, Running)
    tail.wait_out('"event"', count)
    return [line["event"] for line in tail.json_lines()]  # type: ignore[misc]


def test_a_signal_arrives_as_it_was_given(tail: object, tmp_path: Path) -> None:
    big = 2**70
    options = ["--subject", "A1", "--source", "shop", "--extension", "tenant=x", "--json"]
    receipt = signalbus("publish", "order.placed", f'{{"n": {big}, "s": "ü\\n"}}', *options, cwd=tmp_path).json()
    assert receipt["routed"] is True
    [event] = events(tail, 1)
    assert event["id"] == receipt["id"]
    assert event["type"] == "order.placed"
    assert event["subject"] == "A1"
    assert event["source"] == "shop"
    assert event["tenant"] == "x"
    assert event["datacontenttype"] == "application/json"
    assert event["data"] == {"n": big, "s": "ü\n"}


def test_a_body_comes_from_standard_input_or_a_file(tail: object, tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(b"\xff\xd8")
    signalbus("publish", "a.one", "-", cwd=tmp_path, stdin='{"x": 1}')
    signalbus("publish", "a.two", "@photo", "--content-type", "image/jpeg", cwd=tmp_path)
    one, two = events(tail, 2)
    assert one["data"] == {"x": 1}
    assert two["data_base64"] == "/9g="


def test_lines_are_published_in_order_and_bad_ones_named(tail: object, tmp_path: Path) -> None:
    whole = {"specversion": "1.0", "id": "7", "type": "x.y", "source": "s", "data": 5}
    lines = ['{"n": 1}', "{bad", "", json.dumps(whole), json.dumps({"schema_version": 1, "event": whole | {"id": "8"}})]
    result = signalbus("publish", "a.b", "--lines", "--json", cwd=tmp_path, stdin="\n".join(lines), check=6)
    report = result.json()
    assert (report["published"], report["failed"], report["bad_lines"]) == (3, 1, [2])
    assert "line 2:" in result.err
    first, second, third = events(tail, 3)
    assert (first["type"], first["data"]) == ("a.b", {"n": 1})
    assert (second["id"], second["type"], second["data"]) == ("7", "x.y", 5)
    assert third["id"] == "8"


def test_many_lines_from_a_file(tail: object, tmp_path: Path) -> None:
    (tmp_path / "in.jsonl").write_text("".join(f'{{"n": {n}}}\n' for n in range(5_000)))
    assert signalbus("publish", "a.b", "@in.jsonl", "--lines", "--json", cwd=tmp_path).json()["published"] == 5_000
    assert [event["data"] for event in events(tail, 5_000)] == [{"n": n} for n in range(5_000)]


def test_lines_from_a_pipe_are_published_as_they_come(tail: object, tmp_path: Path) -> None:
    with running("publish", "a.b", "--lines", cwd=tmp_path, stdin=subprocess.PIPE) as publisher:
        assert publisher.process.stdin is not None
        for n in range(3):
            os.write(publisher.process.stdin.fileno(), b'{"n": %d}\n' % n)
            assert events(tail, n + 1)[n]["data"] == {"n": n}
        publisher.process.stdin.close()
        assert publisher.wait() == 0


def test_a_dry_run_publishes_nothing_and_makes_no_file(tmp_path: Path) -> None:
    assert signalbus("publish", "a.b", "1", "--dry-run", "--json", cwd=tmp_path).json()["dry_run"] is True
    result = signalbus("publish", "a.b", "--lines", "--dry-run", "--json", cwd=tmp_path, stdin="1\nx\n", check=6)
    assert result.json()["bad_lines"] == [2]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (["a.b", "nojson"], 2),
        (["a b", "1"], 2),
        ([], 2),
        (["a.b", "1", "--extension", "novalue"], 2),
        (["a.b", "1", "--extension", "Bad-Name=1"], 2),
        (["a.b", "1", "--url", "ftp://x"], 2),
        (["a.b", "1", "--url", "amqp://127.0.0.1:1/", "--timeout", "1"], 3),
        (["a.b", "@missing"], 5),
        (["a.b", "1"], 6),
        (["a.b", "1", "--unroutable", "ignore"], 0),
        (["a.b", "--lines", "@in"], 6),
        (["a.b", "--lines", "@in", "--unroutable", "ignore"], 0),
    ],
)
def test_exit_codes(words: list[str], code: int, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("1\n")
    result = signalbus("publish", *words, cwd=tmp_path, check=code)
    assert "Traceback" not in result.err
    if code:
        assert result.err

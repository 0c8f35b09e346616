"""What people and programs get to see of a trace, compared with what they should."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from signalbus.trace.rendering import clipped, clock, columns, duration, padded, short_id
from signalbus.trace.rendering_json import SCHEMA_VERSION, render_json, trace_fields
from signalbus.trace.rendering_otlp import otlp_fields, render_otlp
from signalbus.trace.rendering_sequence import render_sequence
from signalbus.trace.rendering_tree import TreeView, render_tree
from signalbus.trace.rendering_waterfall import render_waterfall
from signalbus.trace.spans import spans
from tests.trace.examples import ORDER, hostile, order, trouble
from tests.trace.facts import NOON

GOLDEN = Path(__file__).parent / "golden"
VIEW = TreeView(now=NOON + 1.2, consumers={"billing": 2, "mail": 1})

RENDERINGS: dict[str, Callable[[], str]] = {
    "order-tree.txt": lambda: render_tree(order(), VIEW),
    "order-tree-80.txt": lambda: render_tree(order(), TreeView(now=NOON + 1.2, consumers={}, width=80)),
    "order-waterfall.txt": lambda: render_waterfall(order(), now=NOON + 1.2),
    "order-sequence.mmd": lambda: render_sequence(order()),
    "order.json": lambda: render_json(order(), indent=2),
    "order-otlp.json": lambda: json.dumps(otlp_fields(order()), indent=2),
    "trouble-tree.txt": lambda: render_tree(trouble(), TreeView(now=NOON + 10)),
    "trouble-waterfall.txt": lambda: render_waterfall(trouble(), now=NOON + 10),
    "trouble-sequence.mmd": lambda: render_sequence(trouble()),
    "trouble.json": lambda: render_json(trouble(), indent=2),
}


@pytest.mark.parametrize("name", RENDERINGS)
def test_renderings_are_as_agreed(name: str) -> None:
    """After a change that is meant: ``python -m tests.trace.test_rendering``, and look at the difference."""
    assert RENDERINGS[name]() + "\n" == (GOLDEN / name).read_text()


@pytest.mark.parametrize(
    "render", [render_tree, render_waterfall, render_sequence, render_json, render_otlp], ids=lambda each: each.__name__
)
def test_nothing_from_outside_controls_a_terminal_or_makes_a_line(render: Callable[[Any], str]) -> None:
    lines = render(hostile()).split("\n")
    assert all(line.isprintable() for line in lines)
    assert not any(line.lstrip("│ ├└─").startswith(("alert", ";", "%%")) for line in lines)


def test_a_diagram_has_only_the_characters_that_mermaid_takes_as_text() -> None:
    for line in render_sequence(hostile()).split("\n")[1:]:
        said = line.partition(": ")[2] if ": " in line else line.partition(" as ")[2]
        rest = re.sub(r"#\d+;", "", said)
        assert not re.search(r"[;#<>%`${}\[\]\\\"]", rest), line
        assert not re.search(r"\bend\b", rest), line


def test_a_terminal_never_gets_a_line_wider_than_itself() -> None:
    for width in (20, 40, 79):
        for shown in (render_tree(order(), TreeView(width=width)), render_waterfall(order(), width=width)):
            assert max(map(columns, shown.split("\n"))) <= width


def test_without_a_terminal_ids_and_errors_are_whole() -> None:
    shown = render_tree(order())
    assert ORDER in shown
    assert "…  " not in shown.replace("… waiting", "")


def test_json_has_a_version_and_keeps_large_integers() -> None:
    fields = json.loads(render_json(order()))
    assert fields["schema_version"] == SCHEMA_VERSION == 1
    assert fields["signal"]["data"]["total"] == 12345678901234567890123
    assert fields == json.loads(json.dumps(trace_fields(order())))


def test_skew_is_stated_and_no_time_is_negative() -> None:
    assert "clocks: that of web-2 is behind that of web-1 by at least 29.0 s" in render_tree(trouble())
    found = spans(trouble())
    assert all(span.end is None or span.end >= span.start for span in found)
    assert all(span.queued >= 0 for span in found)
    starts = {span.key: span.start for span in found}
    assert all(span.start >= starts[span.parent] for span in found if span.parent)


def test_otlp_follows_the_json_mapping_of_the_protocol() -> None:
    exported = otlp_fields(order())
    assert exported == json.loads(render_otlp(order()))
    groups: Any = exported["resourceSpans"]
    found = [span for group in groups for scope in group["scopeSpans"] for span in scope["spans"]]
    assert {span["traceId"] for span in found} == {"4bf92f3577b34da6a3ce929d0e0e4736"}, "goes on from its traceparent"
    assert len({span["spanId"] for span in found}) == len(found) == 6
    known = {span["spanId"] for span in found} | {"00f067aa0ba902b7"}
    for span in found:
        assert re.fullmatch(r"[0-9a-f]{16}", span["spanId"])
        assert span["parentSpanId"] in known
        assert type(span["startTimeUnixNano"]) is str
        assert 0 < int(span["startTimeUnixNano"]) <= int(span["endTimeUnixNano"])
        assert span["kind"] in (2, 3, 4, 5)
        for attribute in span["attributes"]:
            ((kind, value),) = attribute["value"].items()
            assert {"stringValue": str, "intValue": str, "doubleValue": float, "boolValue": bool}[kind] is type(value)
    assert [span["status"] for span in found if span["status"]] == [{"code": 2, "message": "TimeoutError: gateway"}]


@pytest.mark.parametrize(
    ("seconds", "shown"),
    [
        (None, ""),
        (-1.0, "0 µs"),
        (0.0000042, "4 µs"),
        (0.0031, "3 ms"),
        (0.9996, "1.00 s"),
        (1.054, "1.05 s"),
        (59.94, "59.9 s"),
        (61.0, "1 min 1 s"),
        (7_300.0, "2 h 1 min"),
        (1e6, "11 days"),
    ],
)
def test_durations_have_the_unit_that_fits(seconds: float | None, shown: str) -> None:
    assert duration(seconds) == shown


def test_times_and_widths() -> None:
    assert clock(NOON + 0.0015, date=True) == "2026-01-01 12:00:00.001 UTC"
    assert clock(1e300) == clock(None) == ""
    assert short_id(ORDER) == "01929f…7c2"
    assert (columns("日本"), padded("日本", 6)) == (4, "日本  ")
    assert (clipped("日本語", 5), clipped("abc", 3), clipped("abcd", 3)) == ("日本…", "abc", "ab…")


if __name__ == "__main__":
    GOLDEN.mkdir(exist_ok=True)
    for file, rendering in RENDERINGS.items():
        (GOLDEN / file).write_text(rendering() + "\n")
    sys.stdout.write(f"{len(RENDERINGS)} files in {GOLDEN}\n")

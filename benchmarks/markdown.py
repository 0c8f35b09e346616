"""The table in docs/performance.md, from the JSON that `python -m benchmarks` writes."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from pathlib import Path
from typing import cast

BEGIN, END = "<!-- figures: written by python -m benchmarks --markdown -->", "<!-- end of figures -->"

Json = Mapping[str, object]


def insert(document: Path, page: Path) -> None:
    """Put the figures between the two marks of a page. Raises ValueError if it has none."""
    text = page.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{page} has no place for figures: {BEGIN} ... {END}")
    found = json.loads(document.read_text(encoding="utf-8"))
    page.write_text(f"{before}{BEGIN}\n\n{table(found)}\n\n{END}{after}", encoding="utf-8")


def table(found: Json) -> str:
    """Return environment and figures as Markdown."""
    lines = [
        _circumstances(cast("dict[str, str]", found["environment"])),
        "",
        "| what | who | median [lowest .. highest] | ours / theirs | target | met |",
        "|---|---|---:|---:|---|---|",
    ]
    for benchmark in cast("list[Json]", found["benchmarks"]):
        lines += _lines(benchmark)
    return "\n".join(lines)


def _circumstances(environment: Mapping[str, str]) -> str:
    """Return when and on what it was measured, with the versions of everything that took part."""
    about = ("started", "machine", "load", "file system")
    began = datetime.fromisoformat(environment["started"])
    versions = ", ".join(f"{name} {value}" for name, value in environment.items() if name not in about)
    return (
        f"Measured on {began:%d %B %Y at %H:%M} UTC. {environment['machine']}, {environment['file system']}; "
        f"load average at the beginning {environment['load']}. {versions}."
    )


def _lines(benchmark: Json) -> Iterator[str]:
    what = f"{benchmark['title']} ({benchmark['unit']})"
    if benchmark["error"]:
        yield f"| {what} | | failed: {str(benchmark['error']).splitlines()[0][:120]} | | | no |"
    for row in cast("list[Json]", benchmark["rows"]):
        target = cast("Json | None", row["target"])
        bound = f"{_comparison(target)} {target['bound']:,g}" if target else ""
        met = {True: "yes", False: "**no**", None: ""}[cast("bool | None", row["met"])]
        yield f"| {what} | {row['contestant']} | {_spread(row['value'])} | {_ratio(row['ratio'])} | {bound} | {met} |"
        what = ""


def _comparison(target: Json) -> str:
    return {">=": "≥", "<=": "≤", "<": "<"}[str(target["comparison"])]


def _spread(found: object) -> str:
    spread = cast("Mapping[str, float]", found)
    digits = 0 if spread["median"] >= 100 else 2
    return f"{spread['median']:,.{digits}f} [{spread['low']:,.{digits}f} .. {spread['high']:,.{digits}f}]"


def _ratio(found: object) -> str:
    return f"{cast('Mapping[str, float]', found)['median']:,.2f}" if found else ""

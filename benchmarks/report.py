"""The table for people and the JSON for machines."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import json
import os
import platform
import re
import sqlite3
import subprocess
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from rich.console import Console
from rich.table import Table

from .contestants.librabbitmq import HEADER, missing
from .figures import Row, Spread
from .runner import Result

_PACKAGES = (
    *(
        "signalbus-router",
        "aio-pika",
        "aiormq",
        "faststream",
        "taskiq",
        "taskiq-aio-pika",
        "dramatiq",
        "celery",
        "kombu",
    ),
    *("litequeue", "persist-queue", "huey"),
)


def environment(directory: Path, rabbitmq: str | None) -> dict[str, str]:
    """Describe what a figure depends on: versions, processors, the file system, and how busy the machine is."""
    return {
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} processors",
        "load": " ".join(f"{load:.2f}" for load in os.getloadavg()),
        "file system": _filesystem(directory),
        "sqlite": sqlite3.sqlite_version,
        "rabbitmq": rabbitmq or "none",
        "librabbitmq": _librabbitmq(),
        **{package: _version(package) for package in _PACKAGES},
    }


def print_report(found: Mapping[str, str], results: Sequence[Result]) -> None:
    """Print the environment and the table."""
    console = Console(width=None if Console().is_terminal else 160)
    console.print(", ".join(f"{name} {value}" for name, value in found.items()), highlight=False, soft_wrap=True)
    table = Table("benchmark", "contestant", "median \\[min .. max]", "signalbus to it", "target", "met")
    for result in results:
        _add(table, result)
    console.print(table)


def write_json(path: Path, found: Mapping[str, str], results: Sequence[Result]) -> None:
    """Write everything that was found."""
    document = {"environment": dict(found), "benchmarks": [as_json(result) for result in results]}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def _add(table: Table, result: Result) -> None:
    benchmark = result.benchmark
    if result.error is not None:
        table.add_row(benchmark.title, "", f"[red]failed: {result.error}", "", "", "[red]no")
    for number, row in enumerate(result.rows):
        table.add_row(
            f"{benchmark.title} ({benchmark.unit})" if number == 0 else "",
            row.contestant,
            _spread(row.value),
            _spread(row.ratio) if row.ratio else "",
            f"{row.target.comparison} {row.target.bound:,g}" if row.target else "",
            {True: "[green]yes", False: "[red]NO", None: ""}[row.met],
        )
    table.add_section()


def _spread(spread: Spread) -> str:
    digits = 0 if spread.median >= 1000 else 2
    return f"{spread.median:,.{digits}f} \\[{spread.low:,.{digits}f} .. {spread.high:,.{digits}f}]"


def as_json(result: Result) -> dict[str, object]:
    """Return what a benchmark found as JSON data."""
    benchmark = result.benchmark
    return {
        "name": benchmark.name,
        "title": benchmark.title,
        "unit": benchmark.unit,
        "error": result.error,
        "rows": [_row_as_json(row) for row in result.rows],
    }


def _row_as_json(row: Row) -> dict[str, object]:
    return {**dataclasses.asdict(row), "met": row.met}


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _filesystem(directory: Path) -> str:
    """Name the file system: on tmpfs an fsync costs nothing, and the figures mean little."""
    answer = subprocess.run(["df", "--output=fstype", str(directory)], capture_output=True, text=True, check=False)
    return (answer.stdout.split() or ["unknown"])[-1]


def _librabbitmq() -> str:
    if reason := missing():
        return reason
    text = HEADER.read_text(encoding="utf-8", errors="replace")
    numbers = [re.search(rf"#define AMQP_VERSION_{part} (\d+)", text) for part in ("MAJOR", "MINOR", "PATCH")]
    return ".".join(found[1] for found in numbers if found is not None) or "unknown version"

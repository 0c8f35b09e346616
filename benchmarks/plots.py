"""Pictures of what was measured: bars for each contest, from the JSON that `python -m benchmarks` writes.

``python -m benchmarks.plots JSON DIRECTORY`` draws them again.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

OURS, THEIRS = "#0b6e4f", "#9aa5b1"
DPI = 110


@dataclass(frozen=True, slots=True)
class Picture:
    """A file with some benchmarks side by side."""

    file: str
    names: tuple[str, ...]


PICTURES = (
    Picture("bench-rabbitmq.png", ("rabbitmq.publish_500", "rabbitmq.consume", "rabbitmq.callers")),
    Picture("bench-cpu.png", ("rabbitmq.publish_cpu", "rabbitmq.consume_cpu")),
    Picture("bench-latency.png", ("rabbitmq.steady_p50", "rabbitmq.steady_p99", "rabbitmq.request")),
    Picture("bench-embedded.png", ("embedded.publish", "embedded.round_trip")),
)


def draw(document: Path, directory: Path) -> list[Path]:
    """Draw those pictures of which at least one benchmark was measured; return their files."""
    import matplotlib as mpl

    mpl.use("Agg")
    found = json.loads(document.read_text(encoding="utf-8"))
    measured = {benchmark["name"]: benchmark for benchmark in found["benchmarks"] if benchmark["rows"]}
    directory.mkdir(parents=True, exist_ok=True)
    return [
        _drawn(directory / picture.file, [measured[name] for name in picture.names if name in measured])
        for picture in PICTURES
        if any(name in measured for name in picture.names)
    ]


def _drawn(file: Path, benchmarks: Sequence[Mapping[str, object]]) -> Path:
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(benchmarks), figsize=(4.6 * len(benchmarks), 3.2), squeeze=False)
    for place, benchmark in zip(axes[0], benchmarks, strict=True):
        _bars(place, benchmark)
    figure.tight_layout()
    figure.savefig(file, dpi=DPI)
    plt.close(figure)
    return file


def _bars(axes: Axes, benchmark: Mapping[str, object]) -> None:
    rows = benchmark["rows"]
    assert isinstance(rows, list)
    rows = rows[::-1]  # the first one on top
    names = [row["contestant"] for row in rows]
    medians = [row["value"]["median"] for row in rows]
    low = [row["value"]["median"] - row["value"]["low"] for row in rows]
    high = [row["value"]["high"] - row["value"]["median"] for row in rows]
    colours = [OURS if name == "signalbus" else THEIRS for name in names]
    axes.barh(names, medians, xerr=(low, high), color=colours, ecolor="#334", capsize=2)
    for number, value in enumerate(medians):
        axes.text(value, number + 0.28, f" {value:,.0f}" if value >= 100 else f" {value:.2g}", fontsize=7, va="bottom")
    axes.set_title(str(benchmark["title"]).partition(": ")[2], fontsize=9)
    axes.set_xlabel(str(benchmark["unit"]), fontsize=8)
    axes.tick_params(labelsize=8)
    axes.margins(x=0.18)
    for side in ("top", "right"):
        axes.spines[side].set_visible(False)


if __name__ == "__main__":
    for drawn in draw(Path(sys.argv[1]), Path(sys.argv[2])):
        print(drawn)

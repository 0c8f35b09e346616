"""Lines that the bus refuses."""

from __future__ import annotations

from pathlib import Path

from signalbus import Bus, Signal
from signalbus.cli.lines import LineReport, open_input, publish_lines
from signalbus.cli.options import Options
from signalbus.cli.output import Output


async def test_a_signal_over_the_limit_fails_alone(tmp_path: Path) -> None:
    bad: list[int] = []
    report = LineReport(on_bad=lambda number, _reason: bad.append(number))
    (tmp_path / "in").write_bytes(b'1\n"' + b"x" * 5_000 + b'"\n3\n')
    template = Signal(type="a.b", datacontenttype="application/json")
    bus = Bus(f"sqlite:///{tmp_path / 'lines.db'}", max_signal_bytes=2_000)
    with open_input(f"@{tmp_path / 'in'}") as source:
        async with bus:
            await publish_lines(source, template, bus, report, "ignore", Output(Options(quiet=True)))
    assert (report.published, bad, report.exit_code) == (2, [2], 6)

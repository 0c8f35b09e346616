"""What is known while the demo runs, and how it is shown: bars for people who watch, else lines."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from ..cli.output import Output

LINE_SECONDS = 2.0
FRAME_SECONDS = 0.1
PUBLISHER = "published"


@dataclass(slots=True, kw_only=True)
class Tally:
    """How many signals are done of how many, for the publisher and each subscription."""

    expected: dict[str, int]
    done: dict[str, int] = field(default_factory=dict[str, int])
    started: float = field(default_factory=time.monotonic)
    changed: float = field(default_factory=time.monotonic)
    finished: float | None = None

    def set(self, name: str, done: int) -> None:
        """Note progress."""
        if self.done.get(name) != done:
            self.changed = time.monotonic()
        self.done[name] = done

    @property
    def complete(self) -> bool:
        """Whether everything is published and handled."""
        return all(self.done.get(name, 0) >= count for name, count in self.expected.items())

    @property
    def seconds(self) -> float:
        """Since the first signal, to the last one or now."""
        return (self.finished or time.monotonic()) - self.started

    def line(self) -> str:
        """Return it as one line."""
        parts = (f"{name} {self.done.get(name, 0)}/{count}" for name, count in self.expected.items())
        return f"{self.seconds:5.1f} s  {'  '.join(parts)}"


class Show:
    """Prints what happens."""

    def __init__(self, output: Output) -> None:
        self._output = output

    def happened(self, tally: Tally, text: str) -> None:
        """Tell of an event."""
        self._output.note(f"{tally.seconds:5.1f} s  {text}")

    @asynccontextmanager
    async def progress(self, tally: Tally) -> AsyncGenerator[None]:
        """Show the tally while the body runs."""
        show = self._bars if self._output.animated else self._lines
        task = asyncio.create_task(show(tally))
        try:
            yield
        finally:
            task.cancel()
            await asyncio.wait([task])
            if not task.cancelled():
                task.result()  # it never returns, so this raises what went wrong with it

    async def _lines(self, tally: Tally) -> None:
        while True:
            await asyncio.sleep(LINE_SECONDS)
            self._output.note(tally.line())

    async def _bars(self, tally: Tally) -> None:
        from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (
            TextColumn("{task.description:<13}"),
            BarColumn(),
            TextColumn("{task.completed:>6.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        with Progress(
            *columns, console=self._output.console(stderr=True), transient=True, speed_estimate_period=5
        ) as bars:
            tasks = {name: bars.add_task(name, total=count, rate="") for name, count in tally.expected.items()}
            while True:
                for name, task in tasks.items():
                    speed = bars.tasks[task].speed
                    rate = f"{speed:>6.0f}/s" if speed else ""
                    bars.update(task, completed=tally.done.get(name, 0), rate=rate)
                await asyncio.sleep(FRAME_SECONDS)

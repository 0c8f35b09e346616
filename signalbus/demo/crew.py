"""The demo's processes: started, heard, killed on purpose, and started again when they die."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Coroutine

from ..bus import Bus
from ..cli.processes import Child
from ..errors import Escalated, ResponderDown
from ..liveness import Monitor
from ..supervision import Supervisor
from .flights import PATTERNS
from .place import Place
from .reports import heard
from .tally import PUBLISHER, Show, Tally

VICTIM = "delays"
START_SECONDS = 30.0
DOWN_SECONDS = 10.0  # a Down takes milliseconds; without one something is broken


class ProcessDied(Exception):
    """Raised when a subscriber process ends that nobody asked to."""


class Crew:
    """Runs the processes of a demo. `stop` ends all of them, whatever happened."""

    def __init__(self, place: Place, bus: Bus, tally: Tally, show: Show, *, verbose: bool) -> None:
        self.kills = 0
        self.restarts = 0
        self.down_seconds: float | None = None  # from the kill of the subscriber to its Down
        self.refused_seconds: float | None = None  # from the kill of the responder to the requester's error
        self._place = place
        self._bus = bus
        self._tally = tally
        self._show = show
        self._verbose = verbose
        self._stopping = False
        self._failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._supervisor = Supervisor("demo", self._escalate)
        self._children: list[Child] = []
        self._tasks: list[asyncio.Task[None]] = []
        self._ready: dict[str, asyncio.Event] = {}

    async def start_subscribers(self) -> None:
        """Start a process for each subscription and wait until all serve."""
        for name in PATTERNS:
            self._ready[name] = asyncio.Event()
            self._tasks.append(self._supervisor.start(name, lambda name=name: self._subscriber(name)))  # type: ignore[misc]
        async with asyncio.timeout(START_SECONDS):
            await self.unless_failed(self._all_ready())

    def start_publisher(self) -> None:
        """Start to publish."""
        self._tasks.append(asyncio.create_task(self._publisher()))

    async def unless_failed(self, work: Coroutine[object, object, None]) -> None:
        """Wait for ``work``; raises what made the crew give up, if that comes first."""
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait([task, self._failed], return_when=asyncio.FIRST_COMPLETED)
            if self._failed.done():
                self._failed.result()
            await task
        finally:
            task.cancel()

    async def stop(self) -> None:
        """End every process: SIGTERM, then SIGKILL for what does not go."""
        self._stopping = True
        await asyncio.gather(*(child.stop() for child in self._children))
        if self._tasks:
            await asyncio.wait(self._tasks)
        await self._supervisor.aclose()
        if self._failed.done() and not self._failed.cancelled():
            self._failed.exception()  # it was raised already, or something worse was
        self._failed.cancel()

    async def _all_ready(self) -> None:
        for ready in self._ready.values():
            await ready.wait()

    async def _subscriber(self, name: str) -> None:
        """Run one subscriber process to its end. Raises `ProcessDied` unless all are to stop."""
        place = self._place
        arguments = ["-m", "signalbus.demo.subscriber", name, place.subscription(name), place.run]
        arguments.append(str(place.results(name)))
        if name == VICTIM and not self.kills:
            arguments += ["--hold-at", str(max(1, self._tally.expected[name] // 2))]
        if self._verbose:
            arguments.append("--verbose")
        child = await self._start(arguments)
        if child is None:
            return
        pid = child.pid
        monitor: Monitor | None = None
        async for line in child.lines():
            report = heard(line)
            self._tally.set(name, report["done"])
            match report["what"]:
                case "ready":
                    if name == VICTIM and not self.kills:
                        monitor = await self._bus.monitor(report["session"])
                    self._ready[name].set()
                    if self.kills and name == VICTIM:
                        self._show.happened(self._tally, f"{name} serves again as process {pid}")
                case "held":
                    self.kills += 1
                    child.send(signal.SIGKILL)
                    self._show.happened(
                        self._tally, f"kill -9 {pid}: {name}, with {report['done']} effects recorded, some not acked"
                    )
                    if monitor is not None:
                        await self._wait_down(monitor)
                case _:
                    pass
        code = await child.wait()
        self._children.remove(child)
        if not self._stopping:
            self.restarts += 1
            raise ProcessDied(f"the process of {name} ended ({code})")

    async def _wait_down(self, monitor: Monitor) -> None:
        clock = asyncio.get_running_loop().time
        killed = clock()
        async with asyncio.timeout(DOWN_SECONDS):
            down = await monitor.down
        self.down_seconds = clock() - killed
        milliseconds = self.down_seconds * 1000
        self._show.happened(self._tally, f"Down of {down.name} after {milliseconds:.1f} ms: {down.reason}")

    async def lose_a_responder(self) -> None:
        """Send a request, kill who has it, and see what the requester gets."""
        request_type = f"demo.{self._place.run}.clearance"
        child = await self._start(["-m", "signalbus.demo.tower", request_type])
        if child is None:
            return
        clock = asyncio.get_running_loop().time
        killed = 0.0
        asked: asyncio.Task[object] | None = None
        async for line in child.lines():
            match heard(line)["what"]:
                case "ready":
                    asked = asyncio.create_task(self._bus.request(request_type, "UA1545", timeout=DOWN_SECONDS))
                case "held":
                    self.kills += 1
                    killed = clock()
                    child.send(signal.SIGKILL)
                case _:
                    pass
        if asked is not None:
            try:
                await asked
            except ResponderDown:
                self.refused_seconds = clock() - killed
                milliseconds = self.refused_seconds * 1000
                text = f"kill -9 of a responder: its requester got ResponderDown after {milliseconds:.1f} ms"
                self._show.happened(self._tally, text)
        await child.wait()
        self._children.remove(child)

    async def _publisher(self) -> None:
        arguments = ["-m", "signalbus.demo.publisher", self._place.run]
        if self._place.rows is not None:
            arguments += ["--rows", str(self._place.rows)]
        child = await self._start(arguments)
        if child is None:
            return
        finished = False
        async for line in child.lines():
            report = heard(line)
            self._tally.set(PUBLISHER, report["done"])
            finished = finished or report["what"] == "finished"
        code = await child.wait()
        self._children.remove(child)
        if not finished and not self._stopping:
            self._escalate(ProcessDied(f"the publisher ended early ({code})"))

    async def _start(self, arguments: list[str]) -> Child | None:
        if self._stopping:
            return None
        # The URL travels by environment, where `ps` does not show its password.
        child = Child(arguments, environment={**os.environ, "SIGNALBUS_URL": self._place.url}, piped=True)
        self._children.append(child)
        await child.start()
        return child

    def _escalate(self, error: BaseException) -> None:
        if not self._failed.done():
            failure = Escalated(f"the demo's processes died too often: {error}")
            failure.__cause__ = error
            self._failed.set_exception(failure)

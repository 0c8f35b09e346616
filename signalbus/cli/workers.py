"""Serving one bus with several processes: a supervisor of children, with the same rule as for parts of a bus."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Sequence

from ..errors import Escalated
from ..supervision import Supervisor
from .failures import CommandError, Exit
from .interrupts import SIGNALS, stop_now
from .options import Options
from .output import Output
from .processes import Child

#: Exit codes that starting again does not mend.
HOPELESS = {Exit.USAGE, Exit.NOT_PERMITTED, Exit.NOT_FOUND}


def serve_with_workers(target: str, count: int, *, reload: bool, listen: str | None, options: Options) -> int:
    """Serve ``module:bus`` with ``count`` processes until SIGINT or SIGTERM."""
    flags = {"--reload": reload, "--json": options.json, "--quiet": options.quiet, "--verbose": options.verbose}
    arguments = ["-m", "signalbus.cli", "run", target, "--supervised"]
    arguments += [name for name, given in flags.items() if given]
    first = arguments if listen is None else [*arguments, "--listen", listen]
    others = [*arguments, "--listen", "off"]  # one page is enough
    return asyncio.run(_Workers([first, *[others] * (count - 1)], Output(options)).serve())


class WorkerDied(Exception):
    """Raised when a worker ends that nobody asked to."""


class _Workers:
    def __init__(self, arguments: Sequence[list[str]], output: Output) -> None:
        # The URL travels by environment, where `ps` does not show its password.
        self._children = [Child(words, environment=os.environ) for words in arguments]
        self._output = output
        self._ended = asyncio.Event()
        self._failure: BaseException | None = None

    async def serve(self) -> int:
        loop = asyncio.get_running_loop()
        for number in SIGNALS:
            loop.add_signal_handler(number, self._signal, number)
        supervisor = Supervisor("workers", self._escalate)
        tasks = [
            supervisor.start(f"worker {index}", lambda child=child: self._work(child))  # type: ignore[misc]
            for index, child in enumerate(self._children, 1)
        ]
        await self._ended.wait()
        for child in self._children:
            child.send(signal.SIGTERM)
        await asyncio.wait(tasks)
        await supervisor.aclose()
        if self._failure is not None:
            raise self._failure
        return Exit.OK

    async def _work(self, child: Child) -> None:
        """Run one worker to its end. Raises `WorkerDied` unless all are to stop."""
        if self._ended.is_set():
            return
        await child.start()
        pid = child.pid
        if self._ended.is_set():
            child.send(signal.SIGTERM)
        code = await child.wait()
        if self._ended.is_set():
            return
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        if code in HOPELESS:
            self._escalate(CommandError(f"a worker cannot serve ({how})", code=Exit(code)))
            return
        self._output.warn(f"worker {pid} died ({how})")
        raise WorkerDied(f"worker {pid} died ({how})")

    def _escalate(self, error: BaseException) -> None:
        if isinstance(error, WorkerDied):
            self._failure = Escalated(f"workers died more than 3 times in 5 s, the last: {error}")
        else:
            self._failure = error
        self._ended.set()

    def _signal(self, number: int) -> None:
        if self._ended.is_set():
            for child in self._children:
                child.send(signal.SIGKILL)
            stop_now(number)
        self._output.note(f"signalbus: {signal.Signals(number).name}; stopping the workers (a second signal stops now)")
        self._ended.set()

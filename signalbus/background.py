"""Work for foreign code that may block or raise: done in order by one thread, which nobody waits for."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from queue import Empty, SimpleQueue

BATCH = 16
REST_SECONDS = 0.0005
LIMIT = 8_192  # pieces of work that wait; what comes beyond is dropped and counted


class Background:
    """Does pieces of work in the order of `put`; ``failed`` gets what they raise. The thread is started when needed."""

    def __init__(self, name: str, failed: Callable[[BaseException, str], None]) -> None:
        self.dropped = 0
        self._name = name
        self._failed = failed
        self._waiting: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._ended: Future[None] | None = None
        self._closed = False

    def put(self, work: Callable[[], None]) -> None:
        """Have a piece of work done some time. Never blocks; drops it if too much waits, or after `aclose`."""
        if self._closed or self._waiting.qsize() >= LIMIT:
            self.dropped += 1
            return
        if self._ended is None:
            self._ended = Future()
            # A daemon: a piece of work that hangs must not keep the program from ending.
            threading.Thread(target=self._run, args=(self._ended,), name=self._name, daemon=True).start()
        self._waiting.put(work)

    async def aclose(self, timeout: float) -> None:
        """Take nothing more, and wait until what was put is done, at most ``timeout`` seconds. Idempotent."""
        closed, self._closed = self._closed, True
        if self._ended is None:
            return
        if not closed:
            self._waiting.put(None)
        # `wait`, not `wait_for`: nothing of the future is to be cancelled.
        await asyncio.wait([asyncio.wrap_future(self._ended)], timeout=timeout)
        self._drop_rest()

    def _drop_rest(self) -> None:
        """Drop what is left behind a piece of work that hangs."""
        assert self._ended is not None
        while not self._ended.done():
            try:
                self.dropped += self._waiting.get_nowait() is not None
            except Empty:
                self._waiting.put(None)
                return

    def _run(self, ended: Future[None]) -> None:
        done = 0
        while (work := self._waiting.get()) is not None:
            try:
                work()
            except BaseException as error:  # noqa: BLE001 - foreign code, in a thread of its own
                self._failed(error, "ending a span or measuring")
            del work  # it holds a span, and the next one may be long in coming
            done += 1
            if done % BATCH == 0:
                # A thread that is always busy keeps the event loop waiting for the interpreter lock, 5 ms at a time.
                time.sleep(REST_SECONDS)
        ended.set_result(None)

"""Who waits for the end of which sessions: the event loop's side of `watcher.Watcher`."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence

from ...sessions import Down

log = logging.getLogger(__name__)

# With the number of the departure, by which those that came before a watch are told apart.
Ended = Sequence[tuple[int, Down]]


class Watches:
    """Futures by session, and functions that are told of every session. ``unwatched`` is called without arguments
    when the last future of a session was cancelled."""

    def __init__(self, unwatched: Callable[[], None]) -> None:
        self._unwatched = unwatched
        self._futures: dict[str, set[asyncio.Future[Down]]] = {}
        self._everyone: list[tuple[Callable[[Down], None], int]] = []
        self.ours: set[str] = set()  # incarnations of this session

    def add(self, session: str) -> asyncio.Future[Down]:
        """Return a future for the end of a session; before the writer is asked, which may answer at any time."""
        future: asyncio.Future[Down] = asyncio.get_running_loop().create_future()
        self._futures.setdefault(session, set()).add(future)
        future.add_done_callback(lambda done: self._forget(session, done))
        return future

    def add_everyone(self, ended: Callable[[Down], None], since: int) -> None:
        """Tell a function of the end of every session but ours, behind departure ``since``."""
        self._everyone.append((ended, since))

    def __contains__(self, session: object) -> bool:
        """Whether anybody waits for the end of a session. Safe from any thread."""
        return session in self._futures

    def ended(self, downs: Ended) -> None:
        """Tell those concerned."""
        for number, down in downs:
            for future in self._futures.pop(down.session, ()):
                if not future.done():
                    future.set_result(down)
            if down.session not in self.ours:
                self._tell_everyone(number, down)

    def close(self) -> None:
        """Cancel every future."""
        self._everyone = []
        for futures in list(self._futures.values()):
            for future in list(futures):
                future.cancel()

    def _tell_everyone(self, number: int, down: Down) -> None:
        for ended, since in self._everyone:
            if number <= since:
                continue
            try:
                ended(down)
            except Exception:
                # It is not ours, and the others are to be told all the same.
                log.exception("a function that watches all sessions failed over %r", down)

    def _forget(self, session: str, future: asyncio.Future[Down]) -> None:
        waiting = self._futures.get(session)
        if waiting is None or future not in waiting:
            return
        waiting.discard(future)
        if not waiting:
            del self._futures[session]
            self._unwatched()

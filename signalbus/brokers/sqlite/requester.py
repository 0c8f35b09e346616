"""Asking other sessions, over one connection to each: requests, messages, and what they say of themselves."""

from __future__ import annotations

import asyncio
import socket
from collections import Counter

from ...codec import EncodedSignal
from ...errors import Backpressure, BrokerError, BrokerUnavailable
from ..base import Answer, AnswerKind
from .directory import Directory, Post
from .frames import check_size, pack_request
from .lines import close_all
from .peers import Miss, Peer

_OUTSTANDING = 10_000  # requests that wait for an answer: memory stays bounded
_PEERS_KEPT = 64  # connections; beyond that, those that were not used lately are closed
_IDLE_SECONDS = 1.0
_TELL_SECONDS = 5.0  # for a session to take a message, if it is busy

_VERDICTS = {
    Miss.UNREACHABLE: Answer(AnswerKind.NO_RESPONDER, reason="nobody responds to this type"),
    Miss.OVERLOADED: Answer(AnswerKind.OVERLOADED, reason="too many requests wait already"),
    Miss.GONE: Answer(AnswerKind.RESPONDER_DOWN, reason="the responder died, or left without an answer"),
}


class Requester:
    """See the module. Not usable before the broker is open."""

    def __init__(self, directory: Directory, counters: Counter[str]) -> None:
        self._directory = directory
        self._counters = counters
        self._peers: dict[str, Peer] = {}  # by address
        self._calling: dict[str, asyncio.Task[Peer | Miss]] = {}
        self._outstanding = 0
        self._chosen: Counter[str] = Counter()  # outstanding requests by address, from the choice of it on
        self._closed = False

    async def request(self, request: EncodedSignal, timeout: float) -> Answer:
        """See `Broker.request`. Raises `InvalidSignal` if it is too large."""
        packed = pack_request(request)
        if self._outstanding >= _OUTSTANDING:
            raise Backpressure(f"{self._outstanding} requests wait for an answer already; this one was not sent")
        self._outstanding += 1
        try:
            return await self._request(request.type, packed, asyncio.get_running_loop().time() + timeout)
        finally:
            self._outstanding -= 1

    async def _request(self, request_type: str, packed: tuple[bytes, bytes], deadline: float) -> Answer:
        tried: set[str] = set()
        misses: set[Miss] = set()
        while post := await self._choose(request_type, tried, deadline, Miss.GONE in misses):
            # Counted before anything is awaited: requests that are made together must not all choose the same.
            self._chosen[post.address] += 1
            try:
                answer = await self._try(post, packed, deadline, redelivered=Miss.GONE in misses)
            finally:
                self._chosen[post.address] -= 1
                if not self._chosen[post.address]:
                    del self._chosen[post.address]
            if isinstance(answer, Answer):
                if answer.kind is AnswerKind.MOVED:
                    self._directory.distrust()
                return answer
            tried.add(post.address)
            misses.add(answer)
        worst = next((miss for miss in (Miss.GONE, Miss.OVERLOADED) if miss in misses), Miss.UNREACHABLE)
        return _VERDICTS[worst]

    async def _choose(self, request_type: str, tried: set[str], deadline: float, sent: bool) -> Post | None:
        """Return the responder with the fewest of our requests, the one that is longest unused of several."""
        try:
            posts = await self._directory.responders(request_type, tried, deadline)
            if posts and all(self._load(post)[0] for post in posts):
                self._directory.distrust()  # somebody may have come whom we do not know
                posts = await self._directory.responders(request_type, tried, deadline)
        except BrokerError:
            if sent:
                return None  # it cannot be called unsent any more
            raise
        return min(posts, key=self._load, default=None)

    def _load(self, post: Post) -> tuple[bool, int, float]:
        peer = self._peers.get(post.address)
        paused, used = (False, 0.0) if peer is None else (peer.line.paused, peer.used)
        return paused, self._chosen[post.address], used

    async def _try(
        self, post: Post, packed: tuple[bytes, bytes], deadline: float, *, redelivered: bool
    ) -> Answer | Miss:
        for _ in range(2):  # a connection that was not used lately may be closed just now, by us or by them
            peer = await self._reach(post.address)
            answer = peer if isinstance(peer, Miss) else await peer.request(packed, deadline, redelivered=redelivered)
            if peer is answer or answer is not Miss.UNREACHABLE:
                return answer
        return Miss.UNREACHABLE

    async def ask(self, post: Post, timeout: float) -> bytes | None:
        """Return what a session says of itself; None if it does not answer in time."""
        if not post.address:
            return None
        peer = await self._reach(post.address)
        if isinstance(peer, Miss):
            return None
        report = await peer.ask(timeout)
        if peer.idle and len(self._peers) > _PEERS_KEPT:
            self._peers.pop(post.address, None)  # there may be thousands of sessions, and we are not to keep as many
            peer.line.close()
        return report

    async def tell(self, session: str, message: bytes) -> Post | None:
        """Send a message to a session if there is one; return where it should be if it cannot be reached."""
        check_size(0, len(message), "the message")
        deadline = asyncio.get_running_loop().time() + _TELL_SECONDS
        post = await self._directory.find(session, deadline)
        if post is None:
            return None
        peer = await self._reach(post.address)
        if peer is Miss.OVERLOADED or (isinstance(peer, Peer) and not await peer.tell(message, deadline)):
            raise BrokerUnavailable(f"session {session} takes no messages: it is stopped, or its event loop is blocked")
        return post if isinstance(peer, Miss) else None

    async def aclose(self) -> None:
        """Give up what waits, and close the connections."""
        self._closed = True
        for peer in self._peers.values():
            peer.give_up()
        if self._calling:
            await asyncio.wait(self._calling.values())
        await close_all([peer.line for peer in self._peers.values()])
        self._peers = {}

    def forget(self) -> None:
        """Close the connections' sockets, as there is no event loop any more."""
        for peer in self._peers.values():
            peer.line.forget()

    # Connections

    async def _reach(self, address: str) -> Peer | Miss:
        peer = self._peers.get(address)
        if peer is not None and not peer.line.is_closed:
            return peer
        calling = self._calling.get(address)
        if calling is None:
            calling = asyncio.create_task(self._call(address), name="signalbus sqlite connect")
            self._calling[address] = calling
            calling.add_done_callback(lambda _: self._calling.pop(address, None))
        return await asyncio.shield(calling)

    async def _call(self, address: str) -> Peer | Miss:
        if self._closed:
            return Miss.UNREACHABLE
        end = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        end.setblocking(False)
        try:
            end.connect(address)
        except BlockingIOError:
            end.close()
            return Miss.OVERLOADED  # it is stopped or blocked, and others wait to be accepted before us
        except OSError:
            end.close()
            return Miss.UNREACHABLE
        peer = Peer(end, self._counters)
        peer.used = asyncio.get_running_loop().time()
        await peer.line.call()
        self._peers[address] = peer
        self._tidy()
        return peer

    def _tidy(self) -> None:
        """Forget connections that ended; close those that were not used lately, if there are many."""
        self._peers = {address: peer for address, peer in self._peers.items() if not peer.line.is_closed}
        recently = asyncio.get_running_loop().time() - _IDLE_SECONDS
        unused = sorted((p for p in self._peers.values() if p.idle and p.used < recently), key=lambda peer: peer.used)
        for peer in unused[: max(0, len(self._peers) - _PEERS_KEPT)]:
            peer.line.close()

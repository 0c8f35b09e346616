"""Our session among others: who we are, what we say of ourselves, and what others tell us."""

from __future__ import annotations

import importlib.metadata
import logging
import os
import socket
from typing import cast

import orjson

from . import acknowledgements
from .acknowledgements import Acknowledgements
from .brokers.base import Broker
from .delivery import Settlement
from .ledger import Recorder
from .publisher import PublisherStats
from .responder import RespondingService
from .services import Services
from .sessions import SessionInfo, SessionReport, encode_report
from .signals import new_id, utc_now
from .subscription import SubscriptionService

log = logging.getLogger(__name__)


class Member:
    """Implements `Host` for a bus."""

    def __init__(
        self,
        name: str,
        broker: Broker,
        subscriptions: Services[SubscriptionService],
        responders: Services[RespondingService],
        recorder: Recorder,
        publisher: PublisherStats,
    ) -> None:
        self.acknowledgements = Acknowledgements(broker.send)
        self._name = name
        self._subscriptions = subscriptions
        self._responders = responders
        self._recorder = recorder
        self._publisher = publisher
        self._session: SessionInfo | None = None

    @property
    def joined(self) -> bool:
        """Whether there is, or was, a session."""
        return self._session is not None

    @property
    def session(self) -> SessionInfo:
        """The present incarnation of our session."""
        assert self._session is not None, "there is no session before `join`"
        return self._session

    def join(self) -> SessionInfo:
        """Begin a session."""
        self._session = SessionInfo(
            id=new_id(),
            name=self._name,
            host=socket.gethostname(),
            pid=os.getpid(),
            version=_version(),
            started=utc_now(),
        )
        return self._session

    def tell(self, to: str, signal_id: str, subscription: str, settlement: Settlement) -> None:
        """Tell a session what became of its signal."""
        self.acknowledgements.tell(to, signal_id, subscription, settlement, self.session.id)

    async def aclose(self) -> None:
        """Let what we have to tell arrive."""
        await self.acknowledgements.aclose()

    # Asked by the broker

    def report(self) -> bytes:
        """See `Host.report`."""
        subscriptions = (service.report() for _, service in self._subscriptions.items())
        return encode_report(
            SessionReport(
                subscriptions=tuple(report for report in subscriptions if report is not None),
                responders=tuple(service.report() for _, service in self._responders.items()),
                published=self._publisher.published,
            )
        )

    def take(self, message: bytes) -> None:
        """See `Host.take`."""
        try:
            fields = cast("object", orjson.loads(message))
        except ValueError:
            fields = None
        if isinstance(fields, dict):
            known = cast("dict[str, object]", fields)
            if known.get("kind") == acknowledgements.KIND:
                self.acknowledgements.take(known)
                return
        log.warning("a message of %d bytes that is not ours was dropped", len(message))

    def renewed(self, session: SessionInfo) -> None:
        """See `Host.renewed`."""
        log.warning("session %s was taken for dead, and goes on as %s", self.session.id, session.id)
        self._session = session
        self._recorder.session_up(session)


def _version() -> str:
    try:
        return importlib.metadata.version("signalbus-router")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"  # run from a source tree

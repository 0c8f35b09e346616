"""The embedded broker: signals and queues in one SQLite file, shared by the processes of one machine."""

from __future__ import annotations

from .broker import SqliteBroker

__all__ = ["SqliteBroker"]

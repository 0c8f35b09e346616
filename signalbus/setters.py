"""For frozen dataclasses of which each signal makes one: their own ``__init__``, in a third of the time.

The generated one looks ``object.__setattr__`` up, and that the slot, for each field. These are the slots themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import fields
from typing import Any


def setters(kind: type[Any]) -> tuple[Callable[[object, object], None], ...]:
    """Return what sets each field of a dataclass with slots, in their order. Only for its ``__init__``."""
    return tuple(getattr(kind, field.name).__set__ for field in fields(kind))

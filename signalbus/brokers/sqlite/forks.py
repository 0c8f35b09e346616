"""What a forked child must let go of: it would keep its parent's locks, sockets and connections alive."""

from __future__ import annotations

import functools
import os
import weakref
from typing import Protocol


class Inherited(Protocol):
    """Something that holds files."""

    def forget(self) -> None:
        """Close our copies only, without touching the parent's."""
        ...


_inherited: weakref.WeakSet[Inherited] = weakref.WeakSet()


def guard(holder: Inherited) -> None:
    """Have a holder let go in forked children, as long as it exists."""
    _register()
    _inherited.add(holder)


@functools.cache
def _register() -> None:
    os.register_at_fork(after_in_child=_forget_all)


def _forget_all() -> None:
    for holder in list(_inherited):
        holder.forget()
    _inherited.clear()

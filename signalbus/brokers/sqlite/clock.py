"""The three clocks of the embedded broker, injectable. Owns time; knows no database.

Due times are kept on the boot clock: it counts through suspend and no operator can set it. It starts anew with each
boot, so the wall clock is noted beside it, for that one case.
"""

from __future__ import annotations

import functools
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def _boottime() -> float:
    return time.clock_gettime(_BOOT_CLOCK)


@functools.cache
def _boot_id() -> str:
    if _BOOT_ID.exists():
        return _BOOT_ID.read_text(encoding="ascii").strip()
    # macOS has no /proc; its kernel gives each boot a UUID as well.
    found = subprocess.run(["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=True)
    return found.stdout.strip()


# macOS has no CLOCK_BOOTTIME; its CLOCK_MONOTONIC counts through suspend, as BOOTTIME does on Linux.
_BOOT_CLOCK: int = getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC)


@dataclass(frozen=True, slots=True, kw_only=True)
class Clock:
    """``wall`` and ``boottime`` return seconds; ``boot_id`` names the boot that ``boottime`` counts from."""

    wall: Callable[[], float] = time.time
    boottime: Callable[[], float] = _boottime
    boot_id: Callable[[], str] = _boot_id


def remaining_after_reboot(due_wall: float, delay: float, now_wall: float) -> float:
    """Return the seconds still to wait for something due at ``due_wall``, at most its original ``delay``.

    The wall clock may have been set meanwhile, so it is believed only within these bounds.
    """
    return min(max(due_wall - now_wall, 0.0), delay)

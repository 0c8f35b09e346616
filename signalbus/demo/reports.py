"""What the demo's processes tell their parent: one JSON object a line, on standard output."""

from __future__ import annotations

import json
import sys
from typing import Literal, TypedDict, cast

What = Literal["ready", "progress", "held", "finished"]


class Report(TypedDict):
    """``what`` happened in which session, and how many signals are done."""

    what: What
    done: int
    session: str


def tell(what: What, done: int, session: str = "") -> None:
    """Tell the parent."""
    sys.stdout.write(json.dumps({"what": what, "done": done, "session": session}) + "\n")
    sys.stdout.flush()


def heard(line: bytes) -> Report:
    """Read what a child told."""
    return cast("Report", json.loads(line))

"""What the demo's processes tell their parent: one JSON object a line, on standard output."""

from __future__ import annotations

import json
import sys
from typing import Literal, TypedDict, cast


class Report(TypedDict):
    """``what`` happened, and how many signals are done."""

    what: Literal["ready", "progress", "held", "finished"]
    done: int


def tell(what: Literal["ready", "progress", "held", "finished"], done: int) -> None:
    """Tell the parent."""
    sys.stdout.write(json.dumps({"what": what, "done": done}) + "\n")
    sys.stdout.flush()


def heard(line: bytes) -> Report:
    """Read what a child told."""
    return cast("Report", json.loads(line))

"""One death of a delivery, and what can be told from it: which dead letter it is, its error, place and group. Pure."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace

from ..codec import RECEIPT_TO, SOURCE, EncodedSignal, text_header
from ..delivery import DeadReason, Failure

#: Reasons that blame no handler: an earlier failure in the history is not what the delivery died of.
_WITHOUT_ERROR = frozenset({DeadReason.CRASHES, DeadReason.BROKER})
_FRAME = re.compile(r'^\W*File "([^"\n]*)", line (\d+), in (.+)$', re.MULTILINE)  # groups of errors draw a margin
_ID_BYTES = 10
_PLACE_CHARACTERS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Death:
    """A delivery that was given up, as a store found it.

    ``position`` is where the store keeps its content, ``copy`` the store's number of this one copy of the signal (0
    where it has none). ``damaged``: the content is not what was published. ``at``: seconds since 1970.
    """

    position: int
    subscription: str
    content: EncodedSignal
    reason: DeadReason
    detail: str
    attempt: int
    crashes: int
    at: float
    history: tuple[Failure, ...]
    copy: int = 0
    damaged: bool = False

    @property
    def letter(self) -> str:
        """The id of the dead letter: the same for the same subscription, signal and body, however often it dies.

        The body is part of it, so that nothing is taken for a repetition, and given up, that is not one.
        """
        source = text_header(self.content, SOURCE) or ""
        digest = hashlib.blake2b(digest_size=_ID_BYTES)
        for text in (self.subscription, self.content.id, source):
            encoded = text.encode("utf-8", "replace")
            digest.update(b"%d:" % len(encoded) + encoded)
        digest.update(self.content.body)
        return digest.hexdigest()

    @property
    def error(self) -> str:
        """The type of the exception it died of, empty if it was none."""
        return self.history[-1].error if self.history and self.reason not in _WITHOUT_ERROR else ""

    @property
    def place(self) -> str:
        """Where that was raised, empty if that is not known."""
        return place_of(self.history[-1].traceback) if self.error else ""

    @property
    def group(self) -> str:
        """The id of its group."""
        same = (self.error, self.place) if self.error else (self.reason.value,)
        text = "\0".join((self.subscription, *same))
        return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=_ID_BYTES).hexdigest()


def place_of(traceback: str) -> str:
    """Return the innermost frame of a formatted traceback as ``billing.py:12 in charge``; empty if it shows none."""
    frames = _FRAME.findall(traceback)
    if not frames:
        return ""
    path, line, function = frames[-1]
    name = re.split(r"[/\\]", path)[-1]
    return f"{name}:{line} in {function.strip()}"[:_PLACE_CHARACTERS]


def to_send(content: EncodedSignal, receipt_to: str = "") -> EncodedSignal:
    """Return the signal as it is replayed: as it was, but who published it does not wait for it any more."""
    headers = {name: value for name, value in content.headers.items() if name != RECEIPT_TO}
    if receipt_to:
        headers[RECEIPT_TO] = receipt_to
    return replace(content, headers=headers)

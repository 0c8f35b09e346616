"""Where a benchmark runs: beside the file of a URL, or under a prefix of its own; and leaving nothing behind."""

from __future__ import annotations

import secrets
import shutil
import tempfile
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from urllib.parse import parse_qsl, quote, urlencode

from ..config import RabbitUrl, Settings, SqliteUrl, parse_url
from ..errors import BrokerUnavailable

SUBSCRIPTION = "bench"
SOON_SECONDS = 5.0  # for removing what an error has left behind


@asynccontextmanager
async def place(url: str | None, timeout: float) -> AsyncGenerator[str]:
    """Yield the URL of a place that nobody else uses: on the file system, or at the broker, that ``url`` names.

    All of it is gone afterwards. Raises `BrokerUnavailable` if it could not be removed, and OSError if there is no
    such directory.
    """
    given = Settings.read(url=url).url
    base, _, query = given.partition("?")
    options = dict(parse_qsl(query))
    match parse_url(given):
        case SqliteUrl(path=path):
            directory = Path(tempfile.mkdtemp(prefix="signalbus-bench-", dir=path.parent))
            try:
                yield _joined(f"sqlite:///{quote(str(directory / 'bench.db'))}", options)
            finally:
                shutil.rmtree(directory, ignore_errors=True)
        case RabbitUrl():
            own = _joined(base, {**options, "prefix": f"signalbus-bench-{secrets.token_hex(4)}"})
            try:
                yield own
            except BaseException:
                with suppress(BrokerUnavailable):  # what ended it is the better message; there may be no broker at all
                    await _remove(own, min(timeout, SOON_SECONDS))
                raise
            await _remove(own, timeout)


async def _remove(url: str, timeout: float) -> None:
    from ..brokers.rabbitmq.removal import remove

    parsed = parse_url(url)
    assert isinstance(parsed, RabbitUrl)
    await remove(parsed, [SUBSCRIPTION], timeout)


def _joined(base: str, options: dict[str, str]) -> str:
    return f"{base}?{urlencode(options)}" if options else base

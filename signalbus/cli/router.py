"""``signalbus router``: the daemon beside RabbitMQ that keeps the ledger."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from ..brokers.rabbitmq.collector import CollectorState
from ..bus import Bus
from ..config import SqliteUrl, parse_url
from ..router.daemon import Router
from ..router.notify import READY, STOPPING, Notifier
from ..router.settings import RouterSettings, read_settings
from ..supervision import ChildSpec
from ..web.access import Access
from ..web.window import window_on
from .connect import require_store
from .failures import CommandError, Exit
from .interrupts import run_interruptible
from .options import NO_OPTIONS, Options, flag
from .output import Output, log_to_stderr

EXAMPLES = """Examples:
  signalbus router --url amqp://user:password@host/ --store /var/lib/signalbus/ledger.db --listen 127.0.0.1:8642
  signalbus router --config /etc/signalbus/router.toml --check-config
  SIGNALBUS_STORE=ledger.db signalbus router --keep-days 30
  signalbus router --url sqlite:///signalbus.db"""

CHOSEN_SECONDS = 2.0  # who is active knows it sooner; until then nothing is said

_STOPPED = {128 + signal.SIGINT, 128 + signal.SIGTERM}


def router(
    *,
    config: Annotated[Path | None, Parameter(help="A TOML file with these settings, with _ for -.")] = None,
    store: Annotated[
        str | None, Parameter(help="The file to keep the ledger in; made if it is not there [env: SIGNALBUS_STORE].")
    ] = None,
    keep_days: Annotated[float | None, Parameter(help="Forget what is older (7) [env: SIGNALBUS_KEEP_DAYS].")] = None,
    keep_mib: Annotated[
        int | None, Parameter(help="Forget the oldest beyond this size, roughly (4096) [env: SIGNALBUS_KEEP_MIB].")
    ] = None,
    listen: Annotated[
        str | None, Parameter(help="Serve the page and the API there, like 127.0.0.1:8642 [env: SIGNALBUS_LISTEN].")
    ] = None,
    token_file: Annotated[
        str | None,
        Parameter(help="What callers of the API have to know, in a file [env: SIGNALBUS_TOKEN_FILE, SIGNALBUS_TOKEN]."),
    ] = None,
    check_config: Annotated[bool, flag("--check-config", "Check the settings, and do nothing else.")] = False,
    print_config: Annotated[bool, flag("--print-config", "Print the settings as they are, without secrets.")] = False,
    options: Options = NO_OPTIONS,
) -> int:
    """Collect what all buses on a RabbitMQ record, and keep it for `signalbus trace`, until SIGTERM or Ctrl-C.

    Settings come from flags, then from the environment, then from the file. Several routers may run: one is active,
    and another one follows it when it ends. Nothing depends on them: while none is there facts wait at RabbitMQ, in a
    bounded queue, and signals do not. The embedded broker keeps its ledger itself: there only the page and the API of
    its file are served, at 127.0.0.1:8642 unless --listen says otherwise. Being stopped is what a daemon ends with: the
    exit code is 0 then.
    """
    settings = read_settings(
        config,
        url=options.url,
        store=store,
        keep_days=keep_days,
        keep_mib=keep_mib,
        connect_timeout=options.timeout,
        listen=listen,
        token_file=token_file,
    )
    embedded = isinstance(parse_url(settings.url), SqliteUrl)
    if print_config:
        return _print(settings, options)
    if embedded and settings.store:
        raise CommandError(
            "the embedded broker keeps its ledger in its own file, so there is no use for a store",
            code=Exit.USAGE,
            advice="name a RabbitMQ with --url or SIGNALBUS_URL, or leave --store and SIGNALBUS_STORE out",
        )
    if embedded:
        require_store(replace(options, url=settings.url))
    else:
        _check(settings)
    if check_config:
        Output(options).note("signalbus: the configuration is good")
        return Exit.OK
    log_to_stderr(options, usual=logging.WARNING)
    code = run_interruptible(lambda: (_serve_file if embedded else _serve)(settings, options))
    return Exit.OK if code in _STOPPED else code


def _print(settings: RouterSettings, options: Options) -> int:
    output = Output(options)
    if options.json:
        output.json(settings=settings.shown())
        return Exit.OK
    for name, value in settings.shown().items():
        output.line(f"{name} = {json.dumps(value)}")  # which is TOML as well
    return Exit.OK


def _check(settings: RouterSettings) -> None:
    """Raise what can be known to be wrong before anything is begun."""
    if not settings.store:
        raise CommandError("no store is named", code=Exit.USAGE, advice="signalbus router --store ledger.db")
    directory = Path(settings.store).absolute().parent
    if not directory.is_dir():
        raise CommandError(
            f"the directory {directory} of the store does not exist", code=Exit.USAGE, advice=f"mkdir -p {directory}"
        )
    _router(settings, Notifier({}))


def _router(settings: RouterSettings, notifier: Notifier) -> Router:
    bus = Bus(
        settings.url,
        name="signalbus-router",
        connect_timeout=settings.connect_timeout,
        drain_timeout=settings.drain_timeout,
        ledger="off",
    )
    watchdog = [ChildSpec(name="watchdog", start=notifier.keep_alive)] if notifier.watchdog_seconds else []
    return Router(bus, Path(settings.store), settings.retention, access=settings.access(), beside=watchdog)


async def _serve(settings: RouterSettings, options: Options) -> int:
    notifier = Notifier()
    serving = _router(settings, notifier)
    running = asyncio.create_task(serving.serve(), name="signalbus router")
    telling = asyncio.create_task(_tell(serving, notifier, Output(options)), name="signalbus router tells its role")
    try:
        await asyncio.wait([running])
    except asyncio.CancelledError:
        notifier.tell(STOPPING)
        running.cancel()
        await asyncio.wait([running])
        if running.cancelled():
            raise
    finally:
        telling.cancel()
        await asyncio.wait([telling])
    running.result()
    return Exit.OK


async def _serve_file(settings: RouterSettings, options: Options) -> int:
    """Serve the page and the API of the embedded broker's file."""
    bus = Bus(settings.url, name="signalbus-router", connect_timeout=settings.connect_timeout)
    async with bus, window_on(bus, settings.access() or Access(), settings.connect_timeout) as url:
        Notifier().tell(READY)
        Output(options).note(f"signalbus: look at {bus!r}: {url}, pid {os.getpid()}")
        await asyncio.Event().wait()
    return Exit.OK


async def _tell(serving: Router, notifier: Notifier, output: Output) -> None:
    """Tell people, and systemd, what the router does, whenever that changes."""
    await serving.ready.wait()
    notifier.tell(READY)
    if serving.url is not None:
        output.note(f"signalbus: look at it: {serving.url}")
    told: CollectorState | None = None
    while True:
        role = await serving.next_role(told, CHOSEN_SECONDS)
        text = _described(role, serving)
        notifier.tell(f"STATUS={text}")
        output.note(f"signalbus: router {text}, pid {os.getpid()}")
        told = role


def _described(role: CollectorState, serving: Router) -> str:
    match role:
        case CollectorState.ACTIVE:
            return f"keeps the ledger of {serving.bus!r} in {serving.path}"
        case CollectorState.STANDBY:
            return f"stands by: another one keeps the ledger of {serving.bus!r}"
        case CollectorState.AWAY:
            return f"collects nothing for now: {'; '.join(serving.troubles()) or 'it begins anew'}"
